from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from demo.served import Served, serving
from demo.sse import answer, lines_of, recording, run

from unmask.core.events import fold
from unmask.sinks.recorder import read

PROMPT = "Sort these numbers: 42 7 19 3"
MESSAGES = [{"role": "user", "content": PROMPT}]
SLOW = {"policy": "low_confidence", "max_tokens": 400, "logits_eos_inf": True}


def until(true: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_the_stream_is_a_recording_of_the_answer(client: httpx.Client, model: Any, tmp_path: Path) -> None:
    lines = run(client, messages=MESSAGES)
    assert set(lines[0]) == {"job"}
    path = tmp_path / "run.jsonl"
    path.write_text(recording(lines), encoding="utf-8")
    found = read(path)
    wanted = model.generate(PROMPT)
    assert found.answers["0"].text == answer(lines) == wanted.text
    assert fold(found.events)["0"].ids == wanted.canvas.ids
    kept = client.get(f"/api/runs/{lines[0]['job']}.jsonl").text
    assert [json.loads(line) for line in kept.splitlines()] == [
        json.loads(line) for line in path.open(encoding="utf-8")
    ]


def test_lines_arrive_while_the_model_still_writes(client: httpx.Client) -> None:
    arrived: list[tuple[float, str]] = []
    body = {"messages": MESSAGES, "settings": {**SLOW, "max_tokens": 128}}
    with client.stream("POST", "/api/generate", json=body) as response:
        for line in lines_of(response):
            arrived.append((time.perf_counter(), line.get("event", "")))
    steps = [when for when, event in arrived if event == "Stepped"]
    finished = next(when for when, event in arrived if event == "Finished")
    assert len(steps) > 60
    assert steps[len(steps) // 2] < finished - 0.02
    assert steps[-1] - steps[0] > 0.05


def test_settings_constraints_and_templates_reach_the_engine(client: httpx.Client) -> None:
    lines = run(client, messages=MESSAGES, constraints={"3": "apple"}, settings={"max_tokens": 16, "steps": 16})
    head = next(line for line in lines if "format" in line)
    assert "steps=16" in head["settings"]["0"]["policy"]
    assert "apple" in answer(lines)
    filled = run(client, messages=MESSAGES, template="The[[4]] sat.")
    assert answer(filled).startswith("The")
    assert answer(filled).endswith(" sat.")


def test_a_raw_prompt_and_an_empty_one_with_a_template(client: httpx.Client) -> None:
    assert answer(run(client, prompt="Once upon", settings={"max_tokens": 8})) is not None
    assert answer(run(client, template="One[[2]] two.")).endswith(" two.")


def test_prepare_shows_the_canvas_and_runs_nothing(client: httpx.Client) -> None:
    before = client.get("/api/status").json()["forwards"]
    found = client.post("/api/prepare", json={"messages": MESSAGES, "constraints": "2:apple", "max_tokens": 8}).json()
    accepted = next(line for line in found["lines"] if line.get("event") == "Accepted")
    given = [i - accepted["prompt_len"] for i, f in enumerate(accepted["fixed"]) if f and i >= accepted["prompt_len"]]
    assert given[0] == 2
    assert len(accepted["canvas"]) == accepted["prompt_len"] + 8
    assert found["settings"]["policy"].startswith("threshold")
    assert client.get("/api/status").json()["forwards"] == before


def test_stop_ends_the_run_and_keeps_what_was_written(client: httpx.Client) -> None:
    lines: list[dict[str, Any]] = []
    body = {"messages": MESSAGES, "settings": {**SLOW, "max_tokens": 900}}
    with client.stream("POST", "/api/generate", json=body) as response:
        for line in lines_of(response):
            lines.append(line)
            if line.get("event") == "Accepted":
                assert client.post("/api/stop", json={"job": lines[0]["job"]}).json() == {"stopped": True}
    finished = next(line for line in lines if line.get("event") == "Finished")
    assert finished["reason"] == "cancelled"
    assert finished["nfe"] < 900
    assert lines[-1]["end"] > 0
    assert client.get("/api/status").json()["running"] == 0
    assert client.post("/api/stop", json={"job": lines[0]["job"]}).json() == {"stopped": False}


def test_a_closed_connection_frees_its_slot(served: Served) -> None:
    address = served.url.removeprefix("http://")
    body = json.dumps({"messages": MESSAGES, "settings": {**SLOW, "max_tokens": 900}}).encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((address.split(":")[0], int(address.split(":")[1]))) as wire:
        wire.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert wire.recv(4096)
        until(lambda: served.hub.status()["running"] == 1)
    until(lambda: served.hub.status()["running"] == 0)
    before = served.hub.status()["forwards"]
    time.sleep(0.2)
    assert served.hub.status()["forwards"] == before


def test_twenty_clients_at_once_get_their_own_answers(served: Served, model: Any) -> None:
    words = ["red", "blue", "green", "black", "white"]
    prompts = [f"Copy: {a} {b}" for a in words for b in words][:20]
    wanted = {p: model.generate(p).text for p in prompts}
    found: dict[str, str] = {}

    def visit(prompt: str) -> None:
        with httpx.Client(base_url=served.url, timeout=60) as client:
            found[prompt] = answer(run(client, messages=[{"role": "user", "content": prompt}], client=prompt))

    threads = [threading.Thread(target=visit, args=(p,)) for p in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == wanted


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ([], "JSON object"),
        ({}, "none of them"),
        ({"prompt": 3}, "a text"),
        ({"prompt": "a", "messages": MESSAGES}, "both"),
        ({"messages": []}, "1 to 1000"),
        ({"messages": [{"role": "user"}]}, "role and content"),
        ({"messages": [{"role": "root", "content": "x"}]}, "system, user, assistant"),
        ({"messages": [{"role": "user", "content": "  "}]}, "a text"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "x"}]}, "last message of the user"),
        ({"messages": MESSAGES, "settngs": {}}, "settngs"),
        ({"messages": MESSAGES, "settings": []}, "an object"),
        ({"messages": MESSAGES, "settings": {"profile": "llada"}}, "profile"),
        ({"messages": MESSAGES, "settings": {"threshold": "high"}}, "a number"),
        ({"messages": MESSAGES, "settings": {"threshold": 7}}, "threshold"),
        ({"messages": MESSAGES, "settings": {"policy": "__import__('os')"}}, "unknown"),
        ({"messages": MESSAGES, "settings": {"policy": "low_confidence(steps=1000000)"}}, "at most"),
        ({"messages": MESSAGES, "settings": {"steps": 10**9}}, "steps"),
        ({"messages": MESSAGES, "max_tokens": 10**9}, "max_tokens"),
        ({"messages": MESSAGES, "max_tokens": True}, "max_tokens"),
        ({"messages": MESSAGES, "seed": -1}, "seed"),
        ({"messages": MESSAGES, "constraints": "3"}, "no colon"),
        ({"messages": MESSAGES, "constraints": {"-1": "x"}}, "positions from 0"),
        ({"messages": MESSAGES, "constraints": {"999999": "x"}}, "999999"),
        ({"messages": MESSAGES, "constraints": {"٣": "x"}}, "positions from 0"),
        ({"messages": MESSAGES, "constraints": 3}, "constraints"),
        ({"messages": MESSAGES, "constraints": {"3": "x", "03": "y"}}, "one word at a position"),
        ({"messages": MESSAGES, "template": "no hole"}, "free span"),
        ({"messages": MESSAGES, "template": "The[[999999999]]"}, ""),
        ({"messages": MESSAGES, "client": "x" * 65}, "client"),
        ({"messages": MESSAGES, "alone": "yes"}, "true or false"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "Unicode"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "tokens"),
    ],
)
@pytest.mark.parametrize("path", ["/api/generate", "/api/prepare"])
def test_bad_input_gets_a_clear_message(client: httpx.Client, body: Any, word: str, path: str) -> None:
    text = json.dumps(body)
    response = client.post(path, content=text, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert word in f"{error['message']} {error['remedy']}"
    assert client.get("/api/status").json()["running"] == 0


def test_what_is_no_json_is_refused(client: httpx.Client) -> None:
    as_json = {"content-type": "application/json"}
    for content in (b"{", b"\xff\xfe", b"[" * 20_000):
        assert client.post("/api/generate", content=content, headers=as_json).status_code == 400
    form = client.post("/api/generate", data={"prompt": "x"})
    assert form.status_code == 400
    assert "application/json" in form.text


def test_an_oversized_body_is_refused_with_and_without_a_length(client: httpx.Client) -> None:
    large = json.dumps({"prompt": "x" * 1_000_000}).encode()
    headers = {"content-type": "application/json"}
    assert client.post("/api/generate", content=large, headers=headers).status_code == 413

    def chunks() -> Any:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    assert client.post("/api/generate", content=chunks(), headers=headers).status_code == 413


def test_unknown_addresses_and_paths_outside(client: httpx.Client) -> None:
    names = ["/nothing", "/static/..%2Fapp.py", "/static/app.py", "/view/../hub.py", "/api/runs/x.jsonl", "/api/runs/x"]
    for path in [*names, "/api/gallery/..%2F..%2Fx.jsonl", "/api/gallery/none.html"]:
        assert client.get(path).status_code == 404, path


# ---- the door --------------------------------------------------------------------------------------------------------


def test_every_answer_carries_the_headers_that_close_the_page(client: httpx.Client) -> None:
    for path in ("/", "/api/model", "/nothing", "/static/page.css"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_a_foreign_host_or_origin_is_refused(client: httpx.Client, served: Served) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/", headers={"host": "127.0.0.1.evil.example:80"}).status_code == 403
    body = {"messages": MESSAGES, "max_tokens": 4}
    assert client.post("/api/generate", json=body, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/api/generate", json=body, headers={"origin": "null"}).status_code == 403
    assert client.post("/api/generate", json=body, headers={"origin": served.url}).status_code == 200


def test_with_a_token_nobody_comes_in_without_it(model: Any) -> None:
    with serving(model, token="secret-token") as served, httpx.Client(base_url=served.url) as client:
        for path in ("/", "/api/model", "/view/view.css", "/?token=wrong", "/api/gallery"):
            response = client.get(path)
            assert response.status_code == 401
            assert "secret-token" not in response.text
        assert client.post("/api/generate", json={"prompt": "x"}).status_code == 401
        assert client.get("/api/model", headers={"authorization": "Bearer secret-token"}).status_code == 200
        assert client.get("/api/model", headers={"cookie": "unmask_token=wrong"}).status_code == 401
        welcome = client.get("/?token=secret-token")
        assert welcome.status_code == 303
        assert welcome.headers["location"] == "/"
        assert "HttpOnly" in welcome.headers["set-cookie"]
        assert client.get("/api/model").status_code == 200


# ---- the gallery -----------------------------------------------------------------------------------------------------


def test_a_run_can_be_kept_and_shown_again(client: httpx.Client, folder: Path) -> None:
    lines = run(client, messages=MESSAGES)
    job = lines[0]["job"]
    assert client.post("/api/gallery", json={"job": job, "name": "my run"}).json() == {"name": "my run"}
    assert read(folder / "my run.jsonl").answers["0"].text == answer(lines)
    listed = {line["name"]: line for line in client.get("/api/gallery").json()}
    assert listed["my run"]["source"] == "folder"
    assert client.get("/api/gallery/my run.html").text.lower().startswith("<!doctype html>")
    assert client.post("/api/gallery", json={"job": job, "name": "my run"}).status_code == 400
    for name in ("../x", "a/b", ".hidden", "", "x" * 100, "a\x00b"):
        assert client.post("/api/gallery", json={"job": job, "name": name}).status_code == 400, name
    assert client.post("/api/gallery", json={"job": "nobody", "name": "x"}).status_code == 400
    assert sorted(p.name for p in folder.iterdir()) == ["my run.jsonl"]


def test_a_damaged_file_in_the_folder_is_left_out(client: httpx.Client, folder: Path) -> None:
    broken = folder / "broken.jsonl"
    broken.write_text('{"format": "unmask-recording", "version": 1}\n{"event"', encoding="utf-8")
    assert "broken" not in {line["name"] for line in client.get("/api/gallery").json()}
    broken.unlink()


# ---- what the form offers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nano", "nano-llada", "nano-ar", "nano-birwkv"])
def test_every_control_and_preset_is_accepted_by_the_model(name: str) -> None:
    import unmask
    from unmask.demo.asks import Limits, read
    from unmask.demo.controls import describe

    model = unmask.load(name)
    limits = Limits.of(model, 64)
    table = describe(model, limits, "0", False)
    asked = {"messages": MESSAGES}
    for preset in table["presets"]:
        read({**asked, "settings": preset["settings"]}, model, limits, "x")
    for control in table["controls"]:
        for value in [c["value"] for c in control["choices"]] or [control["default"]]:
            read({**asked, "settings": {control["name"]: value}}, model, limits, "x")
    assert {c["name"] for c in table["controls"]} >= {"max_tokens", "temperature", "top_p", "top_k", "cache", "seed"}
    assert len(table["presets"]) >= 3


def test_the_bounds_of_the_controls_are_those_of_the_model(client: httpx.Client) -> None:
    table = client.get("/api/model").json()
    for control in table["controls"]:
        if control["type"] not in ("int", "float") or control["max"] is None:
            continue
        asked = {"settings": {control["name"]: control["max"]}, "messages": [{"role": "user", "content": "a"}]}
        if control["name"] in ("top_p", "top_k"):
            asked["settings"]["temperature"] = 0.5
        if control["name"] == "max_tokens":
            asked["settings"]["max_tokens"] = control["max"] - 20  # the prompt needs some
        response = client.post("/api/prepare", json=asked)
        assert response.status_code == 200, (control["name"], response.text)
