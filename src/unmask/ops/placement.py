"""Where a model runs and in which dtype, when the user says "auto"."""

from __future__ import annotations

import torch

from unmask.core.errors import InputError

DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
}


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """A device that exists: "auto" is cuda, then mps, then cpu.

    Raises:
        InputError: a name torch does not know, or a device this machine does not have.
    """
    if str(device) == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise InputError("device", expected="auto, cpu, cuda, cuda:N or mps", got=repr(device)) from None
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}.get(
        picked.type
    )
    if count is None:
        raise InputError("device", expected="auto, cpu, cuda, cuda:N or mps", got=repr(str(device)))
    if (picked.index or 0) >= count:
        raise InputError(
            "device", expected="a device of this machine", got=str(picked), remedy="Use --device auto or cpu."
        )
    return picked


def bf16_supported(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run on this device's own units (not emulated)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def pick_dtype(dtype: str | torch.dtype, device: torch.device, stored_in_16_bit: bool) -> torch.dtype:
    """ "auto" is bf16 where the device supports it and the checkpoint is stored in 16 bits, else float32: a float32
    checkpoint is never narrowed unasked.

    Raises:
        InputError: an unknown dtype.
    """
    if isinstance(dtype, torch.dtype):
        if dtype not in {*DTYPES.values(), torch.float64}:
            raise InputError("dtype", expected="a floating dtype of 16 to 64 bits", got=str(dtype))
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if stored_in_16_bit and bf16_supported(device) else torch.float32
    if dtype not in DTYPES:
        raise InputError("dtype", expected=f"auto or one of: {', '.join(DTYPES)}", got=repr(dtype))
    return DTYPES[dtype]
