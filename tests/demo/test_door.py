"""The door and the gallery against those who do not mean well, and refusals in the words of a page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from demo.served import Served, serving

from unmask.core.errors import ConfigError, InputError
from unmask.demo.asks import Limits
from unmask.demo.controls import controls
from unmask.demo.runs import Shelf
from unmask.demo.words import LONGEST, in_page_words

GOLDEN = Path(__file__).parents[1] / "fixtures" / "recordings" / "nano.jsonl"
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": "a", "seed": ' + "9" * 5000 + "}",
        '{"prompt": "a", "constraints": "' + "9" * 5000 + ':a"}',
        '{"prompt": "a", "constraints": {"' + "9" * 5000 + '": "a"}}',
        "[" * 50_000,
        '{"prompt": "\\ud800"}',
        '{"prompt": "a", "settings": {"policy": "threshold(' + "(" * 9000 + '"}}',
    ],
)
def test_monsters_are_refused_and_not_repeated_at_length(client: httpx.Client, body: str) -> None:
    answer = client.post("/api/prepare", content=body, headers=JSON)
    assert answer.status_code == 400
    assert max(len(part) for part in answer.json()["error"].values()) < 4 * LONGEST


def test_odd_origins_hosts_and_methods_are_refused_in_json(client: httpx.Client) -> None:
    for origin in ("http://[", "null", "http://evil.example", "\xff"):
        answer = client.post("/api/stop", json={"job": "x"}, headers={"origin": origin.encode("latin-1")})
        assert answer.status_code == 403 and answer.json()["error"]["what"].startswith("origin")
    for host in ("[::1].evil.example", "127.0.0.1.evil.example", "evil.example:127"):
        assert client.get("/api/status", headers={"host": host}).status_code == 403
    assert client.get("/api/status", headers={"host": "[::1]:80"}).status_code == 200
    assert client.put("/api/status").json()["error"]["message"].startswith("PUT /api/status")


def test_cookies_of_other_programs_on_this_host_do_not_lock_a_visitor_out(model: Any) -> None:
    with serving(model, token="a-long-secret", slots=1) as served:
        with httpx.Client(base_url=served.url) as web:
            web.get("/?token=a-long-secret")
            (name,) = web.cookies.keys()
        assert name.endswith(served.url.rpartition(":")[2])  # two servers of one host do not take each other's
        for others in ('a={"x":1}', "a=b c", "no-value", "a=\xe9", "a@b=1", f"{name}=wrong"):
            cookie = f"{others}; {name}=a-long-secret".encode("latin-1")
            assert httpx.get(f"{served.url}/api/status", headers={"cookie": cookie}).status_code == 200, others
            assert httpx.get(f"{served.url}/api/status", headers={"cookie": f"{name}=wrong"}).status_code == 401


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example", "/a%0d%0aX-Evil:%20yes"])
def test_the_token_is_taken_out_of_the_address_without_leaving_the_server(model: Any, path: str) -> None:
    with serving(model, token="a-long-secret", slots=1) as served:
        answer = httpx.get(f"{served.url}{path}?token=a-long-secret")
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/") and answer.headers["location"][1] not in "/\\"
    assert "x-evil" not in answer.headers


def test_a_folder_with_odd_files_still_has_a_gallery(tmp_path: Path) -> None:
    text = GOLDEN.read_text(encoding="utf-8")
    secret = tmp_path / "secret.txt"
    secret.write_text("not a recording")
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "good.jsonl").write_text(text, encoding="utf-8")
    (folder / "linked.jsonl").symlink_to(secret)
    (folder / "dangling.jsonl").symlink_to(folder / "nowhere")
    (folder / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    (folder / "folder.jsonl").mkdir()
    (folder / "<b>.jsonl").write_text(text, encoding="utf-8")
    os.mkfifo(folder / "pipe.jsonl")
    shelf = Shelf(folder)
    assert [line["name"] for line in shelf.list() if line["source"] == "folder"] == ["good"]
    assert shelf.text("good") == text
    for name in ("linked", "dangling", "binary", "folder", "<b>", "pipe", "../secret"):
        assert shelf.text(name) is None


# ---- words -----------------------------------------------------------------------------------------------------------


def test_refusals_speak_of_fields_not_of_options(client: httpx.Client) -> None:
    def refused(**settings: Any) -> dict[str, str]:
        body = {"messages": [{"role": "user", "content": "hi"}], "settings": settings}
        answer = client.post("/api/prepare", json=body)
        assert answer.status_code == 400
        return dict(answer.json()["error"])

    assert refused(top_p=0.5)["remedy"] == "Set Temperature above 0, such as 0.7."
    both = refused(policy="random", threshold=0.5)
    assert both["what"] == "Threshold: without effect here"
    assert both["remedy"] == "Leave Threshold empty, or choose another Policy."
    assert refused(cfg_scale=-1)["what"] == "Guidance (CFG)"
    assert "`" not in refused(policy="nonsense")["remedy"]


def test_every_option_in_a_refusal_becomes_the_label_of_its_field(model: Any) -> None:
    labels = {c.name: c.label for c in controls(model, Limits.of(model))}
    told = in_page_words(
        ConfigError(
            "schedule blocks",
            expected="--cfg-scale or --guidance-scale",
            got="x" * 5000,
            remedy='Use --schedule "blocks(8)", or leave it out.',
        ),
        labels,
    )
    assert isinstance(told, ConfigError)
    assert told.what == "Block length"
    assert told.expected == "Guidance (CFG) or guidance scale"
    assert len(told.got) == LONGEST
    assert told.remedy == "Leave Block length empty, or use 8."
    assert str(in_page_words(InputError("template", expected="a hole"), labels)) == "template; expected a hole"


def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_error(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    import socket

    port = int(served.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(
            f"POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
            "content-length: 100\r\n\r\n{".encode()
        )
    assert httpx.get(f"{served.url}/api/status").status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
