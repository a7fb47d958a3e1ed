"""What a user may say about decoding, as plain values. None means "not said"."""

from __future__ import annotations

from dataclasses import dataclass, fields

COLDEST, HOTTEST = 1e-6, 100.0
"""Bounds of a temperature above 0: beyond them logits overflow, or every token is as likely as every other."""
STRONGEST = 1000.0
"""The largest guidance scale."""


@dataclass(frozen=True)
class DecodeOptions:
    """User-level decoding options; `engine.profiles.build` turns them into a Strategy.

    Args:
        profile: default, llada, fast-dllm, dream or fast-dllm-v2.
        gen_length: positions of the answer canvas, in tokens.
        steps: denoising steps for the whole answer.
        block_length: positions per block; on a block-diffusion model a divisor of its own block size.
        small_block_size: positions per sub-block on a block-diffusion model (Fast-dLLM v2's name).
        use_cache, dual_cache: published switches for a cache (dual_cache is Fast-dLLM v2's use_block_cache); what they
            mean depends on the model: `engine.profiles.SWITCHES`.
        schedule, policy, cache: specs, such as "blocks(32)", "threshold(0.9)", "dual".
        remasking: "low_confidence" or "random" (LLaDA's name for the policy).
        alg, alg_temp, eps: Dream's policy options.
        cfg_scale: classifier-free guidance in LLaDA's scale (0 = off); guidance_scale: s = cfg_scale + 1 (1 = off).
        logits_eos_inf: never predict EOS; confidence_eos_eot_inf: commit EOS and EoT last (LLaDA).
    """

    profile: str = "default"
    gen_length: int | None = None
    steps: int | None = None
    block_length: int | None = None
    small_block_size: int | None = None
    schedule: str | None = None
    policy: str | None = None
    cache: str | None = None
    use_cache: bool | None = None
    dual_cache: bool | None = None
    threshold: float | None = None
    factor: float | None = None
    remasking: str | None = None
    alg: str | None = None
    alg_temp: float | None = None
    eps: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    cfg_scale: float | None = None
    guidance_scale: float | None = None
    logits_eos_inf: bool | None = None
    confidence_eos_eot_inf: bool | None = None

    def said(self) -> dict[str, object]:
        """The options that were given."""
        return {f.name: v for f in fields(self) if f.name != "profile" and (v := getattr(self, f.name)) is not None}
