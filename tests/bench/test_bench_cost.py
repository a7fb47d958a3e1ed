"""Executed work in operations and bytes: against torch's own count, and by hand; forwards by kind in a summary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unmask import testing as t
from unmask.core.types import BlockCausal, Stats, Traits
from unmask.engine.engine import Engine
from unmask.lab.cost import Executed, bytes_read, executed_of, flops, layer_weights
from unmask.models.denoiser import TransformerDenoiser
from unmask.models.transformer import Transformer, TransformerConfig
from unmask.sinks.metrics import Metrics

SHAPE = TransformerConfig(48, 32, 5, 4, 2, 8, 40)
TRAITS = Traits(47, shift=1, attention=BlockCausal(16), grid_origin="zero")


def model() -> TransformerDenoiser:
    net = Transformer(SHAPE)
    net.init_weights(0, 0.3)
    return TransformerDenoiser(net.eval(), TRAITS)


@pytest.mark.parametrize("cache", ["none", "block", "early_exit(2, threshold=0.3)", "depth_split(3)", "delta_reuse"])
def test_operations_are_those_that_torch_counts(cache: str) -> None:
    """Of the matrix products; what attention does has a count of its own below."""
    engine = Engine(model(), 4)
    for one in t.crowd(t.strategy("blocks(8)", "threshold(0.4)", cache), 24):
        engine.submit(one)
    with FlopCounterMode(display=False) as counter:
        list(engine.run())
    seen = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in seen.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert flops(SHAPE, replace(executed_of(engine.stats), key_layers=0)) == products > 0


def test_operations_and_bytes_by_hand() -> None:
    work = Executed(row_layers=6, key_layers=50, read_layers=20, layer_calls=3, head_rows=2, head_calls=1)
    weights = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 40
    assert (
        layer_weights(SHAPE)
        == weights
        == sum(m.numel() for m in Transformer(SHAPE).layers[0].parameters() if m.dim() == 2)
    )
    assert flops(SHAPE, work) == 2 * 6 * weights + 50 * 4 * 32 + 2 * 2 * 48 * 32
    assert bytes_read(SHAPE, work, 2) == 2 * (3 * weights + 48 * 32 + 20 * 2 * 16)
    assert work + work == Executed(12, 100, 40, 6, 4, 2)
    assert executed_of(Stats(row_layers=1, head_calls=2)) == Executed(row_layers=1, head_calls=2)


def test_an_early_exit_reads_fewer_weights_and_a_crowd_reads_them_once() -> None:
    def run(cache: str, together: bool) -> Executed:
        made, total = t.crowd(t.strategy("blocks(16)", "low_confidence(steps=24)", cache), 24), Executed()
        for group in [made] if together else [[one] for one in made]:
            engine = Engine(model(), 4)
            for one in group:
                engine.submit(one)
            list(engine.run())
            total += executed_of(engine.stats)
        return total

    off, ours = run("block", False), run("early_exit(2, agreement=False, threshold=0.0)", False)
    assert ours.layer_calls < off.layer_calls and ours.row_layers < off.row_layers
    assert bytes_read(SHAPE, ours, 4) < bytes_read(SHAPE, off, 4)
    crowd = run("block", True)
    assert crowd.layer_calls < off.layer_calls and crowd.row_layers == off.row_layers
    assert crowd.key_layers == off.key_layers and crowd.read_layers == off.read_layers
    assert off.layer_calls % SHAPE.layers == 0 and off.head_calls * SHAPE.layers == off.layer_calls


def test_a_summary_splits_the_forwards_by_kind() -> None:
    engine, metrics = Engine(model(), 4), Metrics()
    for one in t.crowd(t.strategy("blocks(8)", "low_confidence(steps=20)", "depth_split(3)"), 24):
        engine.submit(one)
    events = list(engine.run())
    for event in events:
        metrics(event)
    assert dict(metrics.total().kinds) == engine.stats.by_kind
    for name in ("0", "1", "2"):
        assert sum(metrics.of(name).kinds.values()) == metrics.of(name).nfe
    assert metrics.total().kinds["shallow"] > 0
