"""A check-up of real weights, for whoever has them: memory, tokenizer and template ids, a fingerprint, golden prompts.

Enters: a model directory or hub id. Leaves: a JSON-ready report; "passed" says that every known fact holds.
Known ids come from the published tokenizers of LLaDA-8B-Instruct and Dream-v0; other checkpoints are only recorded.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unmask.models.backbone import transformer_of
from unmask.models.plan import plan
from unmask.pipeline import Model, load

PROMPTS = (
    "Lily can run 12 kilometers per hour for 4 hours. After that, she runs 6 kilometers per hour. "
    "How many kilometers can she run in 8 hours?",
    "Explain what artificial intelligence is.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Name the four seasons in order.",
)
RUNS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "llada": (
        ("llada", {"profile": "llada", "steps": 32, "block_length": 32}),
        ("fast-dllm none", {"profile": "fast-dllm", "threshold": 0.9, "block_length": 32, "cache": "none"}),
        ("fast-dllm prefix", {"profile": "fast-dllm", "threshold": 0.9, "block_length": 32, "cache": "prefix"}),
        ("fast-dllm dual", {"profile": "fast-dllm", "threshold": 0.9, "block_length": 32, "cache": "dual"}),
        ("default", {"threshold": 0.9, "block_length": 32}),
    ),
    "Dream": (
        ("dream", {"profile": "dream", "alg": "entropy", "steps": 32}),
        ("fast-dllm prefix", {"profile": "fast-dllm", "threshold": 0.9, "block_length": 32, "cache": "prefix"}),
        ("fast-dllm dual", {"profile": "fast-dllm", "threshold": 0.9, "block_length": 32, "cache": "dual"}),
        ("default", {"threshold": 0.9, "block_length": 32}),
    ),
}
GEN_LENGTH = 64


def verify_real(source: str, notice: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The report on one model.

    Args:
        source: a directory or hub id.
        notice: told what is done next.

    Raises:
        InputError: a checkpoint that cannot be loaded.
    """
    notice("planning memory")
    memory = plan(source, batch=1, length=512)
    notice("loading")
    begun = time.perf_counter()
    model = load(source)
    seconds = time.perf_counter() - begun
    notice("tokenizer and template")
    facts = [*_tokenizer_facts(model), *_trait_facts(model)]
    notice("logit fingerprint")
    fingerprint = _fingerprint(model)
    runs = []
    for label, options in RUNS.get(model.kind.model_type, (("default", {}),)):
        for prompt in PROMPTS if model.codec is not None else ():
            notice(f"golden prompt: {label}: {prompt[:40]}")
            runs.append(_run(model, label, options, prompt))
    return {
        "passed": all(f["holds"] for f in facts),
        "model": model.name,
        "config_sha256": _digest(model),
        "family": model.family,
        "memory": {"weights": memory.weights, "store": memory.store, "workspace": memory.workspace},
        "load_seconds": round(seconds, 2),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
        "device": str(model.denoiser.device),
        "dtype": str(model.denoiser.head.weight.dtype),
        "facts": facts,
        "fingerprint": fingerprint,
        "golden": runs,
    }


def _digest(model: Model) -> str | None:
    path = None if model.directory is None else Path(model.directory) / "config.json"
    return None if path is None or not path.is_file() else hashlib.sha256(path.read_bytes()).hexdigest()


def _fact(name: str, expected: Any, got: Any) -> dict[str, Any]:
    return {"name": name, "expected": expected, "got": got, "holds": expected == got}


def _tokenizer_facts(model: Model) -> list[dict[str, Any]]:
    """Round trip of text for every model; published ids for the checkpoints whose vocabulary is known."""
    codec = model.codec
    if codec is None:
        return []
    text = "Hello world, 12 + 3 = 15.\nçé 你好"
    facts = [_fact("decode(encode(text))", text, codec.decode(codec.encode(text)))]
    if model.kind.model_type == "Dream" and model.vocab_size == 152064:
        facts.append(_fact("encode('Hello world')", [9707, 1879], codec.encode("Hello world")))
    if model.kind.model_type == "llada" and model.vocab_size == 126464 and codec.has_template:
        frame = codec.encode_chat([{"role": "user", "content": "7"}])
        facts.append(_fact("chat frame begins", [126080, 126346, 3840, 126347, 198, 198], frame[:6]))
        facts.append(_fact("chat frame ends", [126348, 126346, 598, 10450, 126347, 198, 198], frame[-7:]))
    return facts


def _trait_facts(model: Model) -> list[dict[str, Any]]:
    known = {("llada", 126464): (126336, 0), ("Dream", 152064): (151666, 1)}
    expected = known.get((model.kind.model_type, model.vocab_size))
    if expected is None:
        return []
    return [_fact("mask id, shift", list(expected), [model.traits.mask_id, model.traits.shift])]


@torch.inference_mode()
def _fingerprint(model: Model) -> dict[str, Any]:
    """The five best ids and logits at the last four positions of a fixed canvas: 24 ids, then 8 masks if any."""
    step = max(1, (model.vocab_size - 1) // 37)
    ids = [(i * step) % model.vocab_size for i in range(24)]
    ids += [model.traits.mask_id] * 8 if model.traits.mask_id is not None else []
    row = torch.tensor([ids], device=model.denoiser.device)
    network = transformer_of(model.denoiser.model, "verify --real")
    hidden = network(row, causal=model.traits.mask_id is None)
    logits = network.logits(hidden[0, -4:]).float().cpu()
    best = logits.topk(5, dim=-1)
    return {
        "input_ids": ids,
        "top_ids": best.indices.tolist(),
        "top_logits": best.values.tolist(),
        "std": float(logits.std()),
    }


def _run(model: Model, label: str, options: dict[str, Any], prompt: str) -> dict[str, Any]:
    answer = model.generate(prompt, gen_length=GEN_LENGTH, **options)
    return {
        "strategy": label,
        "settings": answer.settings,
        "prompt": prompt,
        "text": answer.text,
        "ids": list(answer.ids),
        "nfe": answer.nfe,
        "seconds": round(answer.seconds, 3),
    }
