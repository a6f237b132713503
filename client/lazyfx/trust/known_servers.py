"""The servers that a user trusts, and their signing keys: like ssh's known_hosts.

A text file in the user's configuration folder, one key per line: `HOST:PORT ed25519 <public key,
hex>`.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from lazyfx.errors import AddressError, LazyfxError
from lazyfx.shared.addresses import read_address

VARIABLE: Final = "LAZYFX_KNOWN_SERVERS"

_ALGORITHM = "ed25519"
_KEY = re.compile(r"[0-9a-fA-F]{64}")
_MAX_BYTES = 2**20
_HEADER = "# Servers whose native artifacts this user opens; written by `lazyfx trust`.\n"


def known_servers_file() -> Path:
    """LAZYFX_KNOWN_SERVERS, else `lazyfx/known_servers` in the user's configuration."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    configuration = os.environ.get("XDG_CONFIG_HOME")
    return (Path(configuration) if configuration else Path.home() / ".config") / (
        "lazyfx/known_servers"
    )


def known_keys(address: str) -> tuple[str, ...]:
    """Public keys in hex that the user trusts for the server at an address, in file order.

    Args:
        address: As `addresses.read_address` returns it.

    Raises:
        LazyfxError: The file exists but cannot be read; names the line.
    """
    try:
        path = known_servers_file()
        rows = _read(path)
    except RuntimeError:  # no home folder, so no stored keys
        return ()
    return tuple(key for known, key in rows if known == address)


def trust(address: str, keys: Sequence[str]) -> Path:
    """Replace the stored keys of a server; return the path of the file.

    Args:
        address: As `addresses.read_address` returns it.
        keys: Public keys in hex; empty to forget the server.

    Raises:
        LazyfxError: The file cannot be read or written.
    """
    path = known_servers_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path):
            rows = [row for row in _read(path) if row[0] != address]
            rows += [(address, key) for key in keys]
            _replace(path, "".join(f"{known} {_ALGORITHM} {key}\n" for known, key in rows))
    except OSError as error:
        raise LazyfxError(f"cannot write {path}: {error.strerror}") from error
    return path


def _read(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LazyfxError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise LazyfxError(f"{path} is larger than {_MAX_BYTES} bytes")
    rows = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            rows.append(_row(line.split(), f"{path}, line {number}"))
    return rows


def _row(parts: Sequence[str], where: str) -> tuple[str, str]:
    if len(parts) == 3 and parts[1] == _ALGORITHM and _KEY.fullmatch(parts[2]):
        with suppress(AddressError):
            return read_address(parts[0]), parts[2].lower()
    raise LazyfxError(
        f"{where} is not HOST:PORT {_ALGORITHM} KEY; correct it, or remove the line and run "
        "`lazyfx trust HOST:PORT`"
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclude other writers of the file; readers always see a complete file."""
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(_HEADER + text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
