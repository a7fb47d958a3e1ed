# ruff: noqa: E501  programs as one string each
"""Hostile programs in the sandbox: none survives, writes outside, floods the runner or counts as passed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from unmask.core.errors import ConfigError
from unmask.evals.sandbox import AVAILABLE, PROTECTIONS, Limits, Outcome, consent, protections, run, run_code, run_many
from unmask.evals.sandbox.filter import REFUSED, TABLES, system_call_filter

LINUX = sys.platform == "linux"
MB = 1 << 20


@pytest.fixture(scope="module")
def walls() -> None:
    """Skips where this kernel does not give every protection, and says which is missing."""
    missing = {name: why for name, why in protections().items() if why != AVAILABLE}
    if missing:
        pytest.skip(f"the sandbox is refused here: {missing}")


walled = pytest.mark.usefixtures("walls")


def processes_with(mark: str) -> list[str]:
    """Processes of this machine that mention a text in their command line or have it as their name."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if mark.encode() in (folder / "cmdline").read_bytes() + (folder / "comm").read_bytes():
                    found.append(folder.name)
            except OSError:
                continue
    return found


def ran(program: str, limits: Limits | None = None) -> Outcome:
    """A program that ends by itself; there is time enough for a machine that is busy with other things."""
    return run_code(program, timeout=20.0, limits=limits)


def cut(program: str) -> Outcome:
    """A program that has to be stopped after 1 s, within 3 s in all; a busy machine may add what an empty program takes."""
    for _ in range(3):
        begun = time.monotonic()
        ran("pass")
        empty = time.monotonic() - begun
        outcome = run_code(program, timeout=1.0)
        if time.monotonic() - begun < 3 + 2 * empty:
            return outcome
    raise AssertionError(f"not stopped in time: {outcome}")


# ---- what counts as passed -------------------------------------------------------------------------------------------


@walled
def test_a_good_program_passes_and_costs_little() -> None:
    program = "def f(x):\n    return x + 1\n\ndef check(g):\n    assert g(1) == 2\n\ncheck(f)\nprint('héllo')"
    outcomes = [ran(program) for _ in range(5)]
    assert all(o.passed and o.stdout_tail == "héllo\n" and not o.missing for o in outcomes), outcomes
    assert min(o.seconds for o in outcomes) < 1


@walled
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("print('passed')\nassert False, 'not equal'", "AssertionError: not equal"),
        ("raise ValueError", "ValueError"),
        ("import sys; sys.exit(0)\nassert False", "SystemExit: 0"),
        ("import os; os._exit(0)\nassert False", "exit code 0"),
        ("def f(:", "SyntaxError"),
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
        ("x = input()", "EOFError"),
        ("import os\nos.closerange(0, 100)\nassert False", "exit code 1"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "(no text)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "by signal 11"),
        ("x = '\\x00'\n\x00", "source code"),
        ("import os\nfor fd in range(64):\n    try: os.write(fd, b'0' * 32)\n    except OSError: pass\nassert False", "exit code"),
        ("import os\nos.write = lambda *a: 0\nassert False", "exit code 1"),
        ("import os\nos._exit = lambda code: None\nassert False", "AssertionError"),
        ("import os\nos.write = os._exit = lambda *a: 0\nassert False", "exit code 0"),
        ("import os, builtins\nbuiltins.exec = builtins.compile = None\nos._exit(0)", "exit code 0"),
    ],
)  # fmt: skip
def test_what_does_not_run_to_its_end_has_not_passed(program: str, said: str) -> None:
    outcome = ran(program)
    assert outcome.status in ("failed", "killed")
    assert said in outcome.detail, outcome


@walled
def test_the_secret_is_not_among_the_names_that_a_program_sees() -> None:
    program = (
        "import sys, re, __main__\nframe, seen = sys._getframe(), []\n"
        "while frame:\n    seen += [repr(frame.f_locals), repr(frame.f_code.co_consts)]; frame = frame.f_back\n"
        "seen += [repr(vars(__main__)), repr(sys.argv)]\n"
        "assert not [s for s in seen if re.search('[0-9a-f]{32}', s)]"
    )
    assert ran(program).passed


@walled
def test_odd_output_is_harmless() -> None:
    outcome = ran("import os\nos.write(1, b'\\xff\\xfe\\x00 a')\nos.write(2, b'b')")
    assert outcome.passed
    assert outcome.stdout_tail == "\ufffd\ufffd\x00 ab"
    assert ran("raise ValueError('\\ud800 \\x1b')").status == "failed"


# ---- time, memory, output, processes ---------------------------------------------------------------------------------


@walled
@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True: pass",
        "import os\nos.kill(os.getppid(), 9)\ntry: os.kill(-1, 9)\nexcept OSError: pass\n\nfor s in (1, 2, 9, 15, 19): os.kill(1, s)\nwhile True: pass",
    ],
)  # fmt: skip
def test_endless_programs_end_in_time(program: str) -> None:
    outcome = cut(program)
    assert outcome.status in ("timeout", "killed"), outcome


@walled
def test_cpu_time_is_limited_too() -> None:
    outcome = run_code("while True: pass", timeout=60.0, limits=Limits(cpu_s=1))
    assert outcome.status == "timeout"
    assert "CPU" in outcome.detail


@walled
def test_memory_is_limited_per_process_and_together() -> None:
    assert ran("x = bytearray(10 * 10**9)").status == "memory"
    many = "import os, time\nfor _ in range(4):\n    if not os.fork(): x = bytearray(b'1') * 80_000_000; time.sleep(60)\ntime.sleep(60)"
    outcome = ran(many, limits=Limits(memory_bytes=200 * MB))
    assert outcome.status == "memory"


@walled
@pytest.mark.skipif(not LINUX, reason="this is not Linux: no seccomp filter")
def test_no_memory_that_belongs_to_no_process() -> None:
    """Shared anonymous maps that are unmapped again, System V segments and nameless files escape every other limit."""
    head = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    for call in ("shmget(0, 1 << 20, 0o1600)", "msgget(0, 0o1600)", "semget(0, 9, 0o1600)", "memfd_create(b'x', 0)"):
        outcome = ran(f"{head}assert libc.{call} == -1\nassert ctypes.get_errno() == 1, ctypes.get_errno()")
        assert outcome.passed, (call, outcome)
    assert ran("import mmap\nmmap.mmap(-1, 1 << 20)").detail.startswith("PermissionError")
    assert ran("open('/dev/zero')").detail.startswith("FileNotFoundError")  # shared maps of it are the same
    fine = "import mmap\nwith open('f', 'w+b') as f:\n    f.truncate(9)\n    mmap.mmap(f.fileno(), 9)[0] = 1\n"
    assert ran(fine + "mmap.mmap(-1, 9, flags=mmap.MAP_PRIVATE)[0] = 1").passed


def test_the_filter_of_an_unknown_machine_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {len(system_call_filter(m) or b"") % 8 for m in TABLES} == {0}
    assert {len(refused) for _, refused, _ in TABLES.values()} == {len(REFUSED)}
    assert system_call_filter("riscv64") is None
    if LINUX:
        monkeypatch.setattr(run.platform, "machine", lambda: "riscv64")
        assert "not known here" in protections()["system call filter"]
        with pytest.raises(ConfigError, match="no system call filter"):
            run_code("pass", timeout=20.0)


@walled
def test_a_flood_of_output_is_cut_while_it_comes() -> None:
    outcome = ran("while True: print('x' * 100_000)")
    assert outcome.status == "output"
    assert len(outcome.stdout_tail) <= 4096
    flood = "import os\nfor fd in range(3, 64):\n    try:\n        while True: os.write(fd, b'y' * 65536)\n    except OSError: pass"
    assert ran(flood).status == "failed"


@walled
@pytest.mark.skipif(not LINUX, reason="this is not Linux: no /proc")
def test_fork_bombs_and_daemons_leave_nothing() -> None:
    mark = f"m{uuid.uuid4().hex[:10]}"
    name = f"import ctypes\nctypes.CDLL(None).prctl(15, b'{mark}')\n"
    bomb = cut(name + "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass")
    assert bomb.status == "timeout"
    assert processes_with(mark) == []
    daemon = name + (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.closerange(0, 64)\n"
        "        time.sleep(60)\n    os._exit(0)\ntime.sleep(0.2)"
    )
    outcome = ran(daemon)
    assert outcome.passed
    assert outcome.seconds < 20
    assert processes_with(mark) == []
    assert ran("pass").passed  # and the run goes on


@walled
def test_processes_and_files_are_limited() -> None:
    count = "import os, time\nn = 0\ntry:\n    while True:\n        if os.fork() == 0: time.sleep(60)\n        n += 1\nexcept OSError: pass\n"
    assert ran(count + "assert n < 16, n").passed
    assert ran("fs = [open(f'{i}', 'w') for i in range(100)]").detail.startswith("OSError: [Errno 24]")
    assert "OSError" in ran("open('big', 'wb').write(bytes(20 * 1024 * 1024))").detail
    assert (
        "OSError"
        in ran("for i in range(20):\n    with open(f'{i}', 'wb') as f: f.write(bytes(8 * 1024 * 1024))").detail
    )
    assert "OSError" in ran("import os\nfor i in range(3000): os.mkdir(str(i))").detail


# ---- nothing outside -------------------------------------------------------------------------------------------------


@walled
def test_nothing_outside_is_seen_or_written(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    tmp_path.chmod(0o777)
    mine.chmod(0o666)
    places = [
        str(mine),
        str(tmp_path),
        str(Path.home() / "x"),
        str(Path(__file__)),
        "/etc/passwd",
        "/proc/self/mem",
        "/sys",
    ]
    program = f"""
import os, shutil
for place in {places!r}:
    for act in (open, os.listdir, os.unlink, os.rmdir, shutil.rmtree, lambda p: open(p, "w"), lambda p: os.mkdir(p + "/x")):
        try:
            act(place)
        except OSError:
            continue
        raise SystemExit(f"{{act}} worked on {{place}}")
for folder in ("/", "/usr/lib", "/dev", os.path.dirname(os.__file__)):
    try:
        open(folder + "/evil", "w")
    except OSError:
        continue
    raise SystemExit("wrote to " + folder)
open("here.txt", "w").write("fine")
open(os.path.expanduser("~/there.txt"), "w").write("fine")
shutil.rmtree("/", ignore_errors=True)
"""
    outcome = ran(program)
    assert outcome.passed, outcome
    assert mine.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt"]
    assert Path(os.__file__).is_file()


@walled
def test_rights_environment_and_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hidden-word")
    program = """
import os, socket, ctypes
assert "hidden-word" not in repr(os.environ), os.environ
assert os.getuid() != 0 and os.getgid() != 0 and os.getpid() < 10
for call in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.chroot("."), lambda: os.kill(1000000, 0)):
    try:
        call()
    except OSError:
        continue
    raise SystemExit("allowed")
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000) == -1, "a nested user namespace"
assert libc.unshare(0x40000000) == -1, "a nested network namespace"
assert libc.mount(b"x", b"/tmp", b"tmpfs", 0, None) == -1, "mount"
assert libc.umount2(b"/tmp", 2) == -1, "umount"
assert libc.ptrace(16, 1, 0, 0) == -1, "looked into process 1"
open_files = []
for fd in range(64):
    try:
        os.fstat(fd)
        open_files.append(fd)
    except OSError:
        pass
assert open_files == [0, 1, 2, 3], open_files
for address in (("127.0.0.1", 22), ("1.1.1.1", 53)):
    s = socket.socket()
    s.settimeout(0.2)
    assert s.connect_ex(address) != 0
for family in range(64):  # vsock, for one, would reach the host of a virtual machine
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        continue
    assert family in (1, 2, 10), family
"""
    outcome = ran(program)
    assert outcome.passed, outcome


@walled
@pytest.mark.skipif(not LINUX, reason="this is not Linux: no /proc to measure with")
def test_the_runner_stays_small() -> None:
    """In a process of its own, whose peak is then that of the runner alone."""
    code = """
import re
from pathlib import Path
from unmask.evals.sandbox import run_many
bad = ["x = bytearray(10**10)", "while True: print('x' * 10**6)", "raise ValueError('x' * 10**8)", "while True: pass", "pass"]
print([o.status for o in run_many(bad, workers=2, timeout=4.0)])
print(int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)  # maxrss outlives an exec
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    statuses, peak = done.stdout.splitlines()
    assert statuses == "['memory', 'output', 'failed', 'timeout', 'passed']"
    assert int(peak) < 200


@walled
@pytest.mark.skipif(not LINUX, reason="this is not Linux: no /proc")
def test_nothing_survives_a_killed_runner(tmp_path: Path) -> None:
    mark = f"m{uuid.uuid4().hex[:10]}"
    program = f"import ctypes, time\nctypes.CDLL(None).prctl(15, b'{mark}')\ntime.sleep(60)"
    code = f"from unmask.evals.sandbox import run_code\nrun_code({program!r}, timeout=60)"
    runner = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        until = time.monotonic() + 10
        while not processes_with(mark[:15]) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)
    finally:
        runner.kill()
        runner.wait()
    until = time.monotonic() + 5
    while (processes_with(mark) or any(tmp_path.iterdir())) and time.monotonic() < until:
        time.sleep(0.05)
    assert processes_with(mark) == []
    assert list(tmp_path.iterdir()) == []


@walled
def test_many_keep_their_order() -> None:
    programs = [f"assert {i} % 3" if i % 2 else f"import time; time.sleep(0.1); assert {i} % 3" for i in range(9)]
    outcomes = list(run_many(iter(programs), workers=3, timeout=20.0))
    assert [o.passed for o in outcomes] == [bool(i % 3) for i in range(9)], outcomes


# ---- refusals, weak sandboxes, consent -------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="this is not POSIX: the launcher cannot run")
def test_a_missing_protection_is_named_and_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A launcher whose system gives no namespaces and no mounts."""
    text = run.LAUNCHER.read_text("utf-8").replace("def main() -> int:", (
        "_call = Walls.call\n\n\ndef _refuse(self, name, *args):\n"
            "    if name in ('unshare', 'mount'):\n        raise OSError(1, f'{name}: not here')\n    _call(self, name, *args)\n"
        "Walls.call = _refuse\n\n\ndef main() -> int:"
    ))  # fmt: skip
    monkeypatch.setattr(run, "LAUNCHER", tmp_path / "launcher.py")
    (tmp_path / "launcher.py").write_text(text)
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match=r"no network namespace \(.*\).*") as refused:
        run_code("pass")
    assert "--weak-sandbox" in refused.value.remedy
    with pytest.raises(ConfigError, match="private file system"):
        run.require(False)
    assert {"pid namespace", "network namespace", "private file system"} <= set(run.require(True))
    assert run_code("pass", timeout=20.0, weak=True).passed
    assert run_code("import os; os._exit(0)", timeout=20.0, weak=True).status == "failed"
    mark = f"m{uuid.uuid4().hex[:10]}"
    daemon = f"import os, ctypes, time\nctypes.CDLL(None).prctl(15, b'{mark}')\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\n"
    outcome = run_code(daemon + "time.sleep(60)", timeout=1.0, weak=True)
    assert outcome.status == "timeout"
    assert set(outcome.missing) <= set(PROTECTIONS)
    assert not LINUX or processes_with(mark) == []
    assert run_code("x = bytearray(10 * 10**9)", timeout=20.0, weak=True).status == "memory"


def test_a_system_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.setattr(run, "_has_launcher", lambda: False)
    with pytest.raises(ConfigError, match="no network namespace"):
        run_code("pass")
    outcome = run_code("print(1)", timeout=20.0, weak=True)
    assert outcome.passed
    assert outcome.stdout_tail.strip() == "1"
    assert set(outcome.missing) == set(PROTECTIONS)
    assert run_code("assert False", timeout=20.0, weak=True).status == "failed"
    assert run_code("while True: pass", weak=True, timeout=0.7).status == "timeout"
    assert run_code("while True: print('x' * 100_000)", weak=True, timeout=20.0).status == "output"


def test_protections_are_named_with_a_meaning() -> None:
    found = protections()
    assert list(found) == list(PROTECTIONS)
    assert all(found.values())
    assert sys.platform == "linux" or found["network namespace"] != AVAILABLE


def test_consent_is_asked_for() -> None:
    consent(True, {})
    consent(False, {"HF_ALLOW_CODE_EVAL": "1"})
    for environment in ({}, {"HF_ALLOW_CODE_EVAL": "0"}, {"HF_ALLOW_CODE_EVAL": "true"}):
        with pytest.raises(ConfigError, match="consent"):
            consent(False, environment)


def test_limits_and_timeout_are_checked() -> None:
    with pytest.raises(ConfigError, match="memory_bytes"):
        Limits(memory_bytes=0)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="timeout"):
            run_code("pass", timeout=wrong)
