"""A Linux system-call filter for a process that only computes: reads and writes of open files, memory, and its end.

A list of what is allowed, so that calls which later kernels add (io_uring was one) are refused without being known
here. A refused call returns EPERM. No page can become executable any more. See seccomp(2) and
linux/Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_MODE_FILTER = 2
_ALLOW, _KILL_PROCESS, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | 1  # 1 = EPERM
_PROT_EXEC = 4

#: Offsets in `struct seccomp_data`: the call's number, the architecture, the low half of the third argument.
_NUMBER, _ARCHITECTURE, _THIRD_ARGUMENT = 0, 4, 32

#: Classic BPF: load a word of seccomp_data, jump if equal, jump if any bit is set, return.
_LOAD, _JUMP_EQUAL, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06

#: AUDIT_ARCH_* of linux/audit.h; all of these are little-endian.
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

#: Numbers on (x86_64, aarch64), from asm/unistd_64.h and asm-generic/unistd.h.
_ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "getpid": (39, 172),
    "exit": (60, 93),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}
#: Allowed unless their third argument asks for executable memory.
_ALLOWED_DATA = {"mmap": (9, 222), "mprotect": (10, 226)}


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install() -> bool:
    """Allow this process, from now on and for ever, nothing but the calls above.

    Returns False where there is no such thing: not Linux, an architecture not listed, a kernel without filters.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ARCHITECTURES:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    instructions = _filter(machine)
    program = _Program(len(instructions) // 8, instructions)
    word = ctypes.c_ulong
    # Without new privileges to gain, a filter may be set by any user.
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, word(1), word(0), word(0), word(0)) != 0:
        return False
    return libc.prctl(_PR_SET_SECCOMP, word(_MODE_FILTER), ctypes.byref(program), word(0), word(0)) == 0


def _filter(machine: str) -> bytes:
    column = list(_ARCHITECTURES).index(machine)
    plain = [numbers[column] for numbers in _ALLOWED.values()]
    data = [numbers[column] for numbers in _ALLOWED_DATA.values()]
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, _ARCHITECTURES[machine], if_true=1),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER),
    ]
    # Behind the comparisons stand: refuse; the two instructions for data calls; refuse; allow.
    left = len(plain) + len(data)
    for number in data:
        left -= 1
        program.append(_instruction(_JUMP_EQUAL, number, if_true=left + 1))
    for number in plain:
        left -= 1
        program.append(_instruction(_JUMP_EQUAL, number, if_true=left + 4))
    program += [
        _instruction(_RETURN, _REFUSE),
        _instruction(_LOAD, _THIRD_ARGUMENT),
        _instruction(_JUMP_BITS, _PROT_EXEC, if_true=0, if_false=1),
        _instruction(_RETURN, _REFUSE),
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join(program)


def _instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """`struct sock_filter`; jumps count the instructions to skip."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
