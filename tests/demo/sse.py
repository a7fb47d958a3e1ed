"""Reading the stream of a run as a page does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx


def lines_of(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def run(web: httpx.Client, /, **body: Any) -> list[dict[str, Any]]:
    with web.stream("POST", "/api/generate", json=body) as response:
        if response.status_code != 200:
            response.read()
            raise AssertionError(f"{response.status_code}: {response.text}")
        return list(lines_of(response))


def recording(lines: list[dict[str, Any]]) -> str:
    keep = [line for line in lines if not set(line) & {"job", "waiting"}]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in keep)


def answer(lines: list[dict[str, Any]]) -> str:
    return next(str(line["answers"]["0"]["text"]) for line in lines if "answers" in line)
