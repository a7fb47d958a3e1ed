"""Which system calls a sandboxed program may not make, as a filter for the kernel (Linux seccomp, classic BPF).

Namespaces and limits leave three doors: memory that belongs to no process and so to no limit (shared anonymous maps
that were unmapped again, System V segments, nameless files), sockets that no network namespace divides (vsock reaches
the host of a virtual machine), and large parts of the kernel that no answer needs. Enters: the name of the machine's
architecture. Leaves: the filter's bytes, or None where the numbers of the calls are not known here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in the kernel's seccomp_data
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # refused calls fail with EPERM
FOREIGN = 0x40000000  # from here on: x86-64's second set of numbers
SHARED_ANONYMOUS = 0x01 | 0x20
FAMILIES = (1, 2, 10, 16)  # sockets: unix, IPv4, IPv6, netlink; all of them end at the network namespace

REFUSED = (
    "memfd_create", "memfd_secret", "shmget", "msgget", "semget",
    "io_uring_setup", "bpf", "perf_event_open", "userfaultfd", "add_key", "request_key", "keyctl",
)  # fmt: skip
CHECKED = ("socket", "socketpair", "mmap")
TABLES = {
    "x86_64": (0xC000003E, (319, 447, 29, 68, 64, 425, 321, 298, 323, 248, 249, 250), (41, 53, 9)),
    "aarch64": (0xC00000B7, (279, 447, 194, 186, 190, 425, 280, 241, 282, 217, 218, 219), (198, 199, 222)),
}
"""Machine -> its number for the kernel, those of REFUSED, those of CHECKED."""

Line = tuple[int, int, int, int]
"""Operation, lines to skip if true, lines to skip if false, operand."""


def system_call_filter(machine: str) -> bytes | None:
    """The filter of that architecture (`platform.machine()`), None if it is not in the table."""
    if machine not in TABLES:
        return None
    architecture, refused, (socket, pair, mmap) = TABLES[machine]
    lines: list[Line] = [
        _load(ARCHITECTURE), (EQUAL, 1, 0, architecture), _return(KILL),
        _load(NUMBER), (AT_LEAST, 0, 1, FOREIGN), _return(REFUSE),
    ]  # fmt: skip
    for number in refused:
        lines += [(EQUAL, 0, 1, number), _return(REFUSE)]
    for number in (socket, pair):
        lines += _for(number, [_load(ARGUMENTS), *_one_of(FAMILIES), _return(REFUSE)])
    shared = [_load(ARGUMENTS + 3 * 8), (AND, 0, 0, SHARED_ANONYMOUS), (EQUAL, 0, 1, SHARED_ANONYMOUS), _return(REFUSE)]
    lines += _for(mmap, shared)
    return b"".join(struct.pack("HBBI", *line) for line in [*lines, _return(ALLOW)])


def _load(offset: int) -> Line:
    return LOAD, 0, 0, offset


def _return(value: int) -> Line:
    return RETURN, 0, 0, value


def _for(number: int, lines: Sequence[Line]) -> list[Line]:
    """These lines for that call only. What they load hides the number, so a call that they let through is allowed."""
    return [(EQUAL, 0, len(lines) + 1, number), *lines, _return(ALLOW)]


def _one_of(values: Sequence[int]) -> list[Line]:
    return [line for value in values for line in ((EQUAL, 0, 1, value), _return(ALLOW))]
