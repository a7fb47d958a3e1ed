"""The training loop.

Enters: a `Recipe` and a run directory. Leaves: a stream of `TrainEvent`s, metrics.jsonl, checkpoints and, at the end,
the exported model in `model/`. Every source of randomness is an explicit state that the checkpoint carries: a killed
run that starts again continues with the very losses it would have had.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.core.errors import ConfigError, RunError
from unmask.models.backbone import Backbone, backbone, transformer_of
from unmask.models.load import LoadedCheckpoint, load_model
from unmask.ops.placement import pick_device
from unmask.text.codec import Codec
from unmask.train import checkpoint
from unmask.train.data import load_function, special
from unmask.train.events import Done, Progress, Saved, Started, TrainEvent, Validated
from unmask.train.export import export, published_config, tokenizer_files, with_ends
from unmask.train.forward import Net
from unmask.train.log import Log
from unmask.train.lora import folded, inject
from unmask.train.objectives.autoregressive import Autoregressive
from unmask.train.objectives.embedding_diffusion import EmbeddingDiffusion
from unmask.train.optim import build_optimizers, lr_factor, set_lr
from unmask.train.recipe import BiRWKVModelConfig, FineTuneConfig, Recipe
from unmask.train.tokenizer import EOS, MASK, train_tokenizer
from unmask.train.validate import better, nelbo, watched

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Trainer:
    """One run.

    Building it checks the data, reads or trains the tokenizer and builds the model. `fit` resumes from the newest
    checkpoint of the run directory, if there is one.

    Args:
        out_dir: the run directory. model_dir: where the finished model goes, beside what is there; None is `model/` in
            the run directory. validate_last: whether the last step is validated too; not where the caller measures
            the written model itself.
    """

    def __init__(
        self, recipe: Recipe, out_dir: str | Path, model_dir: Path | None = None, validate_last: bool = True
    ) -> None:
        self.recipe, self.out, self.model_dir, self.validate_last = recipe, Path(out_dir), model_dir, validate_last
        self.device = pick_device(recipe.run.device)
        self.stream = recipe.data.open(recipe.seed, recipe.run.accumulate)
        self.metric = self._metric()
        if recipe.run.threads:
            torch.set_num_threads(recipe.run.threads)
        make_directory(self.out)
        cfg = recipe.model
        self.parent = load_parent(cfg, self.device) if isinstance(cfg, FineTuneConfig) else None
        self.tokenizer_dir = self._tokenizer_dir()
        self.codec = Codec.from_dir(self.tokenizer_dir)
        self.stream.bind(self.codec)
        self.mask_id, self.eos_id = self._mask_id(), special(self.codec, EOS)
        self.objective = recipe.objective.bound(self.mask_id, self.eos_id)
        self.model = self._model().to(self.device)
        self._check_length()
        self.net = Net(self.model, recipe.run.checkpointing, recipe.run.compile)
        self.config = self._config()
        self.optimizers = build_optimizers(self.model, recipe.optim)
        self.rng = torch.Generator().manual_seed(recipe.seed)
        self.ema = {n: p.detach().clone() for n, p in self._trained()} if recipe.run.ema else {}
        self.step, self.tokens, self.positions, self.skipped = 0, 0, 0.0, 0
        self.best: tuple[int, float] | None = None
        self.history: list[dict[str, Any]] = []

    # --- the loop -----------------------------------------------------------------------------------------------------

    def fit(self) -> Iterator[TrainEvent]:
        """Trains to the recipe's last step. Stop iterating at any time; the next `fit` resumes from the last
        checkpoint.
        """
        run = self.recipe.run
        self._resume()
        count = sum(p.numel() for _, p in self._trained())
        with Log(self.out, self.step, run.tensorboard) as log:
            yield Started(self.recipe.name, count, self.step, run.steps, str(self.device))
            meter = _Meter(self.tokens)
            while self.step < run.steps:
                meter.add(self._one_step())
                for event in self._due(meter):
                    log(event)
                    yield event
        yield Done(self.step, self.tokens, round(self.positions), self._export())

    def _due(self, meter: _Meter) -> Iterator[Progress | Validated | Saved]:
        """What this step asks for: log line, validation, checkpoint."""
        run, check = self.recipe.run, self.recipe.validate
        last = self.step == run.steps
        if last or self.step % run.log_every == 0:
            rate = lr_factor(self.recipe.optim, self.step - 1, run.steps) * self.recipe.optim.lr
            yield meter.flush(self.step, run.steps, self.tokens, rate)
        if check is not None and (self.validate_last if last else self.step % check.every == 0):
            event = self._validate()
            yield event
            if event.best:
                yield self._save()
                return
        if last or self.step % run.save_every == 0:
            yield self._save()

    def _one_step(self) -> dict[str, float]:
        cfg, run = self.recipe.optim, self.recipe.run
        set_lr(self.optimizers, lr_factor(cfg, self.step, run.steps))
        found: list[dict[str, float]] = []
        for _ in range(run.accumulate):
            batch = self.stream.next().to(self.device)
            with self._autocast():
                loss = self.objective(self.net, batch, self.rng)
            (loss.total / run.accumulate).backward()
            self.tokens += batch.tokens
            self.positions += loss.metrics["positions"]
            found.append(loss.metrics)
        sums = means(found)
        sums["grad_norm"] = self._clip()
        if not math.isfinite(sums["grad_norm"]):
            return self._skip()
        if self.stream.left_out:
            sums["left_out"] = float(self.stream.left_out)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._average()
        self.step += 1
        return sums

    def _clip(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.clip or math.inf).item()
        if not math.isfinite(norm) and self.skipped >= self.recipe.run.skip_bad:
            earlier = f" after {self.skipped} that were left out" if self.skipped else ""
            raise RunError(
                f"the gradient of step {self.step} is not finite{earlier}; the last checkpoint is intact. "
                "Resume with a lower optim.lr or a smaller optim.clip"
            )
        return norm

    def _skip(self) -> dict[str, float]:
        """A step whose gradient is no number changes nothing but the count."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.skipped += 1
        self.step += 1
        return {"skipped": float(self.skipped)}

    def _average(self) -> None:
        if self.ema:
            with torch.no_grad():
                for name, p in self._trained():
                    self.ema[name].lerp_(p, 1 - self.recipe.run.ema)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.run.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    # --- held-out numbers ---------------------------------------------------------------------------------------------

    def _validate(self) -> Validated:
        check = self.recipe.validate
        assert check is not None
        metrics: dict[str, float] = {}
        with self._averaged(), torch.no_grad():
            if check.data is not None:
                stream = check.data.open(self.recipe.seed)
                stream.bind(self.codec)
                batches = [stream.next().to(self.device) for _ in range(check.batches)]
                with self._autocast():
                    metrics |= nelbo(self.objective, self.net, batches, check.rounds, self.recipe.seed)
            if self.metric is not None:
                metrics |= self.metric(self.model, self.config, self.tokenizer_dir, **(check.metric_args or {}))
        value = watched(metrics, check.watched)
        best = better(check.watched, value, self.best[1] if self.best else None)
        if best:
            self.best = (self.step, value)
        return Validated(self.step, metrics, best)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The moving average in the model's place, where there is one."""
        mine = {n: p.detach().clone() for n, p in self._trained()} if self.ema else {}
        self._load_weights(self.ema)
        try:
            yield
        finally:
            self._load_weights(mine)

    @property
    def _lora(self) -> dict[str, Any] | None:
        """The adapters in JSON form: another alpha or another target would read the same tensors differently."""
        lora = self.recipe.model.lora if isinstance(self.recipe.model, FineTuneConfig) else None
        return None if lora is None else {**dataclasses.asdict(lora), "targets": sorted(lora.targets)}

    def _load_weights(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self._trained():
                if weights:
                    p.copy_(weights[name])

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The parameters that learn: all of them, or the adapters."""
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    # --- what stays on disk -------------------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    def _save(self) -> Saved:
        tensors: dict[str, Tensor] = {f"model.{n}": p for n, p in self._trained()}
        tensors |= {f"ema.{n}": p for n, p in self.ema.items()}
        tensors["rng"] = self.rng.get_state()
        groups = []
        for i, optimizer in enumerate(self.optimizers):
            named, group = checkpoint.flatten_optimizer(optimizer, f"optim{i}")
            tensors |= named
            groups.append(group)
        state = {
            "tokens": self.tokens,
            "positions": self.positions,
            "skipped": self.skipped,
            "data": self.stream.state(),
            "groups": groups,
            "history": self.history,
            "best": self.best,
            "shape": dataclasses.asdict(self.model.cfg),
            "lora": self._lora,
        }
        path = checkpoint.save(self.checkpoints, self.step, tensors, state)
        checkpoint.prune(self.checkpoints, self.recipe.run.keep, self.best[0] if self.best else None)
        return Saved(self.step, path)

    def _resume(self) -> None:
        path = checkpoint.latest(self.checkpoints)
        if path is not None:
            self._restore(*checkpoint.load(path), path)
        self.history.append({"step": self.step, "steps": self.recipe.run.steps})

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any], path: Path) -> None:
        was, now = _plain(state["shape"]), _plain(dataclasses.asdict(self.model.cfg))
        if was != now:
            odd = [name for name in now if was.get(name) != now[name]]
            raise ConfigError(
                f"{path} belongs to a model of another shape",
                expected=", ".join(f"{name} {was.get(name)}" for name in odd),
                got=", ".join(str(now[name]) for name in odd),
                remedy="use another run directory",
            )
        if state.get("lora", self._lora) != self._lora:
            expected, got = f"model.lora {state['lora']}, as it began", str(self._lora)
            raise ConfigError(f"{path} has other adapters", expected=expected, got=got)
        if state["step"] > self.recipe.run.steps:
            raise ConfigError(
                f"{path} is past run.steps = {self.recipe.run.steps}",
                expected=f"at least the {state['step']} steps that are done",
                got=str(self.recipe.run.steps),
                remedy="Ask for more steps.",
            )
        try:
            self._load_weights({n: tensors[f"model.{n}"] for n, _ in self._trained()})
            self.ema = {n: tensors[f"ema.{n}"].to(self.device) for n in self.ema}
            for i, (optimizer, groups) in enumerate(zip(self.optimizers, state["groups"], strict=True)):
                checkpoint.restore_optimizer(optimizer, tensors, groups, f"optim{i}")
        except (KeyError, ValueError) as e:
            raise ConfigError(
                f"{path} was made with another optimizer or without ema", got=str(e), remedy="use another run directory"
            ) from None
        self.rng.set_state(tensors["rng"])
        self.stream.restore(state["data"])
        self.step, self.tokens, self.history = state["step"], state["tokens"], state["history"]
        self.positions, self.skipped = state["positions"], state.get("skipped", 0)
        self.best = (int(state["best"][0]), float(state["best"][1])) if state.get("best") else None

    def _export(self) -> Path:
        """The finished model: the moving average where there is one, adapters folded in."""
        weights = folded(self.model, {n: p.detach() for n, p in self.model.named_parameters()} | self.ema)
        files = tokenizer_files(self.tokenizer_dir)
        target, beside = self.model_dir or self.out / "model", self.model_dir is not None
        kind = DTYPES[self.recipe.run.export]
        return export(self.model, self.config, weights, files, target, self.recipe.recommended, kind, beside)

    # --- parts --------------------------------------------------------------------------------------------------------

    def _model(self) -> Backbone:
        cfg = self.recipe.model
        if isinstance(cfg, FineTuneConfig):
            assert self.parent is not None
            model = self.parent.model
            if cfg.lora is not None:
                inject(
                    transformer_of(model, "model.lora"),
                    cfg.lora,
                    self.recipe.seed,
                    () if self.mask_id is None else (self.mask_id,),
                )
            return model.train()
        model = backbone(
            cfg.shape(self._config()) if isinstance(cfg, BiRWKVModelConfig) else cfg.transformer(self.codec.size)
        )
        model.init_weights(self.recipe.seed, cfg.init_std)
        return model

    def _config(self) -> dict[str, Any]:
        """config.json of the model that comes out."""
        cfg, objective = self.recipe.model, self.objective
        if isinstance(cfg, BiRWKVModelConfig):
            assert isinstance(objective, EmbeddingDiffusion) and self.mask_id is not None
            return cfg.published(self.codec.size, objective, (self.mask_id, self.eos_id))
        base = with_ends(self.parent) if self.parent is not None else {}
        return published_config(self.model.cfg, objective, (self.mask_id, self.eos_id), base)

    def _tokenizer_dir(self) -> Path:
        """The recipe's tokenizer, the fine-tuned model's own, or one trained on the run's data and kept in the run."""
        cfg, model = self.recipe.tokenizer, self.recipe.model
        if cfg.path is not None:
            return cfg.path
        if isinstance(model, FineTuneConfig):
            assert self.parent is not None
            if self.parent.tokenizer_dir is None:
                raise ConfigError(f"{model.path} has no tokenizer", remedy="name one under tokenizer.path")
            return self.parent.tokenizer_dir
        own = self.out / "tokenizer"
        if not (own / "tokenizer.json").exists():
            train_tokenizer(islice(self.stream.texts(), 2 * cfg.samples), cfg.vocab_size, own, model.max_len)
            self.stream = self.recipe.data.open(self.recipe.seed, self.recipe.run.accumulate)
        return own

    def _check_length(self) -> None:
        """Rows longer than the context would train positions that decoding refuses."""
        length, most = getattr(self.recipe.data, "length", None), self.model.cfg.max_len
        if length is not None and length > most:
            raise ConfigError(
                "data.length is out of range", expected=f"at most {most} (model.max_len)", got=str(length)
            )

    def _mask_id(self) -> int | None:
        """The checkpoint's own mask id, else the tokenizer's mask token; autoregressive models need none."""
        own = None if self.parent is None else self.parent.traits.mask_id
        found = own if own is not None else self.codec.token_id(MASK)
        if found is None:
            found = self.codec.named("mask_token")
        if found is None and not isinstance(self.recipe.objective, Autoregressive):
            return special(self.codec, MASK)
        return found

    def _metric(self) -> Any:
        check = self.recipe.validate
        if check is None:
            return None
        if check.data is not None:
            check.data.open(self.recipe.seed)
        return load_function(check.metric) if check.metric else None


def _plain(shape: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: no tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in shape.items()}


def means(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of every name, over those that have it: not every batch holds a row of every kind."""
    names = dict.fromkeys(name for metrics in found for name in metrics)
    own = {name: [metrics[name] for metrics in found if name in metrics] for name in names}
    return {name: sum(values) / len(values) for name, values in own.items()}


class _Meter:
    """Means between two log lines."""

    def __init__(self, tokens: int) -> None:
        self._restart(tokens)

    def _restart(self, tokens: int) -> None:
        self.found: list[dict[str, float]] = []
        self.tokens, self.since = tokens, time.perf_counter()

    def add(self, metrics: dict[str, float]) -> None:
        self.found.append(metrics)

    def flush(self, step: int, steps: int, tokens: int, lr: float) -> Progress:
        speed = (tokens - self.tokens) / max(1e-9, time.perf_counter() - self.since)
        found = means(self.found)
        self._restart(tokens)
        return Progress(step, steps, tokens, lr, speed, found)


def make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"cannot use the run directory {path}", got=e.strerror or str(e)) from None


def load_parent(cfg: FineTuneConfig, device: torch.device) -> LoadedCheckpoint:
    """The checkpoint a run starts from, in float32."""
    return load_model(cfg.path, cfg.revision, torch.float32, device)
