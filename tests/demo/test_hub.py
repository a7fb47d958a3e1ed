from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from unmask.core.errors import RequestError, RunError
from unmask.demo.hub import Full, Hub
from unmask.pipeline.ask import Ask
from unmask.pipeline.request import prepare_one

SLOW = {"policy": "low_confidence", "max_tokens": 48}


def prepared(model: Any, prompt: str = "Copy: red blue", **given: Any) -> Any:
    return prepare_one(model, prompt, Ask.of(given), "x")


class Visitor:
    """Collects the lines of its requests, and when each began and ended."""

    def __init__(self, hub: Hub, name: str) -> None:
        self.hub, self.name = hub, name
        self.lines: dict[str, list[dict[str, Any]]] = {}
        self.ended: dict[str, threading.Event] = {}
        self.begun: dict[str, float] = {}
        self.left: dict[str, float] = {}

    def ask(self, id: str, one: Any, alone: bool = False) -> None:
        self.lines[id], self.ended[id] = [], threading.Event()

        def deliver(more: list[dict[str, Any]] | None) -> None:
            if more is None:
                self.left[id] = time.perf_counter()
                self.ended[id].set()
                return
            self.begun.setdefault(id, time.perf_counter())
            self.lines[id] += more

        self.hub.submit(id, self.name, one, alone, deliver)

    def wait(self, id: str) -> list[dict[str, Any]]:
        assert self.ended[id].wait(60)
        return self.lines[id]


@pytest.fixture
def hub(model: Any) -> Iterator[Hub]:
    found = Hub(model, slots=2, queue=6, share=3)
    yield found
    found.close()
    assert not found._thread.is_alive()


def test_a_request_leaves_a_whole_recording_with_the_text_of_generate(hub: Hub, model: Any) -> None:
    anna = Visitor(hub, "anna")
    anna.ask("job", prepared(model, "Sort these numbers: 42 7 19 3"))
    lines = anna.wait("job")
    assert lines[0]["format"] == "unmask-recording"
    assert lines[-1] == {"end": len(lines) - 1}
    assert lines[-2]["answers"]["0"]["text"] == model.generate("Sort these numbers: 42 7 19 3").text
    assert hub.status()["finished"] == 1


def test_a_client_with_many_requests_does_not_hold_up_another(model: Any) -> None:
    hub = Hub(model, slots=1, queue=8, share=4)
    greedy, modest = Visitor(hub, "greedy"), Visitor(hub, "modest")
    for n in range(4):
        greedy.ask(f"g{n}", prepared(model, **SLOW))
    modest.ask("m", prepared(model, **SLOW))
    modest.wait("m")
    for n in range(4):
        greedy.wait(f"g{n}")
    hub.close()
    assert modest.begun["m"] < greedy.begun["g2"]


def test_a_request_that_is_alone_shares_no_forward(hub: Hub, model: Any) -> None:
    anna, ben = Visitor(hub, "anna"), Visitor(hub, "ben")
    anna.ask("a", prepared(model, **SLOW))
    ben.ask("b", prepared(model, **SLOW), alone=True)
    anna.ask("c", prepared(model, **SLOW))
    for visitor, id in ((anna, "a"), (ben, "b"), (anna, "c")):
        visitor.wait(id)
    steps = [line for line in ben.lines["b"] if line.get("event") == "Stepped"]
    assert steps
    assert {s["work"]["sharing"] for s in steps} == {1}
    assert ben.begun["b"] >= anna.left["a"] - 0.05
    assert anna.begun["c"] >= ben.left["b"] - 0.05


def test_stopping_ends_a_running_request_before_its_next_forward(hub: Hub, model: Any) -> None:
    anna = Visitor(hub, "anna")
    anna.ask("a", prepared(model, policy="low_confidence", max_tokens=256))
    while sum(line.get("event") == "Stepped" for line in anna.lines["a"]) < 3:
        time.sleep(0.002)
    assert hub.stop("a")
    at_stop = hub.status()["forwards"]
    lines = anna.wait("a")
    finished = next(line for line in lines if line.get("event") == "Finished")
    assert finished["reason"] == "cancelled"
    assert hub.status()["forwards"] <= at_stop + 1
    assert hub.status()["cancelled"] == 1
    assert not hub.stop("a")


def test_stopping_a_waiting_request_takes_it_out_of_the_queue(model: Any) -> None:
    hub = Hub(model, slots=1)
    anna, ben = Visitor(hub, "anna"), Visitor(hub, "ben")
    anna.ask("a", prepared(model, policy="low_confidence", max_tokens=128))
    while not hub.status()["running"]:
        time.sleep(0.002)
    ben.ask("b", prepared(model, **SLOW))
    assert hub.place("b") == 1
    hub.stop("b")
    assert ben.wait("b") == [{"stopped": True}]
    hub.stop("a")
    anna.wait("a")
    hub.close()


def test_the_queue_and_a_clients_share_are_bounded(model: Any) -> None:
    hub = Hub(model, slots=1, queue=3, share=2)
    anna, ben, cleo = (Visitor(hub, name) for name in ("anna", "ben", "cleo"))
    anna.ask("run", prepared(model, policy="low_confidence", max_tokens=200))
    while not hub.status()["running"]:
        time.sleep(0.002)
    anna.ask("a1", prepared(model))
    anna.ask("a2", prepared(model))
    with pytest.raises(Full, match="2 of your requests"):
        anna.ask("a3", prepared(model))
    ben.ask("b1", prepared(model))
    with pytest.raises(Full, match="3 requests wait"):
        cleo.ask("c1", prepared(model))
    hub.close()
    assert hub.status()["running"] == hub.status()["waiting"] == 0
    with pytest.raises(RunError):
        anna.ask("late", prepared(model))


def test_a_forward_that_fails_is_told_and_the_next_request_works(hub: Hub, model: Any, monkeypatch: Any) -> None:
    anna = Visitor(hub, "anna")
    engine = hub._engine
    monkeypatch.setattr(engine, "step", lambda: (_ for _ in ()).throw(RuntimeError("out of memory")))
    anna.ask("a", prepared(model))
    assert anna.wait("a")[-1] == {"error": {"message": "the forward failed: out of memory"}}
    anna.ask("b", prepared(model))
    assert anna.wait("b")[-1]["end"] > 0


def test_a_thread_that_dies_leaves_nobody_waiting(model: Any, monkeypatch: Any) -> None:
    hub = Hub(model, slots=1)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(hub, "_step", lambda: (_ for _ in ()).throw(KeyError("a bug of ours")))
    anna = Visitor(hub, "anna")
    anna.ask("a", prepared(model))
    assert "has ended" in anna.wait("a")[-1]["error"]["message"]
    with pytest.raises(RunError, match="has ended"):
        anna.ask("b", prepared(model))


def test_many_clients_get_their_own_answers(model: Any) -> None:
    hub = Hub(model, slots=8)
    words = ["red", "blue", "green", "black", "white"]
    prompts = [f"Copy: {a} {b}" for a in words for b in words][:20]
    wanted = {p: model.generate(p).text for p in prompts}
    visitors = {p: Visitor(hub, p) for p in prompts}
    for prompt, visitor in visitors.items():
        visitor.ask(prompt, prepared(model, prompt))
    found = {p: v.wait(p)[-2]["answers"]["0"]["text"] for p, v in visitors.items()}
    hub.close()
    assert found == wanted
    assert len(set(found.values())) > 10
    assert hub.status()["finished"] == 20


def test_more_lanes_than_slots_are_refused_at_once(model: Any) -> None:
    hub = Hub(model, slots=1)
    with pytest.raises(RequestError, match="at most 1 slots"):
        Visitor(hub, "anna").ask("a", prepared(model, cfg_scale=1.0))
    hub.close()
