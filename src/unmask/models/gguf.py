"""A GGUF file of a Llama- or Qwen2-shaped model -> an ordinary checkpoint directory. Needs the extra `gguf`.

Enters: one .gguf file. Leaves: config.json and safetensors under the published names, numbers dequantised. Tensors are
read one by one (large ones in slices) into the fused parameters: peak memory is about one model in the stored dtype.
The tokenizer in the file's metadata is turned into files by `unmask.text.gguf_tokenizer`; `unmask.pipeline.gguf` does
both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmask.core.errors import CheckpointError
from unmask.models.backbone import empty_model
from unmask.models.family import Piece, WeightNames, find_family, pieces
from unmask.models.load import match
from unmask.models.save import save_checkpoint
from unmask.models.weights import AGAIN, Stored

MAGIC = b"GGUF"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
"""Architectures that are read; each is also the model_type of the checkpoint that is written."""
NAMES = WeightNames(
    embed="token_embd.weight",
    final_norm="output_norm.weight",
    head="output.weight",
    layer="blk.{i}.",
    attn_norm="attn_norm",
    mlp_norm="ffn_norm",
    q="attn_q",
    k="attn_k",
    v="attn_v",
    out="attn_output",
    gate="ffn_gate",
    up="ffn_up",
    down="ffn_down",
)
PLAIN = {"F16": torch.float16, "BF16": torch.bfloat16}
SLICE = 16 << 20
"""Numbers that are dequantised together."""


@dataclass(frozen=True)
class GgufFile:
    """What a file holds, by key and by name. metadata: plain values; tensors: mapped, as the package reads them."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]


def is_gguf(path: str | Path) -> bool:
    """Whether the file begins as a GGUF file does."""
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_gguf(path: str | Path) -> GgufFile:
    """Metadata and tensor table of a file; no tensor is read.

    Raises:
        CheckpointError: the gguf package is missing, or the file is foreign, damaged, truncated or one part of several.
    """
    path, gguf = Path(path), _package()
    if not path.is_file() or not is_gguf(path):
        got = "another format" if path.is_file() else "a folder" if path.is_dir() else "nothing there"
        raise CheckpointError(str(path), expected="a .gguf file", got=got)
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, KeyError, IndexError, OverflowError, OSError) as error:
        got = f"a damaged or truncated one ({error or type(error).__name__})"
        raise CheckpointError(str(path), expected="a whole GGUF file", got=got, remedy=AGAIN) from error
    if reader.byte_order != "I":
        raise CheckpointError(str(path), expected="the byte order of this machine", got="the other one")
    if metadata.get("split.count", 1) > 1:
        remedy = "Join the parts first (llama.cpp: llama-gguf-split --merge)."
        got = f"one part of {metadata['split.count']}"
        raise CheckpointError(str(path), expected="a whole model", got=got, remedy=remedy)
    return GgufFile(path, metadata, {t.name: t for t in reader.tensors})


def gguf_config(file: GgufFile) -> dict[str, Any]:
    """config.json with the published keys of the architecture.

    Raises:
        CheckpointError: another architecture, a missing key, or something our backbone does not compute.
    """
    kind = file.metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        expected = " or ".join(ARCHITECTURES)
        remedy = "Only Llama- and Qwen2-shaped models are read."
        raise CheckpointError(f"{file.path}: architecture", expected=expected, got=repr(kind), remedy=remedy)
    _refuse_variants(file, kind)
    heads = _value(file, f"{kind}.attention.head_count")
    dim = _value(file, f"{kind}.embedding_length")
    config = {
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "hidden_act": "silu",
        "hidden_size": dim,
        "intermediate_size": _value(file, f"{kind}.feed_forward_length"),
        "num_hidden_layers": _value(file, f"{kind}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.metadata.get(f"{kind}.attention.head_count_kv", heads),
        "max_position_embeddings": _value(file, f"{kind}.context_length"),
        "rms_norm_eps": _short(_value(file, f"{kind}.attention.layer_norm_rms_epsilon")),
        "rope_theta": _short(file.metadata.get(f"{kind}.rope.freq_base", 10_000.0)),
        "tie_word_embeddings": NAMES.head not in file.tensors,
        "vocab_size": _vocab_size(file),
        **{f"{role}_token_id": file.metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in _IDS.items()},
    }
    if kind == "llama":
        config |= {
            "attention_bias": "blk.0.attn_q.bias" in file.tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
            "head_dim": file.metadata.get(f"{kind}.attention.key_length"),
        }
    return {k: v for k, v in config.items() if v is not None}


_IDS = {"bos": "bos", "eos": "eos", "pad": "padding"}


def convert_gguf(
    file: GgufFile, out: str | Path, dtype: torch.dtype | None = None, files: Mapping[str, bytes] | None = None
) -> Path:
    """Writes `out` as a checkpoint directory.

    Args:
        dtype: store as this. None keeps float16 and bfloat16 weights as they are, and stores quantised ones as float32,
            so that no number changes.
        files: further files by name (the tokenizer's).

    Raises:
        CheckpointError: a file that is no such model, a quantisation the package cannot read, or a target in the way;
            nothing is written.
    """
    config = gguf_config(file)
    shape = find_family(config).shape(config)
    wanted = tuple(pieces(NAMES, shape))
    kinds = {n: t.tensor_type.name for n, t in file.tensors.items() if n != ROPE_FACTORS}
    table = {n: Stored(file.path, kind, _shape(file.tensors[n])) for n, kind in kinds.items()}
    match(file.path, wanted, table)
    _check_kinds(file, kinds)
    found = {kinds[p.published] for p in wanted if len(p.shape) == 2}
    kept = PLAIN.get(found.copy().pop(), torch.float32) if len(found) == 1 else torch.float32
    model = empty_model(shape, dtype or kept, torch.device("cpu"))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for piece in wanted:
            target = parameters[piece.parameter][piece.start : piece.start + piece.shape[0]]
            for start, rows in _rows(file, piece, _turned_heads(config, piece)):
                target[start : start + len(rows)].copy_(rows)
    return save_checkpoint(model, config, out, files=files)


# ---- the file's peculiarities ----------------------------------------------------------------------------------------

ROPE_FACTORS = "rope_freqs.weight"


def _turned_heads(config: Mapping[str, Any], piece: Piece) -> int:
    """Heads of a projection whose rows the file keeps in llama.cpp's rotary order (pairs side by side), else 0.

    It writes q and k of the llama architecture that way, and everything else in the order of the published weights.
    """
    name = piece.published.split(".")[-2]
    if config["model_type"] != "llama" or name not in (NAMES.q, NAMES.k):
        return 0
    return int(config["num_attention_heads" if name == NAMES.q else "num_key_value_heads"])


def _rows(file: GgufFile, piece: Piece, heads: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows in float32) of one tensor, in the published order of rows."""
    tensor = file.tensors[piece.published]
    width = piece.shape[1] if len(piece.shape) == 2 else 1
    if heads:
        whole = _dequantised(tensor, slice(None))
        halves = whole.unflatten(0, (heads, piece.shape[0] // heads // 2, 2))
        yield 0, halves.transpose(1, 2).reshape(piece.shape)
        return
    step = max(1, SLICE // width)
    for start in range(0, piece.shape[0], step):
        yield start, _dequantised(tensor, slice(start, start + step))


def _dequantised(tensor: Any, rows: slice) -> Tensor:
    found = _package().dequantize(tensor.data[rows], tensor.tensor_type)
    return torch.from_numpy(np.array(found, dtype=np.float32))  # a copy: the file is mapped read-only


def _check_kinds(file: GgufFile, kinds: Mapping[str, str]) -> None:
    """Every kind of number is tried on one row before anything is allocated."""
    for kind, name in {kind: name for name, kind in kinds.items()}.items():
        try:
            _dequantised(file.tensors[name], slice(0, 1))
        except NotImplementedError:
            remedy = "Take the file in another quantisation, such as Q8_0 or F16."
            raise CheckpointError(
                f"{file.path}: {name}", expected="numbers that the gguf package reads", got=kind, remedy=remedy
            ) from None


def _refuse_variants(file: GgufFile, kind: str) -> None:
    """What changes the numbers and is not implemented, by its key."""
    meta = file.metadata
    rotary = meta.get(f"{kind}.rope.dimension_count")
    width = _value(file, f"{kind}.embedding_length") // max(1, _value(file, f"{kind}.attention.head_count"))
    refused = (
        ("rope.scaling.type", (None, "none")),
        ("rope.scale_linear", (None, 1.0)),
        ("rope.dimension_count", (None, meta.get(f"{kind}.attention.key_length", width))),
        ("expert_count", (None, 0)),
        ("attention.sliding_window", (None, 0)),
        ("attention.causal", (None, True)),
    )
    for key, allowed in refused:
        value = rotary if key == "rope.dimension_count" else meta.get(f"{kind}.{key}")
        if value not in allowed:
            expected = " or ".join("no such key" if a is None else repr(a) for a in allowed)
            remedy = "This variant of the model is not implemented."
            raise CheckpointError(f"{file.path}: {kind}.{key}", expected=expected, got=repr(value), remedy=remedy)
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is not None and not bool((_dequantised(factors, slice(None)) == 1).all()):
        remedy = "RoPE scaling (Llama 3.1 and later) is not implemented."
        raise CheckpointError(f"{file.path}: {ROPE_FACTORS}", expected="only ones", got="factors", remedy=remedy)


def _value(file: GgufFile, key: str) -> Any:
    if key not in file.metadata:
        raise CheckpointError(f"{file.path}: {key}", expected="a number in the metadata", got="no such key")
    return file.metadata[key]


def _vocab_size(file: GgufFile) -> int:
    """Rows of the embedding; the file's own count may be missing or that of the tokenizer."""
    if NAMES.embed not in file.tensors:
        raise CheckpointError(f"{file.path}: {NAMES.embed}", expected="the embedding", got="no such tensor")
    return int(file.tensors[NAMES.embed].shape[-1])


def _shape(tensor: Any) -> tuple[int, ...]:
    """The file counts the fastest dimension first."""
    return tuple(int(n) for n in reversed(tensor.shape.tolist()))


def _short(value: float) -> float:
    """The shortest number that a float32 stands for: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _package() -> Any:
    try:
        import gguf
    except ModuleNotFoundError:
        raise CheckpointError(
            "GGUF files", expected="the `gguf` package", got="none installed", remedy="pip install 'unmask[gguf]'"
        ) from None
    return gguf
