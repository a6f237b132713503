"""By what a server recognizes a job that runs again, perhaps on another machine."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig

import torch

from lazyfx.shared.native.machine import cpu_flags

_LABEL = b"lazyfx job 1"


def job_digests() -> tuple[bytes, ...]:
    """Digests of the job that this process belongs to, the most specific first.

    The first is of the script's path, its arguments and the rank; the second of the path alone, for
    other arguments and further ranks. Both include the kind of machine. The script's contents are
    not included: most changes of a script leave most graphs as they are.

    Returns:
        An empty tuple if this process runs no script: an interpreter or a notebook.
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if not isinstance(script, str):
        return ()
    machine = (torch.__version__, sysconfig.get_config_var("SOABI") or "", *cpu_flags())
    path = os.path.abspath(script)  # noqa: PTH100 - Path.resolve follows links to other machines
    whole = (path, *map(str, sys.argv[1:]), "rank", os.environ.get("RANK", ""))
    return _digest(machine, whole), _digest(machine, (path,))


def _digest(machine: tuple[str, ...], job: tuple[str, ...]) -> bytes:
    digest = hashlib.sha256(_LABEL)
    for texts in (machine, job):
        digest.update(len(texts).to_bytes(8, "little"))
        for text in texts:
            data = text.encode("utf-8", "surrogateescape")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()
