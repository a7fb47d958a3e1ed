"""The floor's arithmetic on a clock that does not run by itself, and the order of the rounds."""

from __future__ import annotations

import pytest
import torch

from unmask.cache.dual import Dual
from unmask.core.events import Accepted, Finished, Stepped, Work
from unmask.core.types import Request, Sampling, Strategy, Traits
from unmask.decode.schedules import Blocks
from unmask.decode.top_k import LowConfidence
from unmask.lab import decoding
from unmask.lab.decoding import Case, Measured, Ran, compare, make_request, mixed_lengths
from unmask.lab.floor import Floor, Rows
from unmask.models.denoiser import TransformerDenoiser
from unmask.models.family import find_family
from unmask.models.shapes import random_model


class Ticks:
    """Every reading is 1, 2, 3 ... seconds later than the one before."""

    def __init__(self) -> None:
        self.at, self.step = 0.0, 0

    def __call__(self) -> float:
        self.step += 1
        self.at += self.step
        return self.at


def tiny() -> TransformerDenoiser:
    model, config = random_model("llada-mid", vocab=64, layers=1, dtype="fp32", device="cpu")
    return TransformerDenoiser(model, find_family(config).traits(config))


def strategy(steps: int) -> Strategy:
    return Strategy(Blocks(4), LowConfidence(steps), Dual(), None, Sampling(suppress=(62,)))


def test_floor_is_the_sum_of_the_best_times_of_each_row_count() -> None:
    floor = Floor([torch.zeros(3, 2)], torch.zeros(5, 2), Ticks())
    seen = {Rows(4, 2, 2), Rows(8, 2, 2)}
    floor.sample(seen)  # layers of 4 rows: 2 s, of 8 rows: 4 s, head: 6 s
    floor.sample(seen)  # 8, 10, 12 s: slower, so not the minimum
    assert floor.layer_times == {4: [2.0, 8.0], 8: [4.0, 10.0]}
    assert floor.head_times == {2: [6.0, 12.0]}
    assert floor.seconds([Rows(4, 2, 2), Rows(8, 2, 2), Rows(8, 2, 2)]) == (2 + 6) + (4 + 6) + (4 + 6)
    assert floor.best([Rows(4, 2, 2)]) == ({4: 2.0}, {2: 6.0})


def test_strict_floor_takes_the_head_at_the_scored_rows_and_a_prefill_without_a_question_none() -> None:
    floor = Floor([torch.zeros(3, 2)], torch.zeros(5, 2), Ticks())
    forwards = [Rows(4, 2, 1), Rows(4, 0, 0)]
    floor.sample(set(forwards))  # layers 2 s, head of 1 row 4 s, of 2 rows 6 s
    assert floor.head_times == {1: [4.0], 2: [6.0]}
    assert floor.seconds(forwards) == 2 + 6 + 2
    assert floor.seconds(forwards, strict=True) == 2 + 4 + 2


def test_floor_reads_every_matrix_once_and_multiplies_right(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(torch, "mm", lambda a, b, out: seen.append((tuple(a.shape), tuple(b.shape), tuple(out.shape))))
    Floor([torch.zeros(3, 2), torch.zeros(2, 7)], torch.zeros(5, 2), Ticks()).sample({Rows(4, 32, 32)})
    assert seen == [((4, 2), (2, 3), (4, 3)), ((4, 7), (7, 2), (4, 2)), ((32, 2), (2, 5), (32, 5))]


def test_rounds_are_interleaved_and_the_floor_is_sampled_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def fake_decode(case: Case, clock: object) -> Ran:
        order.append(case.cache)
        return Ran(seconds=1.0, forwards=[Rows(4, 32, 32)], tokens=1)

    class FakeFloor(Floor):
        def sample(self, forwards: set[Rows]) -> None:
            order.append("floor")
            self.layer_times.setdefault(4, []).append(0.25)
            self.head_times.setdefault(32, []).append(0.25)

    monkeypatch.setattr(decoding, "decode", fake_decode)
    monkeypatch.setattr(decoding, "_warm_up", lambda *_: None)
    cases = [Case("ours", name, "p", tiny(), ()) for name in ("a", "b")]
    found = compare(FakeFloor([], torch.zeros(1, 1), Ticks()), cases, 2, Ticks())
    assert order == ["a", "b"] + ["a", "b", "floor"] * 2 + ["floor"] * 3  # first: peak memory, not timed
    assert [m.share for m in found] == [0.5, 0.5]


def test_share_takes_the_median_wall() -> None:
    runs = tuple(Ran(seconds=s) for s in (1.0, 9.0, 2.0))
    assert Measured(Case("ours", "none", "p", tiny(), ()), runs, 1.5, 1.5, None).share == 0.75


def test_decode_counts_rows_as_executed_and_visible_tokens() -> None:
    denoiser = tiny()
    request = make_request("0", strategy(4), denoiser.traits, 64, 6, 8)
    ran = decoding.decode(Case("ours", "dual", "p", denoiser, (request,)), Ticks())
    assert ran.forwards == [Rows(14, 4, 4), Rows(4, 4, 2), Rows(14, 4, 4), Rows(4, 4, 2)]
    assert ran.kinds == {("full", 14): 2, ("partial", 4): 2}
    assert (ran.tokens, ran.nfe, ran.model_calls, ran.head_rows) == (8, 4, 4, 4 + 2 + 4 + 2)


def test_eos_and_what_follows_is_not_counted() -> None:
    traits = Traits(mask_id=9, eos_ids=(7,), pad_id=8)
    seen = decoding._Visible(traits)
    seen(Accepted("0", (1, -1, -1, -1), (True, False, False, False), 1, ((1, 4),)))
    seen(Stepped("0", 1, Work("full", 4, 3, 0.0), ((1, 5, 1.0, 1), (2, 7, 1.0, 1), (3, 5, 1.0, 1))))
    seen(Finished("0", "stop", 1, 2))
    assert seen.count == 1


def test_prompts_hold_no_special_id() -> None:
    traits = Traits(mask_id=3, eos_ids=(1,), pad_id=2)
    request: Request = make_request("0", strategy(1), traits, 8, 200, 4)
    assert not {1, 2, 3} & set(request.canvas[:200].tolist())
    assert request.prompt_len == 200
    assert int(request.fixed.sum()) == 200


def test_a_crowd_has_mixed_lengths() -> None:
    pairs = mixed_lengths(8, 128, 128, 32)
    assert len({p for p, _ in pairs}) == 8
    assert {a for _, a in pairs} == {128, 96}
    assert max(p for p, _ in pairs) == 128
    assert min(p for p, _ in pairs) > 64
