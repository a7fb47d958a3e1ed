"""Launch lines of the published scripts: `--model llada_dist --model_args model_path=...,gen_length=256,...`.

Enters: the name that a script registered with lm-eval, and its model arguments. Leaves: a `Line`: the checkpoint, a
`Bridge` that decodes and scores as that script did, and the arguments that have no effect here, each with a reason.
The defaults are those of the scripts. Needs no lm-eval.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from unmask.core.errors import ConfigError
from unmask.engine.options import DecodeOptions
from unmask.evals.harness.bridge import Bridge
from unmask.evals.likelihood import Scoring

PATHS = ("model_path", "pretrained")
DTYPES = {"auto": "auto", "bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
NOTHING = {
    "mask_id": "the mask id comes from the checkpoint",
    "show_speed": "speed is always printed",
    "save_dir": "answers are kept by --output-path and --log-samples",
    "trust_remote_code": "no code of a checkpoint is ever run",
    "reuse_k": "no layer is reused here: every forward is computed in full",
    "layer_subset": "no layer is reused here: every forward is computed in full",
    "experiment_name": "no code beside the checkpoint is ever run",
    "sampling_eps": "likelihoods use the published 0.001",
}
"""Arguments that need no counterpart, and why."""
WHOLE = {"gen_length", "steps", "block_length", "max_new_tokens", "diffusion_steps", "small_block_size", "bd_size"}
WHOLE |= {"batch_size", "max_length", "mc_num", "top_k"}
REAL = {"threshold", "factor", "cfg", "classifier_free_guidance", "temperature", "top_p", "alg_temp"}
SWITCH = {"use_cache", "dual_cache", "use_block_cache", "is_check_greedy", "add_bos_token", "escape_until"}
SWITCH |= {"apply_chat_template"}
TEXT = {"alg", "remasking", "nll_type", "log_type", "dtype", "device"}
KNOWN = {*PATHS, *NOTHING, *WHOLE, *REAL, *SWITCH, *TEXT}
FAST = ("use_cache", "dual_cache", "threshold", "factor", "show_speed", "save_dir")
"""Arguments that only Fast-dLLM's copies of the LLaDA and Dream scripts know."""


@dataclass(frozen=True)
class Line:
    """A launch line understood. said: decoding options that were given, under the script's names, for warnings."""

    source: str
    bridge: Bridge
    dtype: str
    device: str
    warnings: tuple[str, ...]
    said: Mapping[str, str]


def parse(text: str) -> dict[str, str]:
    """ "a=1,b=[2,3]" -> {"a": "1", "b": "[2,3]"}.

    Raises:
        ConfigError: a part without "=", an unknown name, or one given twice.
    """
    out: dict[str, str] = {}
    for part in _parts(text):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError("--model_args", expected="name=value,name=value", got=part)
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, n=2)
            remedy = f"Did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(
                f"--model_args {name}", expected=f"one of: {', '.join(sorted(KNOWN))}", got=name, remedy=remedy
            )
        if name in out:
            raise ConfigError(f"--model_args {name}", expected="it once", got="it twice")
        out[name] = value.strip().strip("'\"")
    return out


def _parts(text: str) -> list[str]:
    """Cut at commas outside brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "[(") - (sign in "])")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return [p for p in parts if p.strip()]


def understood(name: str, args: Mapping[str, str], batch_size: int | None = None) -> Line:
    """The line of the script that registered `name`.

    Args:
        args: model arguments as text. batch_size: lm-eval's own option, which goes below the argument of that name.

    Raises:
        ConfigError: no checkpoint, a value of the wrong type, or a likelihood that is not there.
    """
    given = {k: _value(k, v) for k, v in args.items()}
    given = {k: v for k, v in given.items() if v is not None}
    if batch_size is not None:
        given.setdefault("batch_size", batch_size)
    paths = [str(given[p]) for p in PATHS if p in given]
    if len(paths) != 1:
        raise ConfigError(f"--model {name}", expected="model_path= or pretrained= once", got=f"{len(paths)} of them")
    taken = _Taken(given)
    bridge = replace(SCRIPTS[name](taken, paths[0]), published=name, batch=taken.get("batch_size", 1))
    dtype = str(taken.get("dtype", "auto"))
    if dtype not in DTYPES:
        raise ConfigError("--model_args dtype", expected=f"one of: {', '.join(DTYPES)}", got=dtype)
    device = str(taken.get("device", "auto"))
    idle = [k for k in given if k not in taken.seen and k not in PATHS]
    warnings = [f"{k} has no effect: {NOTHING.get(k, f'the script of {name} does not use it here')}" for k in idle]
    said = {ours: theirs for theirs, ours in taken.named.items() if theirs in given}
    return Line(paths[0], bridge, DTYPES[dtype], device, tuple(warnings), said)


def _value(name: str, text: str) -> Any:
    """The value in its type; None for "None"."""
    if text in ("None", "null", ""):
        return None
    if name in SWITCH:
        if text.lower() in ("true", "1", "false", "0"):
            return text.lower() in ("true", "1")
        raise ConfigError(f"--model_args {name}", expected="True or False", got=text)
    if name in WHOLE or name in REAL:
        return _number(name, text)
    return text


def _number(name: str, text: str) -> int | float:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if name in WHOLE and type(value) is int and value >= 1:
        return value
    if name in REAL and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    raise ConfigError(
        f"--model_args {name}", expected="a whole number from 1" if name in WHOLE else "a number", got=text
    )


class _Taken:
    """Arguments, and which of them a script used."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given, self.seen = given, set[str]()
        self.named: dict[str, str] = {}

    def get(self, name: str, default: Any = None, as_option: str | None = None) -> Any:
        """The value. as_option: the decoding option it becomes."""
        self.seen.add(name)
        self.named[name] = as_option or name
        return self.given.get(name, default)

    def any(self, *names: str) -> bool:
        return any(n in self.given for n in names)


# ---- the scripts -----------------------------------------------------------------------------------------------------


def _llada(taken: _Taken, path: str) -> Bridge:
    """eval_llada.py, of LLaDA, or of Fast-dLLM where one of its own arguments is there."""
    fast = taken.any(*FAST)
    length, batch = taken.get("gen_length", 1024), taken.get("batch_size", 32)
    options: dict[str, Any] = {
        "profile": "fast-dllm" if fast else "llada",
        "steps": taken.get("steps", 1024),
        "block_length": taken.get("block_length", 1024),
        "remasking": taken.get("remasking"),
    }
    if fast:
        options |= {n: taken.get(n) or None for n in ("use_cache", "dual_cache", "factor")}
        options["threshold"] = taken.get("threshold")
    cfg = 0.0 if fast else taken.get("cfg", 0.0, "cfg_scale")
    options["cfg_scale"] = cfg or None
    greedy = taken.get("is_check_greedy", True)
    scoring = Scoring("llada", taken.get("mc_num", 128), batch, cfg_scale=cfg, greedy=greedy)
    instruct = fast and "instruct" in path.lower()
    return Bridge(
        DecodeOptions(**options), length, scoring,
        wrap=instruct, whole_code=instruct, max_length=taken.get("max_length", 4096),
    )  # fmt: skip


def _dream(taken: _Taken, path: str) -> Bridge:
    """eval.py of Dream, or of Fast-dLLM where one of its own arguments is there."""
    fast = taken.any(*FAST, "apply_chat_template") or taken.given.get("alg") == "confidence_threshold"
    length = taken.get("max_new_tokens", 128, "gen_length")
    options: dict[str, Any] = {
        "profile": "fast-dllm" if fast else "dream",
        "steps": taken.get("diffusion_steps", 128, "steps"),
        "alg": taken.get("alg", "entropy"),
        "alg_temp": taken.get("alg_temp", 0.0) or None,
        "temperature": taken.get("temperature", 0.0),
        "top_p": taken.get("top_p"),
        "top_k": taken.get("top_k"),
    }
    if fast:
        options |= {n: taken.get(n) or None for n in ("use_cache", "dual_cache")}
        options["threshold"] = taken.get("threshold")
    return Bridge(
        DecodeOptions(**options), length, _dream_scoring(taken),
        cut=not taken.get("escape_until", False), bos=taken.get("add_bos_token", False),
        wrap=fast and taken.get("apply_chat_template", False), max_length=taken.get("max_length", 2048),
    )  # fmt: skip


def _dream_scoring(taken: _Taken) -> Scoring:
    kind, order = taken.get("nll_type", "mc"), taken.get("log_type", "ftb")
    if order != "ftb" or kind not in ("mc", "ar_ftb"):
        raise ConfigError(
            "--model_args nll_type, log_type", expected="mc or ar_ftb, with log_type ftb", got=f"{kind}, {order}"
        )
    cfg = taken.get("classifier_free_guidance", 1.0, "cfg_scale") - 1
    batch = taken.get("batch_size", 1)
    if kind == "ar_ftb":
        return Scoring("left_to_right", cfg_scale=max(cfg, 0.0))
    return Scoring("dream", taken.get("mc_num", 128), batch, cfg_scale=max(cfg, 0.0))


def _v2(taken: _Taken, path: str) -> Bridge:
    """eval.py of Fast-dLLM v2. Likelihood is the right one; `first_token` repeats the published defect."""
    options = DecodeOptions(
        profile="fast-dllm-v2",
        block_length=taken.get("bd_size", 32, "block_length"),
        small_block_size=taken.get("small_block_size", 8),
        threshold=taken.get("threshold", 0.9),
        dual_cache=taken.get("use_block_cache", as_option="dual_cache") or None,
    )
    return Bridge(options, taken.get("max_new_tokens", 2048, "gen_length"), cut=False, boxed=True)


SCRIPTS: dict[str, Callable[[_Taken, str], Bridge]] = {"llada_dist": _llada, "dream": _dream, "fast_dllm_v2": _v2}
"""Names under which the published scripts register their model with lm-eval."""
