"""The settings a page offers for the loaded model: names, ranges, the checkpoint's own values, and ready strategies.

Enters: a model. Leaves: JSON-ready tables. What a kind of model has no use for is not offered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unmask.core.types import BlockCausal
from unmask.demo.asks import Limits
from unmask.engine.profiles import BLOCK, kind_of
from unmask.models.embedded import EMBEDDED
from unmask.models.family import Recommended
from unmask.pipeline.model import Model

CACHES = {
    "canvas": {
        "none": "none (exact)",
        "prefix": "prefix (approximate)",
        "dual": "dual (approximate)",
    },
    "block": {"none": "none (exact)", "block": "finished blocks (exact)", "sub_block": "sub-block (approximate)"},
    "autoregressive": {"none": "none (exact)", "block": "all that is written (exact)"},
    "recurrent": {"none": "none (exact)", "boundary": "boundary states (approximate)"},
}
POLICIES = {
    "threshold(0.9)": "all that are sure, the best always",
    "factor(1.0)": "Fast-dLLM's factor rule",
    "low_confidence": "the surest, a fixed number of steps",
    "random": "at random, a fixed number of steps",
    "entropy": "lowest entropy first",
    "margin": "largest margin first",
}
LATENT = {
    "ddpm(steps=64)": "continuous diffusion, ancestral",
    "ddim(steps=32)": "continuous diffusion, deterministic",
    "dpmpp(steps=16)": "continuous diffusion, few steps",
}
ALGS = {
    "origin": "origin (random)",
    "maskgit_plus": "maskgit_plus (confidence)",
    "topk_margin": "topk_margin",
    "entropy": "entropy",
}
EXAMPLES = (
    "Why is the sky blue?",
    "Explain what artificial intelligence is.",
    "Write a short poem about a lighthouse in winter.",
)
NANO = (
    "Tell a story about Bob the rabbit, a kite and a farm.",
    "Leo has 24 stamps. Leo gives half of them to Zoe. Zoe gives Leo 15 more stamps. "
    "How many stamps does Leo have now? Explain.",
    "Sort these numbers: 42 7 19 3",
    "Copy: red blue green",
    "Write a short story with Max the frog, a ball and a river.",
)


@dataclass(frozen=True)
class Control:
    """One field of the form; `default` is what the checkpoint recommends, shown where nothing is typed."""

    name: str
    label: str
    group: str
    type: str
    help: str
    min: float | None = None
    max: float | None = None
    step: float | None = None
    default: Any = None
    choices: tuple[tuple[str, str], ...] = ()
    placeholder: str = ""

    def as_json(self) -> dict[str, Any]:
        """The table of the page."""
        table = {k: v for k, v in vars(self).items() if k != "choices"}
        return {**table, "choices": [{"value": value, "label": label} for value, label in self.choices]}


def describe(model: Model, limits: Limits, version: str, can_keep: bool) -> dict[str, Any]:
    """The answer of /api/model."""
    kind, advice = kind_of(model.traits), model.recommended()
    return {
        "name": model.name,
        "family": model.family,
        "kind": kind,
        "has_chat": model.has_chat,
        "version": version,
        "max_tokens": limits.tokens,
        "max_positions": model.traits.max_len,
        "limits": {"forwards": limits.forwards, "body": limits.body},
        "can_keep": can_keep,
        "controls": [c.as_json() for c in controls(model, limits)],
        "presets": presets(model, advice),
        "examples": list(_examples(model.name)),
        "recommended": {
            "answer": f"{advice.gen_length} tokens",
            "schedule": advice.schedule,
            "policy": advice.policy,
            "cache": advice.cache,
            **{k: str(v) for k, v in advice.sampling.items() if v is not None},
        },
        "note": advice.note,
        "known_issues": [*model.kind.known_issues, *advice.known_issues],
    }


def _examples(name: str) -> tuple[str, ...]:
    """Prompts that the model can do something with."""
    if name not in EMBEDDED:
        return EXAMPLES
    return tuple(p for p in NANO if "story" in p) if name == "nano-birwkv" else NANO


def controls(model: Model, limits: Limits) -> list[Control]:
    """Every setting this kind of model has, in the order of the form."""
    kind, advice = kind_of(model.traits), model.recommended()
    found = [*_length(limits, advice, kind, model)]
    if kind != "autoregressive":
        found += _order(model, advice, kind)
    found.append(
        Control(
            "cache",
            "Cache",
            "Speed",
            "choice",
            "Rows that are kept instead of computed again. What is marked approximate may change the text.",
            default=advice.cache,
            choices=tuple(CACHES[kind].items()),
        )
    )
    return found + _sampling(advice, kind)


def _length(limits: Limits, advice: Recommended, kind: str, model: Model) -> list[Control]:
    most, own = limits.tokens, model.traits.attention
    found = [
        Control(
            "max_tokens",
            "Answer length",
            "Length",
            "int",
            "Places on the canvas, in tokens.",
            min=1,
            max=most,
            step=1,
            default=min(advice.gen_length, most),
        )
    ]
    if kind == "autoregressive":
        return found
    text = "Forwards for the whole answer, for rules that count them."
    found.append(Control("steps", "Steps", "Length", "int", text, min=1, max=limits.forwards, step=1))
    size = own.size if isinstance(own, BlockCausal) else None
    if kind != "recurrent":
        found.append(
            Control(
                "block_length",
                "Block length",
                "Length",
                "int",
                "Places decoded together; blocks follow one another from left to right."
                if size is None
                else f"Places decoded together: a part of the model's own block of {size}.",
                min=1,
                max=most if size is None else size,
                step=1,
                default=min(advice.block_length, most) if size is None else None,
                placeholder="" if size is None else str(min(size, BLOCK)),
            )
        )
    return found


def _order(model: Model, advice: Recommended, kind: str) -> list[Control]:
    choices = {**(LATENT if model.traits.latent is not None else {}), **POLICIES}
    group = "Which tokens settle"
    found = [
        Control(
            "policy",
            "Policy",
            group,
            "text",
            "The rule that picks the places to settle, with its arguments.",
            default=advice.policy,
            choices=tuple(choices.items()),
        ),
        Control(
            "threshold",
            "Threshold",
            group,
            "float",
            "Settle every token at least this sure; below it at least the surest one.",
            min=0,
            max=1,
            step=0.05,
        ),
        Control(
            "remasking",
            "Remasking",
            group,
            "choice",
            "LLaDA's two rules, a fixed number of steps.",
            choices=(("low_confidence", "low confidence"), ("random", "random")),
        ),
    ]
    if model.kind.model_type in ("Dream", "birwkv"):
        found += [
            Control("alg", "Dream's order", group, "choice", "Dream's own rules.", choices=tuple(ALGS.items())),
            Control(
                "alg_temp",
                "Order temperature",
                group,
                "float",
                "Noise in Dream's order; 0 is none.",
                min=0,
                max=2,
                step=0.01,
            ),
        ]
    return found


def _sampling(advice: Recommended, kind: str) -> list[Control]:
    group, own = "Sampling", advice.sampling
    found = [
        Control(
            "temperature",
            "Temperature",
            group,
            "float",
            "0 takes the likeliest token; higher is more varied.",
            min=0,
            max=2,
            step=0.05,
            default=own.get("temperature") or 0,
        ),
        Control(
            "top_p",
            "Top-p",
            group,
            "float",
            "Likeliest tokens that together have this probability; needs a temperature above 0.",
            min=0.01,
            max=1,
            step=0.01,
            default=own.get("top_p"),
        ),
        Control(
            "top_k",
            "Top-k",
            group,
            "int",
            "Only this many likeliest tokens; needs a temperature above 0.",
            min=1,
            max=1000,
            step=1,
            default=own.get("top_k"),
        ),
        Control("seed", "Seed", group, "int", "The same seed gives the same text.", min=0, step=1, default=0),
    ]
    if kind == "autoregressive":
        return found
    ends = {"logits_eos_inf": "Never end early", "confidence_eos_eot_inf": "Settle ends last"}
    meaning = {
        "logits_eos_inf": "The token that ends a text is never predicted.",
        "confidence_eos_eot_inf": "Tokens that end a text or a turn settle after all others.",
    }
    found.append(
        Control(
            "cfg_scale",
            "Guidance (CFG)",
            group,
            "float",
            "Classifier-free guidance in LLaDA's scale; 0 is off, and each forward costs twice.",
            min=0,
            max=4,
            step=0.1,
        )
    )
    return found + [
        Control(name, label, group, "flag", meaning[name], default=bool(own.get(name))) for name, label in ends.items()
    ]


def presets(model: Model, advice: Recommended) -> list[dict[str, Any]]:
    """Strategies worth racing against each other; the first two are the default lanes."""
    kind = kind_of(model.traits)
    slow: Mapping[str, Any] = {"policy": "low_confidence"}
    table: list[tuple[str, str, Mapping[str, Any]]]
    if kind == "autoregressive":
        table = [
            ("left to right", "the likeliest token, one per forward", {}),
            ("warmer", "sampled at temperature 0.7", {"temperature": 0.7}),
            ("without a cache", "every row is computed again", {"cache": "none"}),
        ]
    elif kind == "recurrent":
        table = [("recommended", advice.note, {}), ("one token per step", "the surest token of each forward", slow)]
        if model.traits.latent is not None:
            table += [(name, meaning, {"policy": name}) for name, meaning in LATENT.items()]
    else:
        table = [
            ("one token per step", "the surest token of each forward", slow),
            ("recommended", advice.note, {}),
            ("threshold 0.9", "every token at least 0.9 sure", {"policy": "threshold(0.9)"}),
            ("threshold 0.7", "bolder: every token at least 0.7 sure", {"policy": "threshold(0.7)"}),
            ("random order", "one token per step, at random places", {"policy": "random"}),
        ]
        quick = {"canvas": "dual", "block": "sub_block"}[kind]
        text = f"approximate: {CACHES[kind][quick].split(' (')[0]} cache, threshold 0.9"
        table.append((f"{quick.replace('_', '-')} cache", text, {"policy": "threshold(0.9)", "cache": quick}))
    return [{"name": name, "meaning": meaning, "settings": dict(settings)} for name, meaning, settings in table]
