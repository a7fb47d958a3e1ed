"""LLaDA (8B Base and Instruct, 1.5, iLLaDA): config mapping, tensor names, traits and recommended settings.

Source: the published `LLaDAModelLM` format (ML-GSAI/LLaDA). Absent keys take that class's defaults, which are
GPT-2-like; variants other than the Llama block (`block_type: llama`, RMS norm, SiLU, RoPE) are refused by key.
"""

from __future__ import annotations

from dataclasses import replace

from unmask.core.types import Full, Traits
from unmask.models.config import TransformerConfig
from unmask.models.family import Config, Family, Recommended, WeightNames
from unmask.models.settings import ConfigReader, refuse_common

NAMES = WeightNames(
    embed="model.transformer.wte.weight",
    final_norm="model.transformer.ln_f.weight",
    head="model.transformer.ff_out.weight",
    layer="model.transformer.blocks.{i}.",
    attn_norm="attn_norm",
    mlp_norm="ff_norm",
    q="q_proj",
    k="k_proj",
    v="v_proj",
    out="attn_out",
    gate="ff_proj",
    up="up_proj",
    down="ff_out",
)

DEFAULTS: dict[str, object] = {
    "d_model": 768, "n_heads": 12, "n_kv_heads": None, "multi_query_attention": None, "n_layers": 12,
    "mlp_hidden_size": None, "mlp_ratio": 4, "activation_type": "swiglu", "block_type": "sequential",
    "block_group_size": 1, "layer_norm_type": "default", "rms_norm_eps": 1e-5, "layer_norm_with_affine": True,
    "bias_for_layer_norm": None, "attention_layer_norm": False, "attention_layer_norm_with_affine": True, "rope": False,
    "rope_theta": 10_000.0, "rope_full_precision": True, "alibi": False, "max_sequence_length": 1024,
    "vocab_size": 50257, "embedding_size": 50304, "weight_tying": True, "include_bias": False,
    "include_qkv_bias": False, "input_emb_norm": False, "scale_logits": False, "mask_token_id": 50256,
    "eos_token_id": 50256, "pad_token_id": 50256, "eot_token_id": None,
}  # fmt: skip


def shape_of(config: Config) -> TransformerConfig:
    """The backbone of a LLaDA config; every variant it cannot be is refused by key."""
    r = ConfigReader(config, DEFAULTS)
    _refuse_variants(r)
    dim, heads = r.count("d_model"), r.count("n_heads")
    r.divides("2 * n_heads", 2 * heads, "d_model", dim)
    bias = r.flag("include_bias")
    return TransformerConfig(
        vocab_size=_rows(r),
        dim=dim,
        layers=r.count("n_layers", high=4096),
        heads=heads,
        kv_heads=_kv_heads(r, heads),
        head_dim=dim // heads,
        mlp_dim=r.count_or_none("mlp_hidden_size") or r.count("mlp_ratio") * dim,
        norm_eps=r.positive("rms_norm_eps", 1.0),
        rope_theta=r.positive("rope_theta"),
        rope_float32=r.flag("rope_full_precision"),
        qkv_bias=bias or r.flag("include_qkv_bias"),
        out_bias=bias,
        mlp_bias=bias,
        qk_norm="full" if r.flag("attention_layer_norm") else None,
        tied=r.flag("weight_tying"),
        embed_scale=dim**0.5 if r.flag("input_emb_norm") else 1.0,
        logit_scale=dim**-0.5 if r.flag("scale_logits") else 1.0,
        max_len=r.count("max_sequence_length"),
    )


def _refuse_variants(r: ConfigReader) -> None:
    refuse_common(r)
    r.must(
        "block_type",
        "llama",
        why="Only checkpoints with Llama blocks are published; sequential ones fuse their tensors.",
    )
    r.must("block_group_size", 1)
    r.must("activation_type", "silu")
    r.must("layer_norm_type", "rms")
    r.must("layer_norm_with_affine", True)
    if r.flag("include_bias") and not r.flag("weight_tying"):
        raise r.refuse("include_bias", "false (an output matrix with a bias is not implemented)")
    norms = (False,) if r.flag("include_bias") else (False, None)
    r.must("bias_for_layer_norm", *norms, why="Norms with a bias are not implemented; null follows include_bias.")
    r.must("rope", True)
    r.must("alibi", False)
    r.must("rope_scaling", None)
    if r.flag("attention_layer_norm"):
        r.must("attention_layer_norm_with_affine", True)


def _rows(r: ConfigReader) -> int:
    """Rows of the embedding and of the head: embedding_size, or vocab_size where it is null."""
    vocab, rows = r.count("vocab_size", 2), r.count_or_none("embedding_size")
    if rows is not None and rows < vocab:
        raise r.refuse("embedding_size", f"null or at least vocab_size = {vocab}")
    return rows or vocab


def _kv_heads(r: ConfigReader, heads: int) -> int:
    given, multi_query = r.count_or_none("n_kv_heads"), r.flag_or_none("multi_query_attention")
    resolved = 1 if multi_query else heads
    if given is None:
        return resolved
    if multi_query is not None and given != resolved:
        raise r.refuse("multi_query_attention", f"a value that agrees with n_kv_heads = {given} (or null)")
    r.divides("n_kv_heads", given, "n_heads", heads)
    return given


def traits(config: Config) -> Traits:
    """Full attention, no shift; mask, EOS and padding ids come from the config (iLLaDA's mask id is 5)."""
    r = ConfigReader(config, DEFAULTS)
    rows = _rows(r)
    return Traits(
        mask_id=r.token("mask_token_id", rows),
        shift=0,
        attention=Full(),
        eos_ids=tuple(dict.fromkeys(r.tokens("eos_token_id", rows) + r.tokens("eot_token_id", rows))),
        pad_id=r.token_or_none("pad_token_id", rows),
        max_len=r.count("max_sequence_length"),
        grid_origin="prompt",
    )


LONG = 512
"""Up to this many answer tokens Instruct was published with the whole canvas at once; above it with blocks."""

EOS_FLOOD = "Instruct: one block with low-confidence remasking fills long answers with EOS (blocks and random do not)."
NO_APPEND = "Instruct: growing the canvas block by block scores poorly (training only saw complete answers)."
NO_LIKELIHOOD = "Instruct and 1.5: evaluate by generation; likelihood scores come out far below the published ones."


def recommended(config: Config, chat: bool, max_tokens: int) -> Recommended:
    """Published guidance (LLaDA GUIDELINES.md and EVAL.md): Base, and Instruct below or above 512 answer tokens."""
    block = min(32, max_tokens)
    whole = Recommended("whole", f"random(steps={max_tokens})", "none", max_tokens, max_tokens, max_tokens)
    confident = f"low_confidence(steps={max_tokens})"
    blocks = replace(whole, schedule=f"blocks({block})", policy=confident, block_length=block)
    if not chat:
        return replace(blocks, note="Base: low-confidence remasking; whole canvas and blocks score about the same.")
    eos = replace(
        whole,
        policy=confident,
        sampling={"confidence_eos_eot_inf": True},
        note="Instruct, newer evaluation guide: one block, positions that predict EOS or EoT are committed last.",
    )
    issues = (EOS_FLOOD, NO_APPEND, NO_LIKELIHOOD)
    if max_tokens > LONG:
        note = f"Instruct above {LONG} tokens: blocks with low-confidence remasking."
        return replace(blocks, note=note, known_issues=issues, alternatives={"eos-flags": eos, "random": whole})
    note = f"Instruct up to {LONG} tokens: whole canvas with random remasking."
    return replace(whole, note=note, known_issues=issues, alternatives={"eos-flags": eos, "blocks": blocks})


FAMILY = Family(
    name="LLaDA",
    model_type="llada",
    architecture="LLaDAModelLM",
    names=NAMES,
    shape=shape_of,
    traits=traits,
    recommended=recommended,
    turn_end=("<|eot_id|>",),
    known_issues=(
        "The chat template appends the assistant header always; an assistant message cannot be continued.",
        "Contexts above 4096 tokens were not trained.",
    ),
)
