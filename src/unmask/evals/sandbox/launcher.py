"""The process around an untrusted program: builds the walls, starts the program behind them, reports how it ended.

Stand-alone (standard library only) and run as `python -I -S launcher.py CONFIG` by `sandbox/run.py`, so that namespaces
and dropped rights never touch the runner. Three processes: this one stays outside; `inside` is its child and process 1
of the new pid namespace; the program is the child of that. Enters: one JSON object as argument; the program on stdin,
which only the program reads. Leaves, as JSON lines on the control pipe: {"missing": {protection: reason}}, then how the
program ended: {"exit": code}, {"signal": number} or {"ended": "memory"}.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

try:
    import resource
except ImportError:  # Windows; the runner starts no launcher there
    resource = None  # type: ignore[assignment]

LINUX = sys.platform == "linux"
NEW = {"ipc namespace": 0x08000000, "network namespace": 0x40000000, "pid namespace": 0x20000000}
NEW_USER, NEW_MOUNTS = 0x10000000, 0x20000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
KEPT_FLAGS = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
"""statvfs flag -> mount flag: a bind mount inside a user namespace must keep those of its source."""
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
SECCOMP_MODE_FILTER = 2
HIGH_ID, NOBODY = 1_900_000_000, 65534
SYSTEM = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
STORES = ("/nix/store", "/gnu/store")
DEVICES = ("null", "full", "random", "urandom")  # not zero: shared maps of it are memory that nobody counts
TICK = 0.05


class Missing(Exception):
    """A protection that this system does not give."""


class Filter(ctypes.Structure):
    """The kernel's sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))


class Walls:
    """The protections in the order of their raising; a failed one is remembered by name."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.missing: dict[str, str] = {}
        self.libc = ctypes.CDLL(None, use_errno=True) if LINUX else None
        self.root = os.geteuid() == 0
        self.me = self.knobs = -1  # folders of /proc, kept open because it will not be there later
        self.processes: int | None = None  # a /proc of the new pid namespace, which only `inside` can see

    def call(self, name: str, *args: Any) -> None:
        """A libc function that returns 0, or OSError."""
        if self.libc is None:
            raise Missing("needs Linux")
        if getattr(self.libc, name)(*args) == -1:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    def raise_(self, name: str, action: Callable[[], None], needs: str = "") -> None:
        """One protection: works, or is remembered as missing."""
        if needs in self.missing:
            self.missing[name] = f"needs the {needs}"
            return
        try:
            action()
        except Missing as e:
            self.missing[name] = str(e)
        except OSError as e:
            self.missing[name] = e.strerror or str(e)

    # ---- outside ---------------------------------------------------------------------------------------------------

    def find_me(self) -> None:
        """Opens what /proc says of this very process."""
        if LINUX:
            self.me = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
            self.knobs = os.open("/proc/sys/user", os.O_RDONLY | os.O_DIRECTORY)

    def outside(self) -> None:
        """What is done before the fork: the namespaces that children are born into."""
        self.find_me()
        if not self.root:
            self.raise_("user namespace", lambda: self.new_user(os.geteuid(), os.getegid()))
        for name, flag in NEW.items():
            self.raise_(name, lambda flag=flag: self.call("unshare", flag))  # type: ignore[misc]

    def new_user(self, uid: int, gid: int) -> None:
        """A user namespace whose only user is this one, under another number (never 0); no further ones inside it."""
        self.call("unshare", NEW_USER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
            _write(name, text, self.me)
        with contextlib.suppress(OSError):  # some systems let nobody write it; then a nested one gains nothing either
            _write("max_user_namespaces", "0", self.knobs)

    # ---- inside, before the program --------------------------------------------------------------------------------

    def inside(self) -> None:
        """What process 1 does to itself."""
        self.find_me()
        owner = self.nobody() if self.root else 1000
        self.raise_("mount namespace", self.new_mounts)
        self.raise_("total memory limit", self.own_proc, needs="mount namespace")
        self.raise_("private file system", lambda: self.new_root(owner), needs="mount namespace")
        if self.root:
            self.raise_("unprivileged user", lambda: self.become(owner))
            self.raise_("user namespace", lambda: self.new_user(os.geteuid(), os.getegid()))
        self.raise_("no new privileges", self.give_up_rights)
        self.raise_("system call filter", self.filter_calls, needs="no new privileges")
        os.chdir("/tmp" if "private file system" not in self.missing else self.config["work"])

    def new_mounts(self) -> None:
        """Mounts of its own, which no longer follow the system's."""
        self.call("unshare", NEW_MOUNTS)
        self.call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)

    def own_proc(self) -> None:
        """A view of the sandbox's processes, for adding up their memory; the program gets no /proc at all."""
        if "pid namespace" in self.missing:
            raise Missing("needs the pid namespace")
        where = self.config["work"]
        self.call("mount", b"proc", os.fsencode(where), b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
        self.processes = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
        # it stays mounted under the new root, and is gone with the old one: a mount less to undo, each may take long

    def new_root(self, owner: int) -> None:
        """A new root of the interpreter, its libraries and an empty /tmp; everything but /tmp is read-only."""
        root, limits = self.config["work"], self.config["limits"]
        self.call("mount", b"tmpfs", os.fsencode(root), b"tmpfs", MS_NOSUID | MS_NODEV, b"size=1m,mode=755")
        os.mkdir(f"{root}/tmp")
        size = f"size={limits['disk_bytes']},nr_inodes={limits['files']},mode=700,uid={owner},gid={owner}"
        self.call("mount", b"tmpfs", os.fsencode(f"{root}/tmp"), b"tmpfs", MS_NOSUID | MS_NODEV, size.encode())
        done: list[str] = []
        for path in sorted({*SYSTEM, *STORES, *self.config["paths"]}, key=lambda p: p.count("/")):
            if os.path.lexists(path) and not any(path == d or path.startswith(d + "/") for d in done):
                self.show(path, root)
                done.append(path)
        for name in DEVICES:
            self.show(f"/dev/{name}", root)
        os.symlink("/tmp", f"{root}/dev/shm")
        self.close_mounts(root)
        self.call(
            "mount", None, os.fsencode(root), None, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, b"size=1m,mode=755"
        )
        os.chdir(root)
        self.call("pivot_root", b".", b".")
        self.call("umount2", b".", 2)

    def show(self, path: str, root: str) -> None:
        """One path of the system at the same place in the new root."""
        target = root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path) and os.path.isdir(path):
            os.symlink(os.readlink(path), target)
            return
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
        self.call("mount", os.fsencode(path), os.fsencode(target), None, MS_BIND | MS_REC, None)

    def close_mounts(self, root: str) -> None:
        """Every mount below the new root, also those that came along inside another: read-only, nothing set-uid."""
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            points = [_unescaped(line.split()[4]) for line in lines]
        for point in points:
            if point.startswith(root + "/") and point != f"{root}/tmp":
                kept = sum(flag for have, flag in KEPT_FLAGS.items() if os.statvfs(point).f_flag & have)
                device = 0 if point.startswith(f"{root}/dev/") else MS_NODEV
                flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | device | kept
                self.call("mount", None, os.fsencode(point), None, flags, None)

    def nobody(self) -> int:
        """A user number that owns nothing and runs nothing else, if this system's numbers reach that far."""
        if not LINUX:
            return NOBODY
        wanted = HIGH_ID + self.config["number"]
        with open("/proc/self/uid_map", encoding="ascii") as lines:
            ranges = [tuple(map(int, line.split())) for line in lines]
        return wanted if any(first <= wanted < first + count for first, _, count in ranges) else NOBODY

    def become(self, uid: int) -> None:
        """Root steps down for good."""
        if "private file system" in self.missing:
            self.check_reach(uid)
            os.chown(self.config["work"], uid, uid)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        if LINUX:
            self.call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # or the maps of the user namespace are root's files

    def check_reach(self, uid: int) -> None:
        """Whether that user can run the interpreter at all (not when it lies in root's home)."""
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os._exit(0 if all(os.access(p, os.R_OK) for p in self.config["paths"]) else 1)
        if os.waitpid(child, 0)[1]:
            raise Missing("root's interpreter cannot be read by another user")

    def give_up_rights(self) -> None:
        """No capabilities and none to be gained; the program cannot look into this process; it ends with its parent."""
        self.call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        self.call("capset", header, none)
        self.call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
        self.call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def filter_calls(self) -> None:
        """From here on the kernel refuses some system calls to this process and to all that come from it."""
        if self.config["filter"] is None:
            raise Missing(f"its system calls are not known here: {os.uname().machine}")
        lines = bytes.fromhex(self.config["filter"])
        program = Filter(len(lines) // 8, lines)
        self.call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


# ---- the program -----------------------------------------------------------------------------------------------------


def set_limits(limits: Mapping[str, int]) -> None:
    """Resource limits of one process; those that this system does not know are left out (Linux knows all)."""
    wanted = {
        "CORE": 0,
        "CPU": limits["cpu_s"],
        "AS": limits["memory_bytes"],
        "FSIZE": limits["file_bytes"],
        "NOFILE": limits["open_files"],
        "NPROC": limits["processes"],
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
    }
    for name, value in wanted.items():
        which = getattr(resource, f"RLIMIT_{name}", None)
        if which is not None:
            hard = resource.getrlimit(which)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            # at the soft CPU limit the kernel says so by SIGXCPU, at the hard one it kills without a word
            resource.setrlimit(which, (value, hard if name == "CPU" and value == hard else value + (name == "CPU")))


def start(config: Mapping[str, Any]) -> int:
    """Forks and executes the interpreter; its number."""
    child = os.fork()
    if child:
        return child
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        set_limits(config["limits"])
        home = dict.fromkeys(("HOME", "TMPDIR"), os.getcwd())
        os.execve(config["argv"][0], config["argv"], {**config["environment"], **home})
    finally:
        os._exit(126)


def inside(walls: Walls, config: Mapping[str, Any], control: int) -> NoReturn:
    """Process 1: raises the inner walls, starts the program, waits, reports. All in the namespace end with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # process 1 is safe from signals that it does not handle
    walls.inside()
    _say(control, {"missing": walls.missing})
    if walls.missing and not config["weak"]:
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    child = start(config)
    _say(control, wait(child, walls, config["limits"]["memory_bytes"]))
    os._exit(0)


def wait(child: int, walls: Walls, memory: int) -> dict[str, Any]:
    """How the program ended. Collects orphans meanwhile, and adds up what all of them hold."""
    due = 0.0
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG if walls.processes is not None else 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return {"exit": code} if code >= 0 else {"signal": -code}
        if walls.processes is not None and time.monotonic() >= due:  # also while orphans keep coming
            if resident(walls.processes) > memory:
                return {"ended": "memory"}
            due = time.monotonic() + TICK
        if pid == 0:
            signal.sigtimedwait({signal.SIGCHLD}, TICK)


def resident(processes: int) -> int:
    """Bytes of memory in use by all processes of this namespace, shared pages counted each time."""
    total = 0
    for name in os.listdir(processes):
        if name.isdigit() and name != "1":
            try:
                handle = os.open(f"{name}/statm", os.O_RDONLY, dir_fd=processes)
            except OSError:  # it has just ended
                continue
            try:
                fields = os.read(handle, 200).split()
                total += int(fields[1]) if len(fields) > 1 else 0
            except OSError:
                continue
            finally:
                os.close(handle)
    return total * os.sysconf("SC_PAGE_SIZE")


# ---- outside, meanwhile ----------------------------------------------------------------------------------------------


def main() -> int:
    """Forks `inside`, waits for its end or for the runner's word (the life pipe closes), then clears up."""
    config = json.loads(sys.argv[1])
    control, life = config["control"], config["life"]
    for handle in (control, life):
        os.set_inheritable(handle, False)
    walls = Walls(config)
    walls.outside()
    if LINUX:
        walls.call("prctl", PR_SET_SUBREAPER, 1, 0, 0, 0)
    alive, held = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(alive)
        os.close(life)
        inside(walls, config, control)
    os.close(held)
    ended = select.select([alive, life], [], [])[0]
    if alive not in ended:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if LINUX and "pid namespace" in walls.missing:
        sweep()
    with contextlib.suppress(OSError):  # the runner does it, if it lives
        os.rmdir(config["work"])
    return 0


def sweep() -> None:
    """Ends the orphans, which come to this process where there is no pid namespace to end them."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.001)
        except ChildProcessError:
            return


def _children() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:  # it has just ended
                continue
            if parent == os.getpid():
                found.append(int(name))
    return found


def _write(name: str, text: str, folder: int) -> None:
    handle = os.open(name, os.O_WRONLY, dir_fd=folder)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _say(control: int, line: Mapping[str, Any]) -> None:
    os.write(control, json.dumps(line).encode() + b"\n")


def _unescaped(point: str) -> str:
    """Paths in mountinfo write spaces and the like as octal numbers."""
    for number in (0o40, 0o11, 0o12, 0o134):
        point = point.replace(f"\\{number:03o}", chr(number))
    return point


if __name__ == "__main__":
    sys.exit(main())
