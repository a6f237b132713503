"""A server's folder for native compiles."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lazyfx_server.execution.owned_folder import OwnedFolder


class WorkArea:
    """Folders for jobs, compiles and precompiled headers, removed when the server stops.

    Args:
        base: The parent of the folders of this user's servers. Default: in the folder for temporary
            files.

    Raises:
        OSError: No folder can be created there, or others could write to it.
    """

    def __init__(self, base: Path | None = None) -> None:
        self._owned = OwnedFolder(
            base or Path(tempfile.gettempdir()) / f"lazyfx-native-{os.geteuid()}"
        )
        self.root = self._owned.path
        self.root.chmod(0o711)  # workers may run as another user, which is given the names

    def folder(self, *names: str, owner: int | None = None) -> Path:
        """A subfolder, created if missing; the last path component belongs to `owner`."""
        path = self.root
        for name in names:
            path /= name
            path.mkdir(mode=0o711, exist_ok=True)
        if owner is not None:
            os.chown(path, owner, owner)
            path.chmod(0o700)
        return path

    def close(self) -> None:
        """Remove everything."""
        self._owned.close()
