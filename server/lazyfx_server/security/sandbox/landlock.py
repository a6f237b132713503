"""Landlock: restricts which files a process may open and which ports it may use.

The structures are those of the kernel's `include/uapi/linux/landlock.h`; the numbers of its
system calls are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from lazyfx_server.security.sandbox.kernel import syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
READ = _READ_FILE | _READ_DIR
# Files and folders; no links, sockets, pipes or devices.
WRITE = READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
RUN = _READ_FILE | _EXECUTE
DEVICE = READ | _WRITE_FILE | _IOCTL_DEV
_OF_FILES = _READ_FILE | _WRITE_FILE | _EXECUTE | _TRUNCATE | _IOCTL_DEV
# File rights by the ABI version that introduced them.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NETWORK_VERSION, _NETWORK_RIGHTS = 4, 0b11
_SCOPE_VERSION, _SCOPES = 6, 0b11  # abstract sockets, signals


class _Ruleset(ctypes.Structure):
    _fields_ = [
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    ]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("rights", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def version() -> int:
    """The kernel's Landlock ABI version; 0 if there is none."""
    try:
        return syscall(_CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


def confine(allowed: Iterable[tuple[Path, int]]) -> None:
    """Restrict this thread and its children to the listed file accesses.

    Args:
        allowed: Files and folders, with READ, WRITE, RUN or DEVICE for everything beneath. Missing
            ones are skipped.

    Raises:
        OSError: The kernel refused.
    """
    offered = version()
    attributes = _Ruleset(
        files=sum(rights for since, rights in _FILE_RIGHTS.items() if since <= offered),
        network=_NETWORK_RIGHTS if offered >= _NETWORK_VERSION else 0,
        scoped=_SCOPES if offered >= _SCOPE_VERSION else 0,
    )
    ruleset = syscall(_CREATE_RULESET, ctypes.byref(attributes), _size(offered), 0)
    try:
        for path, rights in allowed:
            _allow(ruleset, path, rights & attributes.files)
        syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _size(offered: int) -> int:
    """Size of the structure in this ABI version."""
    if offered >= _SCOPE_VERSION:
        return 24
    return 16 if offered >= _NETWORK_VERSION else 8


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return  # it is missing, or inaccessible anyway
    try:
        is_folder = stat.S_ISDIR(os.fstat(folder).st_mode)
        rule = _Beneath(rights=rights if is_folder else rights & _OF_FILES, folder=folder)
        syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(folder)
