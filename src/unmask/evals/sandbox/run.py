"""Runs untrusted Python programs behind walls and says how each ended.

Enters: the text of a program (its checks included). Leaves: an `Outcome`. A program has passed only if it ran to its
end: then a secret of this run comes back, which is made here and has no name in the program's interpreter. What a
program can do to this process is bounded: its output is read as it comes and forgotten but for its tail.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from unmask.core.errors import ConfigError, RunError
from unmask.evals.sandbox.filter import system_call_filter

Status = Literal["passed", "failed", "timeout", "memory", "output", "killed"]
PROTECTIONS = {
    "user namespace": "rights inside mean nothing outside; the number of processes is counted apart",
    "mount namespace": "mounts of its own",
    "ipc namespace": "no shared memory or message queues of others",
    "network namespace": "no network, not even this machine's own addresses",
    "pid namespace": "sees and signals only its own processes; all of them end with it",
    "total memory limit": "the memory of all its processes is added up",
    "private file system": "only the interpreter and libraries, read-only, and an empty /tmp that vanishes",
    "unprivileged user": "never root",
    "no new privileges": "no capabilities, no set-uid programs",
    "system call filter": "no memory that belongs to no process, no sockets that namespaces do not divide",
    "resource limits": "CPU time, memory, file size, open files, processes",
}
AVAILABLE = "available"
LAUNCHER, PROGRAM = (Path(__file__).with_name(name) for name in ("launcher.py", "program.py"))
FLAGS = ("-s", "-S", "-P", "-B", "-u", "-X", "utf8")
START, GRACE, SWEEP, DRAIN = 60.0, 1.0, 10.0, 2.0
"""Seconds in which the sandbox must be up; in which the launcher may clear up before it is killed (all inside dies with
it); the same where it has to search for what is left (no pid namespace); in which the last output must have arrived.
"""
TAIL, VERDICT = 4096, 8192
_numbers = itertools.count()


@dataclass(frozen=True)
class Limits:
    """What one program may use. Memory counts per process (address space) and for all of them together (resident)."""

    memory_bytes: int = 1 << 30
    disk_bytes: int = 64 << 20  # all files together, which live in memory
    file_bytes: int = 8 << 20
    files: int = 1000
    output_bytes: int = 4 << 20
    processes: int = 16  # threads count
    open_files: int = 32
    cpu_s: int = 60  # of each process; the wall clock of `run_code` is usually shorter

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ConfigError(f"sandbox limit {name}", expected="a positive number", got=str(value))


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: "passed": it ran to its end; "failed": it raised, left early or does not parse; "timeout": of the wall
            clock or CPU time; "memory", "output": more than the limit; "killed": by a signal.
        detail: one line for a person; for failures the exception.
        seconds: wall clock, from the program's start.
        stdout_tail: the last 4 KiB of what it wrote to stdout and stderr.
        missing: protections that were not there, with the reason (only ever with weak=True).
    """

    status: Status
    detail: str = ""
    seconds: float = 0.0
    stdout_tail: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether it counts."""
        return self.status == "passed"


def run_code(program: str, *, timeout: float = 3.0, limits: Limits | None = None, weak: bool = False) -> Outcome:
    """Runs an untrusted Python program; its time is up after `timeout`, its processes are then all gone.

    Args:
        program: Python source. It runs in an empty namespace; packages of this environment can be imported.
        timeout: seconds of wall clock from its start; setting up the sandbox (some 50 ms) does not count.
        limits: the default fits HumanEval and MBPP.
        weak: run even where a protection is missing (`Outcome.missing` names it).

    Raises:
        ConfigError: a protection is missing and `weak` is false; the program has then not been started.
        RunError: the sandbox itself did not work.
    """
    limits = limits or Limits()
    if not timeout > 0:
        raise ConfigError("sandbox timeout", expected="a positive number of seconds", got=str(timeout))
    with tempfile.TemporaryDirectory(prefix="unmask-", ignore_cleanup_errors=True) as work:
        run = _Run(program, timeout, limits, Path(work).resolve())
        return run.launch(weak) if _has_launcher() else run.plain(weak)


def run_many(
    programs: Iterable[str],
    *,
    workers: int | None = None,
    timeout: float = 3.0,
    limits: Limits | None = None,
    weak: bool = False,
) -> Iterator[Outcome]:
    """Outcomes in the programs' order, each as soon as it and those before it are known; `workers` at a time (default:
    one per core).
    """
    one = partial(run_code, timeout=timeout, limits=limits, weak=weak)
    pending = iter(programs)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        waiting: list[Future[Outcome]] = []
        try:
            for program in pending:
                waiting.append(pool.submit(one, program))
                if len(waiting) > 2 * pool._max_workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def protections() -> dict[str, str]:
    """Every protection and "available" or why not, found by running an empty program behind all that can be raised."""
    missing = run_code("", timeout=10.0, weak=True).missing
    return {name: missing.get(name, AVAILABLE) for name in PROTECTIONS}


def require(weak: bool) -> dict[str, str]:
    """The missing protections; to be asked once, before any work.

    Raises:
        ConfigError: there are some, and `weak` is false.
    """
    missing = {name: reason for name, reason in protections().items() if reason != AVAILABLE}
    if missing and not weak:
        raise _refusal(missing)
    return missing


def consent(flag: bool, environment: Mapping[str, str]) -> None:
    """Refuses unless the person has agreed to run code that a model wrote.

    Args:
        flag: --confirm-run-unsafe-code was given.
        environment: where HF_ALLOW_CODE_EVAL=1 counts as well, as in other harnesses.

    Raises:
        ConfigError: neither.
    """
    if not flag and environment.get("HF_ALLOW_CODE_EVAL") != "1":
        raise ConfigError(
            "running code that a model wrote",
            expected="your consent",
            got="none",
            remedy="Read docs/sandbox.md, then pass --confirm-run-unsafe-code or set HF_ALLOW_CODE_EVAL=1.",
        )


def _refusal(missing: Mapping[str, str]) -> ConfigError:
    return ConfigError(
        "running code that a model wrote",
        expected="every protection of the sandbox",
        got="; ".join(f"no {name} ({reason})" for name, reason in missing.items()),
        remedy="Run on Linux with namespaces (docs/sandbox.md), or accept the risk with --weak-sandbox.",
    )


class _Run:
    """One program on its way through the sandbox."""

    def __init__(self, program: str, timeout: float, limits: Limits, work: Path) -> None:
        self.timeout, self.limits, self.work = timeout, limits, work
        self.secret = secrets.token_hex(16).encode()
        source = program.encode("utf-8", "surrogatepass")
        self.stdin = self.secret + b"%08x" % len(source) + source
        self.settled = threading.Event()
        self.output = _Reader(limits.output_bytes, TAIL, True, self.settled)
        self.verdict = _Reader(VERDICT, VERDICT, False, threading.Event())
        self.reports = _Reports(self.settled)
        self.timed_out = False
        self.seconds = 0.0

    def launch(self, weak: bool) -> Outcome:
        """With the launcher around it."""
        control, told = os.pipe()
        life, alive = os.pipe()
        try:
            command = [_interpreter(), "-I", "-S", str(LAUNCHER), json.dumps(self.config(weak, told, life))]
            process = self.popen(command, pass_fds=(told, life), start_new_session=True)
        except BaseException:
            os.close(control)
            os.close(alive)
            raise
        finally:
            os.close(told)
            os.close(life)
        try:
            _in_thread(self.reports, os.fdopen(control, "rb"))
            self.watch(process)
        finally:
            os.close(alive)  # the launcher's sign to end everything
            searches = bool(self.reports.lines) and "pid namespace" in self.reports.lines[0]["missing"]
            self.finish(process, SWEEP if searches or self.reports.ended else GRACE)
        return self.judge(weak)

    def plain(self, weak: bool) -> Outcome:
        """Without one: no protection but the clock and the caps on output."""
        missing = dict.fromkeys(PROTECTIONS, f"not on {sys.platform}")
        if not weak:
            raise _refusal(missing)
        process = self.popen(_command())
        self.reports.add({"missing": missing})

        def wait() -> None:
            code = process.wait()
            self.reports.add({"exit": code} if code >= 0 else {"signal": -code})
            self.reports.done.set()

        threading.Thread(target=wait, daemon=True).start()
        self.watch(process)
        self.finish(process, 0.0)
        return self.judge(weak)

    def config(self, weak: bool, control: int, life: int) -> dict[str, Any]:
        return {
            "control": control,
            "life": life,
            "weak": weak,
            "work": str(self.work),
            "number": next(_numbers) % 1000 + 1000 * (os.getpid() % 10_000),
            "limits": asdict(self.limits),
            "paths": _needed_paths(),
            "filter": calls.hex() if (calls := system_call_filter(platform.machine())) else None,
            "argv": _command(),
            "environment": _environment(str(self.work)),
        }

    def popen(self, command: Sequence[str], **rest: Any) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=self.work, env=_environment(str(self.work)), **rest
        )

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """Until the program has ended, wrote too much, or its time is up, which begins with it."""
        _in_thread(self.feed, process.stdin)
        _in_thread(self.verdict, process.stdout)
        _in_thread(self.output, process.stderr)
        if not self.reports.first.wait(START):
            raise RunError(f"the sandbox was not ready after {START:g} s: is this machine overloaded?")
        left = self.reports.begun + self.timeout - time.monotonic()
        self.timed_out = not self.settled.wait(max(0.0, left))
        self.seconds = time.monotonic() - self.reports.begun

    def feed(self, stream: IO[bytes]) -> None:
        with suppress(OSError), stream:  # it may be dead already
            stream.write(self.stdin)

    def finish(self, process: subprocess.Popen[bytes], patience: float) -> None:
        """What does not end by itself is killed."""
        try:
            process.wait(max(0.0, patience))
        except subprocess.TimeoutExpired:
            if _has_launcher():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
        until = time.monotonic() + DRAIN
        for reader in (self.verdict, self.output, self.reports):
            reader.done.wait(max(0.0, until - time.monotonic()))

    def judge(self, weak: bool) -> Outcome:
        """What the reports add up to."""
        tail = bytes(self.output.kept).decode("utf-8", "replace")
        said = self.reports.lines
        if not said:
            raise RunError(f"the sandbox did not start: {' '.join(tail.split()[-30:]) or 'no reason given'}")
        missing = said[0]["missing"]
        if missing and not weak:
            raise _refusal(missing)
        status, detail = self.verdict_of(said[1] if len(said) > 1 else {})
        return Outcome(status, detail, self.seconds, tail, missing)

    def verdict_of(self, end: Mapping[str, Any]) -> tuple[Status, str]:
        if self.output.over:
            return "output", f"wrote more than {self.limits.output_bytes} bytes"
        if end.get("ended") == "memory":
            return "memory", f"its processes used more than {self.limits.memory_bytes} bytes"
        if self.timed_out or end.get("signal") == getattr(signal, "SIGXCPU", -1):
            return "timeout", f"after {self.timeout:g} s" if self.timed_out else f"{self.limits.cpu_s} s of CPU time"
        if "signal" in end or not end:
            return "killed", f"by signal {end['signal']}" if end else "from outside, its sandbox with it"
        said = bytes(self.verdict.kept)
        if secrets.compare_digest(said, self.secret) and end["exit"] == 0:
            return "passed", ""
        kind, _, text = said.decode("utf-8", "replace").partition(" ")
        if kind in ("failed", "memory") and text and self.secret not in said:
            return ("memory" if kind == "memory" else "failed"), text.splitlines()[0]
        return "failed", f"left with exit code {end['exit']} before its end"


def _in_thread(target: Callable[..., None], stream: IO[bytes] | None) -> None:
    threading.Thread(target=target, args=(stream,), daemon=True).start()


class _Reports:
    """What the launcher says: first which protections are missing, when the program begins; then how it ended."""

    def __init__(self, settled: threading.Event) -> None:
        self.lines: list[dict[str, Any]] = []
        self.settled = settled
        self.begun = time.monotonic()
        self.first, self.done = threading.Event(), threading.Event()

    def __call__(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self.add(json.loads(line))
        for event in (self.first, self.settled, self.done):
            event.set()

    @property
    def ended(self) -> bool:
        """Whether the program has ended by itself."""
        return len(self.lines) > 1

    def add(self, line: dict[str, Any]) -> None:
        """One more; the first starts the clock, the second stops it."""
        if self.lines:
            self.settled.set()
        else:
            self.begun = time.monotonic()
        self.lines.append(line)
        self.first.set()


class _Reader:
    """Reads a stream to its end or its cap, and keeps little of it."""

    def __init__(self, cap: int, keep: int, from_end: bool, too_much: threading.Event) -> None:
        self.cap, self.keep, self.from_end, self.too_much = cap, keep, from_end, too_much
        self.kept = bytearray()
        self.over = False
        self.done = threading.Event()

    def __call__(self, stream: IO[bytes]) -> None:
        count = 0
        with suppress(OSError, ValueError), stream:
            while count <= self.cap and (part := os.read(stream.fileno(), 1 << 16)):
                count += len(part)
                self.kept += part
                if len(self.kept) > self.keep:
                    self.kept = self.kept[-self.keep :] if self.from_end else self.kept[: self.keep]
            if count > self.cap:
                self.over = True
                self.too_much.set()
        self.done.set()


def _has_launcher() -> bool:
    """Whether this system can start the launcher (not Windows)."""
    return os.name == "posix"


def _interpreter() -> str:
    """The real interpreter behind this one: a virtual environment's is a link, and its settings are not wanted."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _command() -> list[str]:
    return [_interpreter(), *FLAGS, "-c", PROGRAM.read_text("utf-8"), *_packages()]


def _packages() -> list[str]:
    return list(dict.fromkeys(p for p in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")) if p))


def _needed_paths() -> list[str]:
    """What the interpreter reads, beside the system's libraries: itself, its library folder, installed packages."""
    prefix = {sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.path.dirname(_interpreter()))} - {"/"}
    libraries = {os.path.join(p, lib) for p in prefix for lib in ("lib", "lib64")}
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    wanted = {_interpreter(), *libraries, *standard, *_packages()}
    return sorted({p for w in wanted if os.path.exists(w) for p in (w, os.path.realpath(w))})


def _environment(home: str) -> dict[str, str]:
    """All that the program finds in os.environ: nothing of the runner's."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    keep = {"SYSTEMROOT": os.environ["SYSTEMROOT"]} if sys.platform == "win32" else {}
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        **threads,
        **keep,
    }
