# mypy: disallow-untyped-calls=False
"""Our classes for transformers' Auto classes: LLaDA and Dream without remote code, on transformers 4.57 to 5.x.

The only file of this room that imports transformers; nothing imports it until `register` is asked for. Loading and
saving go through our own loader, so published tensor names and every check hold here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import MaskedLMOutput

from unmask.core.errors import InputError
from unmask.models import dream, llada
from unmask.models.backbone import transformer_shape
from unmask.models.family import find_family
from unmask.models.load import inspect, load_model, locate
from unmask.models.save import SHARD_BYTES, save_checkpoint
from unmask.models.transformer import Transformer
from unmask.models.weights import FLOAT_BYTES

HUB_OPTIONS = {"cache_dir", "token", "local_files_only", "force_download"}
WITHOUT_EFFECT = {"trust_remote_code", "low_cpu_mem_usage", "use_safetensors", "attn_implementation", "adapter_kwargs"}
STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
OWN_KEYS = {"_name_or_path", "transformers_version", "dtype"}


class _PublishedConfig(PretrainedConfig):
    """A published config: absent keys take the published class's defaults, all others are kept as they are."""

    defaults: ClassVar[Mapping[str, object]] = {}

    def __init__(self, **kwargs: Any) -> None:
        given = {**self.defaults, **kwargs}
        if kwargs.get("rope_parameters") is not None and "rope_theta" not in kwargs:
            given.pop("rope_theta", None)  # transformers 5 writes it inside rope_parameters only
        if given.get("rope_scaling") is None:
            given.pop("rope_scaling", None)  # transformers 5 warns about the key even when it is null
        super().__init__(**given)

    def published(self) -> dict[str, Any]:
        """The keys of config.json: what the published format has, without transformers' own defaults."""
        base = PretrainedConfig().to_dict()
        mine = self.to_dict()
        kept = {k: v for k, v in mine.items() if k in self.defaults or k not in base or v != base[k]}
        return {k: v for k, v in kept.items() if k not in OWN_KEYS}


class LLaDAConfig(_PublishedConfig):
    """`model_type: llada`."""

    model_type = "llada"
    defaults = llada.DEFAULTS
    attribute_map = {"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:  # its own: transformers 5 replaces an inherited one
        super().__init__(**kwargs)


class DreamConfig(_PublishedConfig):
    """`model_type: Dream`."""

    model_type = "Dream"
    defaults = dream.DEFAULTS

    def __init__(self, **kwargs: Any) -> None:  # its own: transformers 5 replaces an inherited one
        super().__init__(**kwargs)


class _DiffusionLM(PreTrainedModel):
    """The backbone under transformers' model interface: ids in, logits of every position out (unshifted)."""

    published_class: ClassVar[type[_PublishedConfig]]
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["Layer"]  # noqa: RUF012

    def __init__(self, config: _PublishedConfig) -> None:
        super().__init__(config)
        published = config.published()
        family = find_family(published)
        self.traits = family.traits(published)
        self.model = Transformer(transformer_shape(family.shape(published), "the transformers bridge"))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | str | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """Logits [B, T, V] in the model's dtype.

        Args:
            input_ids: [B, T], holes are the mask id. attention_mask: [B, T], 1 = real token; padded keys are not
                attended. position_ids: [B, T] or None for 0..T-1.
            labels: [B, T] token ids, -100 where no loss is wanted; the family's shift is applied.
        """
        if isinstance(attention_mask, Tensor) and attention_mask.shape != input_ids.shape:
            got = str(list(attention_mask.shape))
            raise InputError("attention_mask", expected=f"shape {list(input_ids.shape)}", got=got)
        mask = attention_mask if isinstance(attention_mask, Tensor) else None
        logits = self.model.logits(self.model(input_ids, mask, position_ids))
        loss = None if labels is None else self._loss(logits, labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return MaskedLMOutput(loss=loss, logits=logits)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the labelled positions."""
        shift = self.traits.shift
        rows = logits[:, : logits.shape[1] - shift].flatten(0, 1)
        return F.cross_entropy(rows.float(), labels[:, shift:].flatten(), ignore_index=-100)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed

    def get_output_embeddings(self) -> nn.Module | None:
        return self.model.head

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: a tied backbone has one matrix, an untied one must stay so."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any
    ) -> Any:
        """The model of a directory or hub id, by our loader.

        Args:
            dtype (or torch_dtype): as stored when not given. device_map: one device, or "auto".
            config, revision, cache_dir, token, local_files_only, force_download, output_loading_info: as usual.

        Raises:
            InputError: an option that has no meaning here. CheckpointError: anything wrong with the checkpoint.
        """
        given = kwargs.pop("config", None) or (args[0] if args else None)
        revision, info = kwargs.pop("revision", None), kwargs.pop("output_loading_info", False)
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        device = _device(kwargs.pop("device_map", None))
        hub = {k: kwargs.pop(k) for k in sorted(HUB_OPTIONS & set(kwargs))}
        _refuse(kwargs)
        path = locate(pretrained_model_name_or_path, revision, hub)
        config = given if isinstance(given, _PublishedConfig) else cls.published_class.from_pretrained(path)
        assert isinstance(config, _PublishedConfig)
        loaded = load_model(path, dtype=_dtype(dtype, path, config), device=device, config=config.published())
        config.name_or_path = str(pretrained_model_name_or_path)
        with torch.device("meta"):
            model = cls(config)
        model.model, model.traits = loaded.model, loaded.traits
        config.dtype = loaded.model.head_weight.dtype
        empty: dict[str, list[str]] = {
            "missing_keys": [],
            "unexpected_keys": [],
            "mismatched_keys": [],
            "error_msgs": [],
        }
        return (model.eval(), empty) if info else model.eval()

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """config.json and safetensors under the published names, into the directory beside what is there.

        Args:
            state_dict: gathered parameters to save instead of the model's own. max_shard_size: bytes, or "5GB".
        """
        state, size = kwargs.pop("state_dict", None), kwargs.pop("max_shard_size", SHARD_BYTES)
        if kwargs.pop("safe_serialization", True) is False:
            raise InputError("safe_serialization", expected="true", got="false", remedy="Pickles are never written.")
        if not is_main_process:
            return
        parameters = {k.removeprefix("model."): v for k, v in state.items()} if state else None
        config = self.config.published() | {"architectures": [find_family(self.config.published()).architecture]}
        save_checkpoint(self.model, config, save_directory, merge=True, parameters=parameters, shard_bytes=_bytes(size))


def _refuse(options: Mapping[str, Any]) -> None:
    unknown = sorted(
        k for k, v in options.items() if k not in WITHOUT_EFFECT and not k.startswith("_") and v is not None
    )
    if unknown:
        known = ", ".join(sorted(HUB_OPTIONS | {"config", "device_map", "dtype", "revision"}))
        raise InputError("from_pretrained", expected=f"options of: {known}", got=", ".join(unknown))


def _device(device_map: Any) -> str | torch.device:
    if device_map is None:
        return "cpu"
    if isinstance(device_map, dict) and set(device_map) == {""}:
        device_map = device_map[""]
    if isinstance(device_map, int):
        return f"cuda:{device_map}"
    if isinstance(device_map, str | torch.device):
        return device_map
    raise InputError("device_map", expected='one device, such as "cuda" or {"": 0}, or "auto"', got=repr(device_map))


def _dtype(dtype: str | torch.dtype | None, path: Path, config: _PublishedConfig) -> str | torch.dtype:
    """What was asked for, else the widest dtype the files hold (transformers 5's own rule)."""
    if dtype is not None and dtype != "auto":
        return dtype
    stored = inspect(path, config.published()).stored
    return STORED[max(stored, key=lambda d: FLOAT_BYTES[d])] if len(stored) == 1 else torch.float32


def _bytes(size: int | str) -> int:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
    text = str(size).strip().upper()
    number, unit = next(((text.removesuffix(u), n) for u, n in units.items() if text.endswith(u)), (text, 1))
    if not number.strip().isdecimal() or int(number) < 1:
        raise InputError("max_shard_size", expected='a number of bytes, or text such as "5GB"', got=repr(size))
    return int(number) * unit


class LLaDAModelLM(_DiffusionLM):
    """LLaDA for AutoModel, AutoModelForMaskedLM and AutoModelForCausalLM (the class its checkpoints name)."""

    config_class = published_class = LLaDAConfig


class DreamModel(_DiffusionLM):
    """Dream for AutoModel and AutoModelForMaskedLM."""

    config_class = published_class = DreamConfig


def register() -> None:
    """Makes AutoConfig and the Auto model classes know `llada` and `Dream`; calling it again changes nothing."""
    for config, model in ((LLaDAConfig, LLaDAModelLM), (DreamConfig, DreamModel)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForMaskedLM.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(LLaDAConfig, LLaDAModelLM, exist_ok=True)
