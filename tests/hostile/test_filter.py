"""The seccomp filter of each machine, run here instruction by instruction."""

from __future__ import annotations

import errno
import os

import pytest

from lazyfx_server.security.sandbox import seccomp
from lazyfx_server.security.sandbox.numbers import _MACHINES as MACHINES
from lazyfx_server.security.sandbox.numbers import Machine

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
OWN = 4711

# Calls that must not be there, by their numbers (arch/x86/entry/syscalls/syscall_64.tbl and
# include/uapi/asm-generic/unistd.h).
FORBIDDEN = {
    "x86_64": {
        "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "socketpair": 53,
        "fork": 57, "vfork": 58, "execve": 59, "truncate": 76, "rename": 82, "mkdir": 83,
        "creat": 85, "link": 86, "unlink": 87, "chmod": 90, "ptrace": 101, "chroot": 161,
        "mount": 165, "reboot": 169, "init_module": 175, "kexec_load": 246, "openat2": 437,
        "unshare": 272, "perf_event_open": 298, "process_vm_readv": 310, "process_vm_writev": 311,
        "seccomp": 317, "memfd_create": 319, "bpf": 321, "execveat": 322, "userfaultfd": 323,
        "pkey_mprotect": 329, "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438,
        "tkill": 200, "rt_sigqueueinfo": 129, "setrlimit": 160, "shmat": 30,
    },
    "aarch64": {
        "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202,
        "connect": 203, "execve": 221, "execveat": 281, "ptrace": 117, "unlinkat": 35,
        "mkdirat": 34, "renameat": 38, "linkat": 37, "truncate": 45, "ftruncate": 46,
        "fchmodat": 53, "mount": 40, "chroot": 51, "unshare": 97, "perf_event_open": 241,
        "process_vm_readv": 270, "process_vm_writev": 271, "seccomp": 277, "memfd_create": 279,
        "bpf": 280, "userfaultfd": 282, "pkey_mprotect": 288, "io_uring_setup": 425,
        "pidfd_open": 434, "openat2": 437, "pidfd_getfd": 438, "tkill": 130,
        "rt_sigqueueinfo": 138, "setrlimit": 164, "shmat": 196, "init_module": 105,
    },
}  # fmt: skip
# Numbers that differ from one table to the other and that a mistake would mix up.
KNOWN = {
    "x86_64": {"read": 0, "openat": 257, "mmap": 9, "mprotect": 10, "clone": 56, "futex": 202,
               "exit_group": 231, "prctl": 157, "ioctl": 16, "fcntl": 72, "kill": 62,
               "tgkill": 234, "prlimit64": 302, "getrandom": 318, "rseq": 334, "clone3": 435},
    "aarch64": {"read": 63, "openat": 56, "mmap": 222, "mprotect": 226, "clone": 220, "futex": 98,
                "exit_group": 94, "prctl": 167, "ioctl": 29, "fcntl": 25, "kill": 129,
                "tgkill": 131, "prlimit64": 261, "getrandom": 278, "rseq": 293, "clone3": 435},
}  # fmt: skip


def answered(
    machine: Machine,
    number: int,
    *arguments: int,
    audit: int | None = None,
    profile: seccomp.Profile = "passes",
    devices: bool = False,
) -> int:
    """What the kernel would do with a call: the filter, interpreted as classic BPF."""
    program = list(seccomp._filter(machine, OWN, profile, devices=devices))
    words = {0: number, 4: machine.audit if audit is None else audit}
    for place in range(6):
        value = arguments[place] if place < len(arguments) else 0
        words[16 + 8 * place] = value & 0xFFFFFFFF
        words[20 + 8 * place] = value >> 32
    at = register = 0
    for _ in range(len(program) + 1):
        code, yes, no, operand = program[at]
        at += 1
        if code == 0x20:
            register = words[operand]
        elif code == 0x06:
            return operand
        else:
            held = {
                0x15: register == operand, 0x45: bool(register & operand), 0x35: register >= operand
            }[code]  # fmt: skip
            at += yes if held else no
    raise AssertionError("the filter does not end")


@pytest.fixture(params=sorted(MACHINES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("profile", ["passes", "native", "programs"])
def test_a_filter_is_short_enough_and_jumps_forwards_within_it(
    name: str, profile: seccomp.Profile
) -> None:
    program = list(seccomp._filter(MACHINES[name], OWN, profile))
    assert len(program) <= 4096
    for at, (code, yes, no, _) in enumerate(program):
        if code in (0x15, 0x45, 0x35):
            assert 0 <= yes < 256
            assert 0 <= no < 256
            assert at + 1 + max(yes, no) < len(program)
    assert program[-1][0] == 0x06


def test_the_numbers_are_those_of_the_machine(name: str) -> None:
    numbers = MACHINES[name].numbers
    assert {call: numbers[call] for call in KNOWN[name]} == KNOWN[name]
    assert len(set(numbers.values())) == len(numbers)


def test_what_is_not_listed_is_refused(name: str) -> None:
    machine = MACHINES[name]
    for call, number in FORBIDDEN[name].items():
        assert call not in machine.numbers
        assert answered(machine, number) == EPERM, call
    assert answered(machine, 4000) == EPERM


def test_another_machine_s_calls_end_the_process(name: str) -> None:
    machine = MACHINES[name]
    assert answered(machine, machine.numbers["read"], audit=0x40000003) == KILL
    assert answered(machine, machine.numbers["read"] | 0x40000000) == KILL


def test_arguments_are_held_to_their_bounds(name: str) -> None:
    machine = MACHINES[name]
    call = machine.numbers

    def says(word: str, *arguments: int) -> int:
        return answered(machine, call[word], *arguments)

    assert says("read", 0, 0, 1) == ALLOW
    assert says("mmap", 0, 4096, 3) == ALLOW
    assert says("mmap", 0, 4096, 7) == EPERM
    assert says("mprotect", 0, 4096, 1) == ALLOW
    assert says("mprotect", 0, 4096, 5) == EPERM
    assert says("openat", 0, 0, os.O_RDONLY | os.O_CLOEXEC) == ALLOW
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC):
        assert says("openat", 0, 0, flags) == EPERM
    assert says("clone", 0x00010000 | 0x100) == ALLOW  # a thread
    assert says("clone", 17) == EPERM  # a process
    assert says("clone3") == ENOSYS
    assert says("kill", OWN, 9) == ALLOW
    assert says("kill", 1, 9) == EPERM
    assert says("kill", (1 << 32) - 1, 9) == EPERM  # everybody
    assert says("tgkill", OWN, OWN, 9) == ALLOW
    assert says("tgkill", 1, 1, 9) == EPERM
    assert says("ioctl", 0, 0x5413) == ALLOW
    assert says("ioctl", 0, 0x5412) == EPERM  # types into a terminal
    assert says("fcntl", 0, 8) == EPERM  # has signals sent
    assert says("prctl", 15) == ALLOW
    assert says("prctl", 22) == EPERM  # another filter
    assert says("prlimit64", 0, 7, 0) == ALLOW
    assert says("prlimit64", 0, 7, 1) == EPERM
    assert says("prlimit64", 0, 7, 1 << 32) == EPERM


# What native jobs and compilers may do besides.
OPENED = {"native": {"unlink", "rename", "mkdir", "ftruncate", "unlinkat", "mkdirat", "renameat"}}
OPENED["programs"] = OPENED["native"] | {"execve", "fork", "vfork"}
IDLE = {"chmod", "fchmod", "fchmodat", "utimensat"}


@pytest.mark.parametrize("profile", ["native", "programs"])
def test_native_jobs_and_compilers_make_a_few_more_calls(
    name: str, profile: seccomp.Profile
) -> None:
    machine = MACHINES[name]
    for call, number in FORBIDDEN[name].items():
        says = answered(machine, number, profile=profile)
        if call in IDLE:
            assert says == 0x00050000, call  # told that it was done
        else:
            assert says == (ALLOW if call in OPENED[profile] else EPERM), call
    numbers = [*machine.numbers.values(), *machine.files.values(), *machine.idle.values()]
    numbers += machine.programs.values()
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("profile", ["native", "programs"])
def test_their_arguments_are_held_to_bounds_too(name: str, profile: seccomp.Profile) -> None:
    machine = MACHINES[name]

    def says(word: str, *arguments: int, devices: bool = False) -> int:
        number = machine.numbers[word]
        return answered(machine, number, *arguments, profile=profile, devices=devices)

    assert says("mmap", 0, 4096, 5) == ALLOW
    assert says("openat", 0, 0, os.O_RDWR | os.O_CREAT) == ALLOW
    assert says("clone", 0x00010000 | 0x100) == ALLOW
    assert says("clone", 17) == (ALLOW if profile == "programs" else EPERM)
    for namespace in (0x00020000, 0x10000000, 0x20000000, 0x40000000):
        assert says("clone", 17 | namespace) == EPERM
    assert says("clone3") == ENOSYS
    assert says("kill", 1, 9) == EPERM
    assert says("tgkill", 1, 1, 9) == EPERM
    assert says("prlimit64", 0, 7, 1) == EPERM
    assert says("prctl", 4) == EPERM
    assert says("ioctl", 0, 0x5412) == EPERM
    assert says("ioctl", 0, 0x5412, devices=True) == ALLOW
