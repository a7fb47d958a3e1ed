"""`unmask generate`, `chat` and `replay` on a tiny model: what goes where, and that runs come back."""

from __future__ import annotations

import errno
import json
import os
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_ran import Ran, Run

from unmask.core.events import fold
from unmask.sinks.files import WholeFile
from unmask.sinks.recorder import read


def test_stdout_has_the_text_and_stderr_the_rest(cli: Run, llada: Path) -> None:
    ran = cli("generate", "-m", llada, "Why is the sky blue?", "-n", 8)
    assert ran.code == 0
    assert len(ran.out.rstrip("\n")) > 0
    for word in ("settings:", "schedule", "(checkpoint)", "tokens/s", "forwards"):
        assert word in ran.err
        assert word not in ran.out
    quiet = cli("generate", "-m", llada, "Why is the sky blue?", "-n", 8, "--quiet")
    assert (quiet.out, quiet.err) == (ran.out, "")


def test_prompts_come_from_words_options_files_and_stdin(cli: Run, llada: Path, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_bytes("\ufeffWhy is the sky blue?\r\n".encode())
    base = ("generate", "-m", llada, "-n", 8, "--json")
    direct = cli(*base, "Why is the sky blue?").json
    same = [
        cli(*base, "--prompt", "Why is the sky blue?"),
        cli(*base, "--prompt-file", tmp_path / "q.txt"),
        cli(*base, "-", stdin=b"Why is the sky blue?\n"),
        cli(*base, stdin=b"Why is the sky blue?\n"),
        cli(*base, "-f", "-", stdin=b"Why is the sky blue?"),
    ]
    for ran in same:
        assert ran.code == 0
        assert ran.json["prompt"] == "Why is the sky blue?"
        assert ran.json["text"] == direct["text"]


def test_several_prompts_and_samples_are_a_list_in_order(cli: Run, llada: Path) -> None:
    rows = cli("generate", "-m", llada, "-n", 8, "--json", "--n", 2, "--temp", 1, "one", "two").json
    assert [r["prompt"] for r in rows] == ["one", "one", "two", "two"]
    assert [r["seed"] for r in rows] == [0, 1, 0, 1]
    assert rows[0]["text"] != rows[1]["text"]
    lines = cli("generate", "-m", llada, "-n", 8, "--lines", "--json", stdin=b"one\n\ntwo\n").json
    assert [r["prompt"] for r in lines] == ["one", "two"]
    text = cli("generate", "-m", llada, "-n", 8, "one", "two").out
    assert "[1/2] one\n" in text
    assert "[2/2] two\n" in text


def test_json_says_what_was_done(cli: Run, llada: Path) -> None:
    row = cli("generate", "-m", llada, "hi", "-n", 8, "--json", "--seed", 5, "--threshold", 0.0).json
    assert row["seed"] == 5
    assert row["nfe"] == 1 and sum(row["forwards"].values()) == 1 and row["row_layers"] > row["head_rows"] > 0
    assert row["tokens_per_forward"] == row["completion_tokens"]
    assert [t["step"] for t in row["tokens"]] == [1] * len(row["tokens"])
    assert row["settings"]["policy"] == "threshold(threshold=0.0, order='any') (given)"


def test_a_prompt_may_begin_with_a_dash_and_options_may_follow(cli: Run, llada: Path) -> None:
    assert cli("generate", "-m", llada, "-n", 4, "--json", "--prompt=-5 plus 3").json["prompt"] == "-5 plus 3"
    assert cli("generate", "-m", llada, "-n", 4, "--json", "--", "-5 plus 3").json["prompt"] == "-5 plus 3"
    assert [r["prompt"] for r in cli("generate", "-m", llada, "a", "-n", 4, "b", "--json").json] == ["a", "b"]


def test_constraints_infilling_and_stops_reach_the_model(cli: Run, llada: Path) -> None:
    fixed = cli("generate", "-m", llada, "hi", "-n", 8, "--constraint", "0:fox, 5:dog", "--json").json
    assert fixed["text"].startswith(" fox")
    filled = cli("generate", "-m", llada, "--infill", "The[[2]] fox[[1]].", "--json").json
    assert filled["text"].startswith("The")
    assert filled["text"].endswith(".")
    stopped = cli("generate", "-m", llada, "hi", "-n", 8, "--constraint", "0:fox", "--stop", "x", "--json").json
    assert stopped["text"] == " fo"
    assert stopped["finish_reason"] == "stop"


def test_chat_raw_and_system_change_the_prompt(cli: Run, llada: Path) -> None:
    count = {
        name: cli("generate", "-m", llada, "hi", "-n", 4, "--json", *more).json["prompt_tokens"]
        for name, more in {
            "auto": (),
            "chat": ("--chat",),
            "raw": ("--raw",),
            "system": ("--system", "Be brief."),
        }.items()
    }
    assert count["raw"] < count["auto"] == count["chat"] < count["system"]


def test_show_draws_plain_lines_on_stderr_when_piped(cli: Run, llada: Path) -> None:
    ran = cli("generate", "-m", llada, "hi", "-n", 4, "--show")
    assert "step    1  1/4" in ran.err
    assert "\x1b" not in ran.out + ran.err
    assert "step" not in ran.out


def test_record_replay_and_pictures_agree(cli: Run, llada: Path, tmp_path: Path) -> None:
    path, svg = tmp_path / "run.jsonl", tmp_path / "run.svg"
    row = cli("generate", "-m", llada, "hi", "-n", 8, "--json", "--record", path, "--svg", svg).json
    recording = read(path)
    canvas = fold(recording.events)["0"]
    assert canvas.ids[canvas.prompt_len : canvas.end] == [t["id"] for t in row["tokens"]]
    assert recording.header["seed"] == 0
    assert recording.header["settings"]["0"] == row["settings"]
    assert recording.header["config"]["model_type"] == "llada"
    ET.parse(svg)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.jsonl", "run.svg"]

    again = cli("replay", path, "--json").json["runs"][0]
    assert (again["nfe"], again["completion_tokens"]) == (row["nfe"], row["completion_tokens"])
    assert again["text"] == row["text"]
    shown = cli("replay", path)
    assert shown.out.count("step ") == row["nfe"]
    for style in ("moments", "steps"):
        assert cli("replay", path, "--svg", tmp_path / f"{style}.svg", "--style", style).out == ""
        ET.parse(tmp_path / f"{style}.svg")


def test_one_of_several_recorded_requests_can_be_replayed(cli: Run, llada: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    rows = cli("generate", "-m", llada, "one", "two", "-n", 4, "--json", "--record", path).json
    assert len(cli("replay", path, "--json").json["runs"]) == 2
    one = cli("replay", path, "--request", "1")
    assert f"in {rows[1]['nfe']} forwards" in one.out
    assert cli("replay", path, "--request", "1", "--json").json["runs"][0]["id"] == "1"
    assert "0, 1" in cli("replay", path, "--request", "7").err


def test_a_replay_needs_no_model_and_no_torch(llada: Path, cli: Run, tmp_path: Path) -> None:
    import subprocess

    cli("generate", "-m", llada, "hi", "-n", 4, "--record", tmp_path / "r.jsonl")
    code = (
        "import sys; from unmask.cli.main import main; "
        f"main(['replay', {str(tmp_path / 'r.jsonl')!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_replaying_at_a_terminal_keeps_the_pace() -> None:
    from unmask.cli.replay import LONGEST, _paced
    from unmask.core.events import Stepped, Work

    waits: list[float] = []
    events = [Stepped("0", i, Work("full", 1, 1, s, n), ()) for i, (s, n) in enumerate([(0.2, 1), (0.2, 2), (100, 1)])]
    assert list(_paced(events, 2.0, waits.append)) == events
    assert waits == [0.1, 0.05, LONGEST]


def test_dream_and_published_profiles_run(cli: Run, llada: Path, dream: Path) -> None:
    for model, line in (
        (dream, "--profile dream --alg maskgit_plus --steps 8"),
        (dream, "--profile fast-dllm --cache dual --block-length 8 --threshold 0.5"),
        (llada, "--profile llada --block-length 8 --steps 8 --cfg-scale 1"),
        (llada, "--profile fast-dllm --cache prefix --block-length 8 --factor 1.0"),
    ):
        assert cli("generate", "-m", model, "hi", "-n", 16, *line.split()).code == 0


def test_an_ascii_terminal_gets_question_marks_instead_of_an_error(llada: Path) -> None:
    import os
    import subprocess

    line = [sys.executable, "-m", "unmask", "generate", "-m", str(llada), "hi", "-n", "6", "--show"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(line, capture_output=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).isascii()


# ---- chat ------------------------------------------------------------------------------------------------------------


def chat(cli: Run, llada: Path, *lines: str, args: tuple[Any, ...] = ()) -> Ran:
    return cli("chat", "-m", llada, "-n", 4, *args, stdin="\n".join(lines).encode())


def test_chat_from_a_pipe_prints_answers_only(cli: Run, llada: Path) -> None:
    ran = chat(cli, llada, "hello", "and you?")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 2
    assert ran.err.count("forwards") == 2
    assert chat(cli, llada, "hello", args=("-q",)).err == ""


def test_history_grows_and_commands_change_it(cli: Run, llada: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"

    def messages(*lines: str) -> list[tuple[str, str]]:
        ran = chat(cli, llada, *lines, f"/save {saved}")
        assert ran.code == 0, ran.err
        return [(m["role"], m["content"]) for m in json.loads(saved.read_text())["messages"]]

    assert [c for r, c in messages("one", "two") if r == "user"] == ["one", "two"]
    assert [c for r, c in messages("one", "two", "/undo") if r == "user"] == ["one"]
    assert messages("one", "/clear") == []
    assert [c for r, c in messages("one", "/retry") if r == "user"] == ["one"]
    assert messages("one", "/system Be brief.") == []
    assert json.loads(saved.read_text())["system"] == "Be brief."


def test_settings_are_shown_changed_and_checked(cli: Run, llada: Path) -> None:
    ran = chat(cli, llada, "/settings threshold=0.5 max_tokens=6 temperature=none")
    assert "policy: threshold(threshold=0.5, order='any') (given)" in ran.out
    assert "gen_length: 6 (given)" in ran.out
    for bad in ("threshold=7", "nonsense=1", "steps", "profile=dream", "policy=foo", "steps=4 threshold=0.5"):
        assert chat(cli, llada, f"/settings {bad}").code == 2


def test_the_published_profile_keeps_its_history_rule(cli: Run, llada: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.pipeline import Model

    seen: list[list[int]] = []
    events = Model.events

    def spy(self: Model, prepared: Any, *more: Any) -> Any:
        seen.append(prepared[0].request.canvas[: prepared[0].request.prompt_len].tolist())
        return events(self, prepared, *more)

    monkeypatch.setattr(Model, "events", spy)
    ran = cli("chat", "-m", llada, "--profile", "llada", "-n", 4, "--block-length", 4, stdin=b"one\ntwo")
    assert ran.code == 0, ran.err
    first, second = seen
    assert second[: len(first)] == first
    assert second.count(first[0]) == 1  # the second turn's own BOS is dropped


def at_terminal(monkeypatch: pytest.MonkeyPatch, lines: list[str | type[BaseException]]) -> None:
    """Lines typed at a terminal; an exception class is a key such as Ctrl-C."""
    todo: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

    def read_line(prompt: str = "") -> str:
        line = next(todo)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read_line)


def test_at_a_terminal_errors_are_said_and_the_talk_goes_on(
    cli: Run, llada: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_terminal(
        monkeypatch, ["/nonsense", "/undo", "x " * 200, KeyboardInterrupt, "hello\\", "there", "/help", "/exit"]
    )
    monkeypatch.setattr("cli_ran.Piped.isatty", lambda self: True)
    ran = cli("chat", "-m", llada, "-n", 4)
    assert ran.code == 0
    assert ran.err.count("error:") == 3
    assert "/settings" in ran.out
    assert "Ctrl-D to leave" in ran.out


def test_an_interrupt_cancels_one_answer_and_leaves_no_trace(
    cli: Run, llada: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from unmask.cli.chat import Talk

    whole = Talk._print
    calls: list[int] = []

    def interrupted(self: Talk, events: Any, live: bool) -> str:
        calls.append(1)
        if len(calls) == 2:
            for _, _ in zip(range(3), events):
                pass
            raise KeyboardInterrupt
        return whole(self, events, live)

    monkeypatch.setattr(Talk, "_print", interrupted)
    at_terminal(monkeypatch, ["one", "two", "three", f"/save {tmp_path / 'talk.json'}"])
    monkeypatch.setattr("cli_ran.Piped.isatty", lambda self: True)
    ran = cli("chat", "-m", llada, "-n", 4)
    assert ran.code == 0
    assert ran.out.count("(cancelled)") == 1
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [m["content"] for m in messages if m["role"] == "user"] == ["one", "three"]


def test_on_a_terminal_the_settled_beginning_is_printed_once(
    cli: Run, llada: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = chat(cli, llada, "hello", args=("--temp", 1, "-q")).out
    at_terminal(monkeypatch, ["hello"])
    monkeypatch.setattr("cli_ran.Piped.isatty", lambda self: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    pieces: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *a, end="\n", **_: pieces.append("".join(map(str, a)) + end))
    ran = cli("chat", "-m", llada, "-n", 4, "--temp", 1, "-q")
    assert ran.code == 0
    assert "".join(pieces).rstrip("\n") == plain.rstrip("\n")
    assert len(pieces) > 2


def test_a_picture_that_finds_no_room_leaves_no_recording_either(
    cli: Run, llada: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: WholeFile) -> None:
        if self.path.suffix == ".svg":
            self.discard()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(WholeFile, "settle", full)
    files = ("--record", tmp_path / "run.jsonl", "--svg", tmp_path / "run.svg")
    ran = cli("generate", "--model", llada, "hello", "-n", 8, *files)
    assert ran.code == 2
    assert "no space left" in ran.err.lower()
    assert list(tmp_path.iterdir()) == []
