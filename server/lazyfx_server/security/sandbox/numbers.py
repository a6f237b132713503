"""Numbers of the system calls that workers may make, per known architecture.

There are three lists, each a superset of the previous one: for passes; for native jobs, which write
files and load libraries; and for compilers, which are programs.

From the kernel's `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`.
All other calls are refused.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What a seccomp filter must know about an architecture.

    Attributes:
        audit: Value of `seccomp_data.arch`.
        seccomp: Number of the seccomp call.
        numbers: System calls of workers that run passes, by name.
        files: Additional calls of native jobs.
        idle: Calls of native jobs and compilers that succeed without effect.
        programs: Additional calls of compilers.
    """

    audit: int
    seccomp: int
    numbers: Mapping[str, int]
    files: Mapping[str, int]
    idle: Mapping[str, int]
    programs: Mapping[str, int]


_X86_64 = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7,
    "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13,
    "rt_sigprocmask": 14, "rt_sigreturn": 15, "ioctl": 16, "pread64": 17, "readv": 19,
    "writev": 20, "access": 21, "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28,
    "dup": 32, "dup2": 33, "nanosleep": 35, "getitimer": 36, "setitimer": 38, "getpid": 39,
    "sendto": 44, "recvfrom": 45, "shutdown": 48, "clone": 56, "exit": 60, "wait4": 61,
    "kill": 62, "uname": 63, "fcntl": 72, "getcwd": 79, "readlink": 89, "gettimeofday": 96,
    "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "getppid": 110, "getpgrp": 111, "sigaltstack": 131,
    "statfs": 137, "fstatfs": 138, "sched_getparam": 143, "sched_getscheduler": 145,
    "prctl": 157, "gettid": 186, "futex": 202, "sched_getaffinity": 204, "getdents64": 217,
    "set_tid_address": 218, "restart_syscall": 219, "timer_create": 222, "timer_settime": 223,
    "timer_delete": 226, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
    "exit_group": 231, "tgkill": 234, "get_mempolicy": 239, "openat": 257, "newfstatat": 262,
    "readlinkat": 267, "faccessat": 269, "pselect6": 270, "ppoll": 271, "set_robust_list": 273,
    "get_robust_list": 274, "dup3": 292, "prlimit64": 302, "getcpu": 309, "getrandom": 318,
    "membarrier": 324, "statx": 332, "rseq": 334, "clone3": 435, "faccessat2": 439,
    "futex_waitv": 449,
}  # fmt: skip
_AARCH64 = {
    "getcwd": 17, "dup": 23, "dup3": 24, "fcntl": 25, "ioctl": 29, "statfs": 43, "fstatfs": 44,
    "faccessat": 48, "openat": 56, "close": 57, "getdents64": 61, "lseek": 62, "read": 63,
    "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pselect6": 72, "ppoll": 73,
    "readlinkat": 78, "newfstatat": 79, "fstat": 80, "exit": 93, "exit_group": 94,
    "set_tid_address": 96, "futex": 98, "set_robust_list": 99, "get_robust_list": 100,
    "nanosleep": 101, "getitimer": 102, "setitimer": 103, "timer_create": 107,
    "timer_settime": 110, "timer_delete": 111, "clock_gettime": 113, "clock_getres": 114,
    "clock_nanosleep": 115, "sched_getscheduler": 120, "sched_getparam": 121,
    "sched_getaffinity": 123, "sched_yield": 124, "restart_syscall": 128, "kill": 129,
    "tgkill": 131, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135,
    "rt_sigreturn": 139, "times": 153, "uname": 160, "getrlimit": 163, "getrusage": 165,
    "prctl": 167, "getcpu": 168, "gettimeofday": 169, "getpid": 172, "getppid": 173,
    "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "gettid": 178, "sysinfo": 179,
    "sendto": 206, "recvfrom": 207, "shutdown": 210, "brk": 214, "munmap": 215, "mremap": 216,
    "clone": 220, "mmap": 222, "mprotect": 226, "madvise": 233, "get_mempolicy": 236,
    "wait4": 260, "prlimit64": 261, "getrandom": 278, "membarrier": 283, "statx": 291,
    "rseq": 293, "clone3": 435, "faccessat2": 439, "futex_waitv": 449,
}  # fmt: skip

_FILES_X86_64 = {
    "pwrite64": 18, "msync": 26, "mincore": 27, "sendfile": 40, "flock": 73, "fsync": 74,
    "fdatasync": 75, "ftruncate": 77, "getdents": 78, "rename": 82, "mkdir": 83, "rmdir": 84,
    "unlink": 87, "fadvise64": 221, "mkdirat": 258, "unlinkat": 263, "renameat": 264,
    "fallocate": 285, "preadv": 295, "pwritev": 296, "renameat2": 316, "copy_file_range": 326,
}  # fmt: skip
_FILES_AARCH64 = {
    "flock": 32, "mkdirat": 34, "unlinkat": 35, "renameat": 38, "ftruncate": 46, "fallocate": 47,
    "pwrite64": 68, "preadv": 69, "pwritev": 70, "sendfile": 71, "fsync": 82, "fdatasync": 83,
    "fadvise64": 223, "msync": 227, "mincore": 232, "renameat2": 276, "copy_file_range": 285,
}  # fmt: skip
# They change modes and times of files, which Landlock does not cover: they succeed without effect.
_IDLE_X86_64 = {"chmod": 90, "fchmod": 91, "fchmodat": 268, "utimensat": 280}
_IDLE_AARCH64 = {"fchmod": 52, "fchmodat": 53, "utimensat": 88}
_PROGRAMS_X86_64 = {
    "pipe": 22, "fork": 57, "vfork": 58, "execve": 59, "chdir": 80, "fchdir": 81, "umask": 95,
    "setpgid": 109, "getpgid": 121, "arch_prctl": 158, "waitid": 247, "pipe2": 293,
    "close_range": 436,
}  # fmt: skip
_PROGRAMS_AARCH64 = {
    "chdir": 49, "fchdir": 50, "pipe2": 59, "waitid": 95, "setpgid": 154, "getpgid": 155,
    "umask": 166, "execve": 221, "close_range": 436,
}  # fmt: skip

_MACHINES = {
    "x86_64": Machine(0xC000003E, 317, _X86_64, _FILES_X86_64, _IDLE_X86_64, _PROGRAMS_X86_64),
    "aarch64": Machine(0xC00000B7, 277, _AARCH64, _FILES_AARCH64, _IDLE_AARCH64, _PROGRAMS_AARCH64),
}


def this_machine() -> Machine | None:
    """The numbers for this machine, if known."""
    return _MACHINES.get(platform.machine())
