"""What exists, by kind: one line each (name, module path, meaning). Nothing is imported until it is asked for.

Outside packages add lines by entry point (`unmask.policies`, `unmask.caches`, `unmask.schedules`, `unmask.models`,
`unmask.tasks`, `unmask.noises`).
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from unmask.core.errors import SpecError
from unmask.core.spec import build, split


@dataclass(frozen=True)
class Entry:
    """One catalog line; `target` is "module:attribute".

    Args:
        experimental: no measured win yet. Parsed like any other, but shown by `unmask ls --experimental` only.
    """

    name: str
    target: str
    meaning: str
    experimental: bool = False


KINDS = {
    "policy": "policies",
    "cache": "caches",
    "schedule": "schedules",
    "model": "models",
    "profile": "profiles",
    "task": "tasks",
    "noise": "noises",
}

_LINES: dict[str, tuple[Entry, ...]] = {
    "policy": (
        Entry(
            "threshold",
            "unmask.decode.threshold:Threshold",
            "commit every position at or above a confidence, the best always",
        ),
        Entry(
            "factor", "unmask.decode.factor:Factor", "commit the largest n with (n + 1)(1 - c_n) < factor (Fast-dLLM)"
        ),
        Entry(
            "low_confidence",
            "unmask.decode.top_k:LowConfidence",
            "the most confident positions, a fixed number of steps (LLaDA)",
        ),
        Entry("random", "unmask.decode.top_k:Random", "random positions, a fixed number of steps (LLaDA)"),
        Entry("entropy", "unmask.decode.top_k:Entropy", "positions of lowest entropy, a fixed number of steps"),
        Entry(
            "margin",
            "unmask.decode.top_k:Margin",
            "positions of largest top-1 to top-2 margin, a fixed number of steps",
        ),
        Entry(
            "dream", "unmask.decode.dream:Dream", "Dream's eps schedule: origin, maskgit_plus, topk_margin or entropy"
        ),
        Entry(
            "dream_carry",
            "unmask.decode.dream_carry:DreamCarry",
            "Fast-dLLM on Dream, whole canvas: threshold with carry",
        ),
        Entry(
            "dream_block",
            "unmask.decode.dream_block:DreamBlock",
            "Fast-dLLM on Dream, blocks: first token from the entry pass",
        ),
        Entry(
            "left_to_right",
            "unmask.decode.left_to_right:LeftToRight",
            "the leftmost open position: autoregressive decoding",
        ),
        Entry(
            "ddpm",
            "unmask.decode.gaussian:Ddpm",
            "continuous diffusion: ancestral sampling of the tokens' vectors (BiRWKV)",
        ),
        Entry("ddim", "unmask.decode.gaussian:Ddim", "continuous diffusion: DDIM, deterministic at eta 0"),
        Entry("dpmpp", "unmask.decode.gaussian:DpmSolverPlusPlus", "continuous diffusion: DPM-Solver++(2M), few steps"),
        Entry(
            "entropy_bound",
            "unmask.decode.entropy_bound:EntropyBound",
            "lowest entropies whose sum without the largest stays within a budget (EB-Sampler)",
            experimental=True,
        ),
        Entry(
            "slow_fast",
            "unmask.decode.slow_fast:SlowFast",
            "explore one token at a time until a stretch stands still, then fill it (SlowFast)",
            experimental=True,
        ),
        Entry(
            "commit_ahead",
            "unmask.decode.commit_ahead:CommitAhead",
            "threshold, and some of the next-best positions blindly: the control of layer reuse",
            experimental=True,
        ),
        Entry(
            "pipelined_threshold",
            "unmask.decode.pipelined:PipelinedThreshold",
            "threshold for several open blocks: the best one of each fully active block (D2F)",
            experimental=True,
        ),
        Entry(
            "v2_threshold",
            "unmask.decode.fast_dllm_v2:V2Threshold",
            "Fast-dLLM v2 as published: above a confidence; a block's first token without a test",
        ),
    ),
    "schedule": (
        Entry(
            "blocks",
            "unmask.decode.schedules:Blocks",
            "blocks left to right on a canvas of full length (semi-AR padding)",
        ),
        Entry("whole", "unmask.decode.schedules:Whole", "the whole answer as one block (fixed length)"),
        Entry(
            "growing", "unmask.decode.schedules:Growing", "the canvas grows block by block until EOS (semi-AR origin)"
        ),
        Entry(
            "pipelined",
            "unmask.decode.pipelined:Pipelined",
            "the next block opens while the one before it still has holes (D2F, d3LLM)",
            experimental=True,
        ),
        Entry(
            "v2_blocks",
            "unmask.decode.fast_dllm_v2:V2Blocks",
            "Fast-dLLM v2 as published: sub-blocks, a block's first token on its own",
        ),
    ),
    "cache": (
        Entry("none", "unmask.cache.none:NoCache", "every row is recomputed at every step; exact for every model"),
        Entry(
            "prefix",
            "unmask.cache.prefix:Prefix",
            "rows before the open block are kept until the next block (Fast-dLLM)",
        ),
        Entry("dual", "unmask.cache.dual:Dual", "rows before and after the open block are kept (Fast-dLLM)"),
        Entry(
            "block", "unmask.cache.block:BlockCache", "finished rows are kept for good; exact for (block-)causal models"
        ),
        Entry(
            "sub_block",
            "unmask.cache.sub_block:SubBlock",
            "the same, and inside a block only the open sub-block is recomputed (Fast-dLLM v2)",
        ),
        Entry(
            "boundary",
            "unmask.cache.boundary:Boundary",
            "recurrent models: the open block between the states at its two ends; constant memory",
        ),
        Entry(
            "trim",
            "unmask.cache.trim:Trim",
            "block-causal models: in the open block only changed rows, open positions and who speaks for them",
            experimental=True,
        ),
        Entry(
            "v2_cache", "unmask.cache.fast_dllm_v2:V2Cache", "Fast-dLLM v2 as published: its forwards, quirks included"
        ),
        Entry(
            "vicinity",
            "unmask.cache.vicinity:Vicinity",
            "dual, and some rows on both sides of the open block are recomputed with it (dInfer)",
            experimental=True,
        ),
        Entry(
            "delayed",
            "unmask.cache.delayed:Delayed",
            "rows of decided tokens are kept one step after they were decided (dKV-Cache)",
            experimental=True,
        ),
        Entry(
            "drift",
            "unmask.cache.drift:Drift",
            "dual, and a full forward as soon as keys and values have moved too far",
            experimental=True,
        ),
        Entry(
            "window",
            "unmask.cache.window:Window",
            "masks far behind the open block are left out or thinned",
            experimental=True,
        ),
        Entry(
            "light_entry",
            "unmask.cache.light_entry:LightEntry",
            "dual, and most blocks begin with a forward over what changed instead of everything",
            experimental=True,
        ),
        Entry(
            "fixed_reuse",
            "unmask.cache.fixed_reuse:FixedReuse",
            "sub_block, with layers replaced by their last output in most forwards (as published, for study)",
            experimental=True,
        ),
        Entry(
            "early_exit",
            "unmask.cache.early_exit:EarlyExit",
            "every other step ends at a low layer where that is sure and agrees with the last full one",
            experimental=True,
        ),
        Entry(
            "depth_split",
            "unmask.cache.depth_split:DepthSplit",
            "lower layers run for changed rows only, upper ones for the whole block",
            experimental=True,
        ),
        Entry(
            "delta_reuse",
            "unmask.cache.delta_reuse:DeltaReuse",
            "some layers run for changed rows only and add to the others what they added before",
            experimental=True,
        ),
    ),
    "model": (
        Entry("llada", "unmask.models.llada:FAMILY", "LLaDA 8B, LLaDA 1.5, iLLaDA and checkpoints of that format"),
        Entry("Dream", "unmask.models.dream:FAMILY", "Dream v0 7B and checkpoints of that format"),
        Entry(
            "Fast_dLLM_Qwen",
            "unmask.models.fast_dllm:FAMILY",
            "Fast-dLLM v2 1.5B, 7B and checkpoints of that format (block diffusion)",
        ),
        Entry(
            "unmask_context_causal",
            "unmask.models.context_causal:FAMILY",
            "autoregressive models adapted with a causal context (block diffusion; NBDiff)",
        ),
        Entry("sdar", "unmask.models.sdar:FAMILY", "SDAR (dense) checkpoints (block diffusion)"),
        Entry(
            "birwkv",
            "unmask.models.birwkv:FAMILY",
            "BiRWKV-LLaDA: bidirectional recurrence, masks and continuous diffusion in one model",
        ),
        Entry("qwen2", "unmask.models.qwen2:FAMILY", "autoregressive Qwen2 / Qwen2.5 checkpoints (baseline, parents)"),
        Entry("llama", "unmask.models.llama:FAMILY", "autoregressive Llama-shaped checkpoints (baseline, parents)"),
    ),
    "profile": (
        Entry("default", "unmask.engine.profiles:default", "float32 confidences, no quirk, rows never coupled"),
        Entry("llada", "unmask.engine.profiles:llada", "LLaDA generate.py: all S passes of every block"),
        Entry("fast-dllm", "unmask.engine.profiles:fast_dllm", "Fast-dLLM v1 for LLaDA and Dream"),
        Entry(
            "dream", "unmask.engine.profiles:dream", "Dream diffusion_generate: eps schedule, zero-commit passes kept"
        ),
        Entry("fast-dllm-v2", "unmask.engine.profiles:fast_dllm_v2", "Fast-dLLM v2 generate: bonus tokens, commits"),
    ),
    "task": (
        Entry(
            "gsm8k",
            "unmask.evals.tasks.gsm8k:Gsm8k",
            "word problems with one number as answer (lm-eval layout; strict and flexible)",
        ),
        Entry("svamp", "unmask.evals.tasks.svamp:Svamp", "word problems of one step, 0-shot"),
        Entry(
            "math",
            "unmask.evals.tasks.competition_math:Math",
            "competition problems, answers in LaTeX (Minerva layout)",
        ),
        Entry(
            "humaneval", "unmask.evals.tasks.humaneval:HumanEval", "Python functions to complete, judged by their tests"
        ),
        Entry("mbpp", "unmask.evals.tasks.mbpp:Mbpp", "short Python tasks, judged by their tests"),
        Entry("mmlu", "unmask.evals.tasks.mmlu:Mmlu", "questions of 57 subjects, four letters by likelihood"),
        Entry("arc", "unmask.evals.tasks.arc:Arc", "school science, easy or challenge, by likelihood"),
        Entry("hellaswag", "unmask.evals.tasks.hellaswag:HellaSwag", "which ending follows, by likelihood"),
        Entry("piqa", "unmask.evals.tasks.piqa:Piqa", "which of two ways reaches a goal, by likelihood"),
        Entry("winogrande", "unmask.evals.tasks.winogrande:WinoGrande", "whom a sentence means, by likelihood"),
        Entry("reversal", "unmask.evals.tasks.reversal:Reversal", "the line after or before a line of a poem (LLaDA)"),
        Entry("infilling", "unmask.evals.tasks.infilling:Infilling", "a span of a text with both sides known"),
        Entry(
            "countdown",
            "unmask.evals.tasks.countdown:Countdown",
            "reach a number from three to five others (generated or a file)",
        ),
        Entry("sudoku", "unmask.evals.tasks.sudoku:Sudoku", "4x4 sudoku (generated or a file)"),
        Entry(
            "synthetic",
            "unmask.evals.tasks.synthetic_task:Synthetic",
            "this project's generated problems: copy, sort, sudoku, word problems, ...",
        ),
    ),
    "noise": (
        Entry(
            "logsnr_linear",
            "unmask.noise.gaussian:LogSnrLinear",
            "continuous diffusion: the log SNR falls evenly (the default)",
        ),
        Entry("linear", "unmask.noise.gaussian:Linear", "continuous diffusion: betas rise evenly (DDPM)"),
        Entry("cosine", "unmask.noise.gaussian:Cosine", "continuous diffusion: a squared cosine (Improved DDPM)"),
        Entry("sigmoid", "unmask.noise.gaussian:Sigmoid", "continuous diffusion: betas rise in an S"),
        Entry(
            "logit_normal",
            "unmask.noise.gaussian:LogitNormal",
            "continuous diffusion: levels drawn normally around a mean (ELF)",
        ),
    ),
}


@cache
def entries(kind: str) -> dict[str, Entry]:
    """All lines of a kind by name, the project's own first. A foreign line may not replace one of ours."""
    found = {e.name: e for e in _LINES[kind]}
    for point in entry_points(group=f"unmask.{KINDS[kind]}"):
        if point.name not in found:
            found[point.name] = Entry(point.name, point.value, f"from {point.dist.name if point.dist else 'a package'}")
    return found


def find(kind: str, name: str) -> Entry:
    """The line of that name.

    Raises:
        SpecError: unknown name; the message has the near names and the whole list.
    """
    known = entries(kind)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise SpecError(
        f"unknown {kind} {name!r}",
        expected=f"one of: {', '.join(known)}",
        got=name,
        remedy=f"{hint}See `unmask ls {KINDS[kind]}`.",
    )


def load(kind: str, name: str) -> Any:
    """The object behind a catalog line; an import error inside it is not swallowed."""
    module, _, attribute = find(kind, name).target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def parse(kind: str, spec: Any) -> Any:
    """A component from its spec string; a component passes through.

    Raises:
        SpecError: unknown name, wrong type or out-of-range argument.
    """
    if not isinstance(spec, str):
        return spec
    name, args, kwargs = split(spec)
    return build(load(kind, name), args, kwargs)
