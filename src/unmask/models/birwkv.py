"""BiRWKV-LLaDA: config mapping, traits and recommended settings. Parameters are stored under their own names.

The keys are those of the published ModelConfig and DiffusionConfig; keys of ours are `conditioning`, `mixer`,
`attention_every`, `n_heads`, `ff_gate`, `position_embedding`, `embedding_dim`, `normalised_embedding`, `key_cap`,
`bayes_evidence`, `logsnr_range`, `diffusion_mode`, `training_noise` and the ids. A config without `conditioning` is
read as the published code would have made it. docs/birwkv.md maps every published option and tensor.
"""

from __future__ import annotations

from typing import Any, get_args

from unmask.core.types import LatentSpace, Recurrent, Traits
from unmask.models.config import Betas, BiRWKVConfig
from unmask.models.family import Config, Family, Recommended
from unmask.models.settings import ConfigReader, refuse_common

MODEL_TYPE, ARCHITECTURE = "birwkv", "BiRWKVLLaDAModel"

DEFAULTS: dict[str, object] = {
    "d_model": 1024, "n_layers": 24, "vocab_size": 50257, "max_sequence_length": 2048, "mlp_ratio": 2.5,
    "mlp_hidden_size": None, "layer_norm_type": "rms", "layer_norm_with_affine": True, "bias_for_layer_norm": None,
    "include_bias": False, "rms_norm_eps": 1e-5, "embedding_dropout": 0.0, "weight_tying": True, "scale_logits": False,
    "input_emb_norm": False, "embedding_size": None, "diffusion": {},
    "conditioning": "origin", "mixer": "biwkv", "attention_every": 0, "n_heads": None, "ff_gate": "after",
    "position_embedding": None, "embedding_dim": None, "normalised_embedding": None, "key_cap": None,
    "bayes_evidence": None, "logsnr_range": [-7.0, 5.0], "diffusion_mode": "mixed", "training_noise": None,
    "mask_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
DIFFUSION: dict[str, object] = {
    "num_diffusion_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear",
    "prediction_type": "epsilon", "clip_sample": True, "clip_sample_range": 1.0,
}  # fmt: skip
HEAD = 64


def shape_of(config: Config) -> BiRWKVConfig:
    """The backbone of a config; a variant it cannot be is refused by key."""
    r = ConfigReader(config, DEFAULTS)
    _refuse_variants(r)
    dim, layers, origin = r.count("d_model"), r.count("n_layers", high=4096), r.value("conditioning") == "origin"
    wide = r.count_or_none("embedding_dim") or dim
    every = 1 if r.value("mixer") == "attention" else r.count("attention_every", 0)
    heads = r.count_or_none("n_heads") or next((h for h in range(max(1, dim // HEAD), 0, -1) if dim % (2 * h) == 0), 1)
    r.divides("2 * n_heads", 2 * heads if every else 1, "d_model", dim)
    if origin and wide != dim:
        raise r.refuse("embedding_dim", f"null or d_model = {dim} with conditioning origin")
    diffusion = _diffusion(r)
    steps = diffusion.count("num_diffusion_steps", 2)
    levels, betas = _levels(r, diffusion, steps, origin)
    return BiRWKVConfig(
        vocab_size=rows_of(r),
        dim=dim,
        layers=layers,
        mlp_dim=r.count_or_none("mlp_hidden_size") or max(1, int(r.positive("mlp_ratio") * dim)),
        embed_dim=wide,
        attention_every=every,
        heads=heads,
        conditioning=r.value("conditioning"),
        ff_gate=r.value("ff_gate"),
        positions=_own(r, "position_embedding", origin),
        tied=r.flag("weight_tying"),
        norm_eps=r.positive("rms_norm_eps", 1.0),
        key_cap=None if r.value("key_cap") is None else r.positive("key_cap"),
        prediction=diffusion.value("prediction_type"),
        evidence=_own(r, "bayes_evidence", not origin),
        levels=levels,
        steps=steps,
        betas=betas,
        max_len=r.count("max_sequence_length"),
        normed=_own(r, "normalised_embedding", not origin),
        embed_scale=dim**0.5 if r.flag("input_emb_norm") else 1.0,
        logit_scale=dim**-0.5 if r.flag("scale_logits") else 1.0,
        dropout=_share(r, "embedding_dropout"),
        noise=_own(r, "training_noise", origin),
    )


def _refuse_variants(r: ConfigReader) -> None:
    refuse_common(r)
    r.must("layer_norm_type", "rms", why="The other norms of the published code were never used by a checkpoint.")
    r.must("layer_norm_with_affine", True)
    r.must("include_bias", False)
    r.must("bias_for_layer_norm", None, False)
    r.must("conditioning", "adaln", "origin")
    r.must("mixer", "biwkv", "attention")
    r.must("ff_gate", "after", "hidden")
    r.must("diffusion_mode", "mixed", "diffusion", "token")


def _diffusion(r: ConfigReader) -> ConfigReader:
    table = r.value("diffusion")
    if not isinstance(table, dict):
        raise r.refuse("diffusion", "an object")
    unknown = sorted(set(table) - set(DIFFUSION))
    if unknown:
        raise r.refuse("diffusion", f"keys of: {', '.join(DIFFUSION)} (not {', '.join(unknown)})")
    inner = ConfigReader(table, DIFFUSION)
    inner.must("prediction_type", "epsilon", "v_prediction", "sample")
    return inner


def _own(r: ConfigReader, key: str, default: bool) -> bool:
    found = r.flag_or_none(key)
    return default if found is None else found


def _share(r: ConfigReader, key: str) -> float:
    value = r.value(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise r.refuse(key, "a number from 0 to below 1")
    return float(value)


def _levels(
    r: ConfigReader, diffusion: ConfigReader, steps: int, origin: bool
) -> tuple[tuple[float, float], tuple[Betas, float, float] | None]:
    """Lowest and highest level, and the published table: a published config has one, a model of ours has a range."""
    own = [k for k in ("beta_schedule", "beta_start", "beta_end") if k in diffusion.config]
    if origin and r.config.get("logsnr_range") is None:
        from unmask.ops.vp import betas_of, levels_of

        betas = _betas(diffusion)
        table = levels_of(betas_of(*betas, steps))
        return (float(table[-1]), float(table[0])), betas
    if own:
        raise r.refuse("diffusion", f"no {own[0]}: logsnr_range says the levels of this model")
    return _range(r), None


def _betas(diffusion: ConfigReader) -> tuple[Betas, float, float]:
    diffusion.must("beta_schedule", *get_args(Betas))
    end = diffusion.positive("beta_end", 0.999)
    return diffusion.value("beta_schedule"), diffusion.positive("beta_start", end), end


def _range(r: ConfigReader) -> tuple[float, float]:
    value: Any = r.value("logsnr_range")
    numbers = isinstance(value, list | tuple) and len(value) == 2
    if not numbers or not all(isinstance(x, int | float) and -60 <= x <= 60 for x in value) or not value[0] < value[1]:
        raise r.refuse("logsnr_range", "[low, high] in nats, low below high, within -60 and 60")
    return float(value[0]), float(value[1])


def rows_of(r: ConfigReader) -> int:
    """Rows of the token table: embedding_size, or vocab_size where it is null."""
    vocab, rows = r.count("vocab_size", 2), r.count_or_none("embedding_size")
    if rows is not None and rows < vocab:
        raise r.refuse("embedding_size", f"null or at least vocab_size = {vocab}")
    return rows or vocab


def traits(config: Config) -> Traits:
    """Every row reads every row through the recurrence; the mask id is the tokenizer's where the config names none."""
    r, shape = ConfigReader(config, DEFAULTS), shape_of(config)
    mode = r.value("diffusion_mode")
    latent = None if mode == "token" else LatentSpace(shape.embed_dim, *shape.levels)
    return Traits(
        mask_id=r.token_or_none("mask_token_id", shape.vocab_size),
        shift=0,
        attention=Recurrent(boundaries=not shape.attention_every),
        eos_ids=r.tokens("eos_token_id", shape.vocab_size),
        pad_id=r.token_or_none("pad_token_id", shape.vocab_size),
        max_len=shape.max_len,
        grid_origin="prompt",
        latent=latent,
        fills_masks=mode != "diffusion",
    )


def recommended(config: Config, chat: bool, max_tokens: int) -> Recommended:
    """The masked sampler with as many steps as tokens, or ancestral diffusion for a model that was trained on it
    only."""
    masked = Recommended(
        "whole", f"dream(alg='origin', steps={max_tokens})", "none", max_tokens, max_tokens, max_tokens,
        note="One token a step on average, at random places: the exact reverse of the masking it was trained on.",
    )  # fmt: skip
    diffused = Recommended(
        "whole",
        "ddpm(steps=64)",
        "none",
        max_tokens,
        64,
        max_tokens,
        note="Ancestral diffusion of the token vectors, 64 steps.",
    )
    mode = ConfigReader(config, DEFAULTS).value("diffusion_mode")
    if mode == "diffusion":
        return diffused
    return Recommended(**{**vars(masked), "alternatives": {} if mode == "token" else {"diffusion": diffused}})


FAMILY = Family(
    name="BiRWKV",
    model_type=MODEL_TYPE,
    architecture=ARCHITECTURE,
    names=None,
    shape=shape_of,
    traits=traits,
    recommended=recommended,
    mask_token="<|mask|>",
    kind="recurrent",
    known_issues=("No trained checkpoint of the published code is known; tests are against its formulas.",),
)
