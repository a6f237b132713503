"""seccomp: a filter in the kernel that restricts which system calls a process may make.

The filter is classic BPF, written by hand: it is just a list and a few comparisons, not worth a
dependency on libseccomp.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from lazyfx_server.security.sandbox.kernel import syscall
from lazyfx_server.security.sandbox.numbers import Machine, this_machine

_SET_MODE_FILTER, _GET_ACTION = 1, 2
_ALL_THREADS = 1

_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X32 = 0x40000000

_PROT_EXEC = 4
_CLONE_THREAD = 0x00010000
# Write-only, read-write, create, truncate, unnamed files.
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | 0o20000000
# Terminal size and attributes, close-on-exec, non-blocking, readable bytes; no input to terminals.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# Duplication and flags; no owners, which could have signals sent to other processes.
_FCNTLS = (0, 1, 2, 3, 4, 1030)
# New processes, without namespaces, tracing or a way around tracing.
_CLONE_APART = 0x7E020000 | 0x00002000 | 0x00800000
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41

Profile: TypeAlias = Literal["passes", "native", "programs"]
"""What a process does: run passes; run Inductor and load the compiled code; run compilers."""

Instruction: TypeAlias = "tuple[int, int, int, int]"


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def is_available() -> bool:
    """Whether this kernel supports filters, and this machine's calls are known."""
    machine = this_machine()
    if machine is None:
        return False
    action = ctypes.c_uint32(_KILL_PROCESS)
    try:
        syscall(machine.seccomp, _GET_ACTION, 0, ctypes.byref(action))
    except OSError:
        return False
    return True


def confine(profile: Profile = "passes", *, devices: bool = False) -> None:
    """Restrict every thread of this process to the calls of a profile, with bounded arguments.

    Needs no_new_privs. Other calls fail with EPERM.

    Args:
        profile: Which list.
        devices: Allow any ioctl on device files, as GPU drivers need.

    Raises:
        OSError: The kernel refused.
    """
    machine = this_machine()
    if machine is None:
        raise OSError(errno.ENOSYS, "this machine's system calls are not known")
    instructions = list(_filter(machine, os.getpid(), profile, devices=devices))
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    program = _Program(len(instructions), code)
    syscall(machine.seccomp, _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(program))


def _filter(
    machine: Machine, own: int, profile: Profile = "passes", *, devices: bool = False
) -> Iterator[Instruction]:
    yield (_LOAD, 0, 0, _ARCHITECTURE)
    yield (_EQUAL, 1, 0, machine.audit)
    yield (_RETURN, 0, 0, _KILL_PROCESS)
    yield (_LOAD, 0, 0, _NUMBER)
    # Numbers of the x32 ABI, which reach the same calls.
    yield (_AT_LEAST, 0, 1, _X32)
    yield (_RETURN, 0, 0, _KILL_PROCESS)
    bounded = _bounds(own, profile)
    if devices:
        del bounded["ioctl"]
    numbers = dict(machine.numbers)
    if profile != "passes":
        numbers |= machine.files
        numbers |= machine.idle
        bounded |= {name: [_DONE] for name in machine.idle}
    if profile == "programs":
        numbers |= machine.programs
    for name, number in numbers.items():
        body = bounded.get(name, [_ALLOWED])
        yield (_EQUAL, 0, len(body), number)
        yield from body
    yield (_RETURN, 0, 0, _ERRNO | errno.EPERM)


def _bounds(own: int, profile: Profile) -> dict[str, list[Instruction]]:
    """Conditions on the arguments of some calls.

    Args:
        own: The id of this process, the only one that may receive signals.
        profile: Which list.
    """
    bounds = {
        "mmap": _without(2, _PROT_EXEC),
        "mprotect": _without(2, _PROT_EXEC),
        "open": _without(1, _WRITING),
        "openat": _without(2, _WRITING),
        "clone": _with(0, _CLONE_THREAD),
        # A filter cannot see its flags; C libraries fall back to clone.
        "clone3": [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)],
        "ioctl": _one_of(1, _IOCTLS),
        "fcntl": _one_of(1, _FCNTLS),
        "prctl": _one_of(0, (_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA)),
        "kill": _one_of(0, (own,)),
        "tgkill": _one_of(0, (own,)),
        "prlimit64": _no_address(2),
    }
    if profile != "passes":
        # They load libraries and write files; Landlock restricts which ones.
        for name in ("mmap", "mprotect", "open", "openat"):
            del bounds[name]
    if profile == "programs":
        bounds["clone"] = _without(0, _CLONE_APART)
    return bounds


def _argument(number: int, high: int = 0) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * number + 4 * high)


_REFUSED: Instruction = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
# Success without effect: the call is skipped but reports success.
_DONE: Instruction = (_RETURN, 0, 0, _ERRNO)
_ALLOWED: Instruction = (_RETURN, 0, 0, _ALLOW)


def _without(argument: int, bits: int) -> list[Instruction]:
    return [_argument(argument), (_ANY_BIT, 0, 1, bits), _REFUSED, _ALLOWED]


def _with(argument: int, bits: int) -> list[Instruction]:
    return [_argument(argument), (_ANY_BIT, 0, 1, bits), _ALLOWED, _REFUSED]


def _one_of(argument: int, values: Sequence[int]) -> list[Instruction]:
    body = [_argument(argument)]
    for value in values:
        body += [(_EQUAL, 0, 1, value), _ALLOWED]
    return [*body, _REFUSED]


def _no_address(argument: int) -> list[Instruction]:
    """The argument is a null pointer: nothing is set."""
    return [
        _argument(argument),
        (_EQUAL, 0, 3, 0),
        _argument(argument, high=1),
        (_EQUAL, 0, 1, 0),
        _ALLOWED,
        _REFUSED,
    ]
