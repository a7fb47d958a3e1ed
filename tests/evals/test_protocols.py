"""Published protocols: every one can be set up on a model of its family, and its figures are those printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from unmask.core import catalog
from unmask.core.errors import ConfigError
from unmask.core.types import BlockCausal, Traits
from unmask.engine.profiles import build
from unmask.evals.protocols import find, protocols
from unmask.pipeline.ask import Ask

LLADA = Traits(126336, eos_ids=(126081,))
DREAM = Traits(151666, shift=1, eos_ids=(151643,))
V2 = Traits(151665, shift=1, attention=BlockCausal(32), grid_origin="zero", eos_ids=(151645,))
NAMES = list(protocols())


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_can_be_set_up(name: str) -> None:
    protocol = find(name)
    setup = protocol.setup(data="somewhere", limit=3)
    task = catalog.parse("task", setup.task)
    assert setup.protocol == name
    if task.kind == "choice":
        assert setup.scoring.method in ("llada", "dream")
        return
    traits, family = {"LLaDA": (LLADA, "llada"), "Dream": (DREAM, "Dream"), "Fast_": (V2, "Fast_dLLM_Qwen")}[
        next(k for k in ("LLaDA", "Dream", "Fast_") if k in protocol.model)
    ]
    assert Ask(max_tokens=setup.max_tokens, options=setup.options).length == setup.max_tokens
    strategy = build(setup.options, traits, family, setup.max_tokens or 0)
    assert (strategy.cache.spec_name in ("none", "v2_cache")) == ("prefix" not in name and "dual" not in name)
    assert protocol.score is None or protocol.score in ("flexible", "math_verify")


def test_the_best_known_rows() -> None:
    row = find("fast-dllm/gsm8k-5shot/prefix+parallel")
    assert row.published is not None
    assert (row.published.accuracy, row.published.tokens_per_s) == (78.5, 54.4)
    setup = row.setup()
    assert (setup.options.steps, setup.options.threshold, setup.options.block_length) == (8, 0.9, 32)
    assert (setup.options.use_cache, setup.options.dual_cache, setup.max_tokens) == (True, None, 256)
    dual = find("fast-dllm/gsm8k-5shot/dual+parallel")
    assert dual.published is None  # no figure was printed at this length
    assert dual.setup().options.dual_cache is True
    long = find("fast-dllm/gsm8k-5shot-1024/dual+parallel")
    assert long.published is not None
    assert (long.published.accuracy, long.published.tokens_per_s) == (74.7, 21.6)
    assert find("fast-dllm-dream/gsm8k-5shot/baseline").setup().options.alg == "entropy"
    assert find("llada-base/gsm8k-5shot").setup().options.steps == 1024
    assert find("fast-dllm-v2-7b/gsm8k-0shot/threshold-1").setup().options.threshold == 1.0


def test_figures_have_a_source_and_names_a_form() -> None:
    for name, protocol in protocols().items():
        assert name.count("/") in (1, 2)
        assert not set(name) & set(" _()")
        if protocol.published is not None:
            assert protocol.published.source
            assert protocol.published.accuracy is None or 0 < protocol.published.accuracy < 100


def test_an_unknown_protocol_gets_the_near_names() -> None:
    with pytest.raises(ConfigError) as error:
        find("fast-dllm/gsm8k-5shot/dual+paralel")
    assert "fast-dllm/gsm8k-5shot/dual+parallel" in error.value.remedy


def test_protocols_in_the_docs_exist() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text("utf-8")
    named = [w for line in text.splitlines() if "--protocol " in line for w in line.split("--protocol ")[1:]]
    assert named
    for words in named:
        name = words.split()[0].strip('`",.')
        assert name == "NAME" or find(name)
