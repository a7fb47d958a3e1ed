"""The training loop.

Enters: a `Recipe` and a run directory. Leaves: a stream of `TrainEvent`s, metrics.jsonl, checkpoints and, at the end, the
exported model in `model/`. Every source of randomness is an explicit state that the checkpoint carries: a killed run that
starts again continues with the very losses it would have had.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from unmask.core.errors import ConfigError, RunError
from unmask.models.transformer import Transformer
from unmask.train import checkpoint
from unmask.train.data import GeneratorStream, load_function
from unmask.train.events import Done, Progress, Saved, Started, TrainEvent
from unmask.train.export import export
from unmask.train.forward import Net
from unmask.train.optim import build_optimizers, lr_factor, set_lr
from unmask.train.recipe import Recipe
from unmask.train.tokenizer import MASK, train_tokenizer


class Trainer:
    """One run. Building it reads or trains the tokenizer and builds the model; `fit` resumes from the newest checkpoint."""

    def __init__(self, recipe: Recipe, out_dir: str | Path) -> None:
        self.recipe, self.out = recipe, Path(out_dir)
        self.device = pick_device(recipe.run.device)
        if recipe.run.threads:
            torch.set_num_threads(recipe.run.threads)
        self.out.mkdir(parents=True, exist_ok=True)
        self.tokenizer = self._tokenizer()
        self.model = Transformer(recipe.model.transformer(self.tokenizer.get_vocab_size()))
        self.model.init_weights(recipe.seed, recipe.model.init_std)
        self.model.to(self.device)
        self.net = Net(self.model, recipe.run.checkpointing, recipe.run.compile)
        self.objective = dataclasses.replace(
            recipe.objective, noise=dataclasses.replace(recipe.objective.noise, mask_id=self.tokenizer.token_to_id(MASK))
        )
        self.optimizers = build_optimizers(self.model, recipe.optim)
        self.stream = GeneratorStream(recipe.data, self.tokenizer, recipe.seed, recipe.run.accumulate)
        self.rng = torch.Generator().manual_seed(recipe.seed)
        self.ema = {n: p.detach().clone() for n, p in self.model.named_parameters()} if recipe.run.ema else {}
        self.step, self.tokens = 0, 0
        self.history: list[dict[str, Any]] = []

    def fit(self) -> Iterator[TrainEvent]:
        """Trains to the recipe's last step. Stop iterating at any time; the next `fit` resumes from the last checkpoint."""
        run = self.recipe.run
        self._resume()
        count = sum(p.numel() for p in self.model.parameters())
        yield Started(self.recipe.name, count, self.step, run.steps, str(self.device))
        meter = _Meter(self.tokens)
        while self.step < run.steps:
            meter.add(self._one_step())
            if self.step % run.log_every == 0 or self.step == run.steps:
                yield self._log(meter.flush(self))
            if self.step % run.save_every == 0 or self.step == run.steps:
                yield self._save()
        yield Done(self.step, self.tokens, self._export())

    def _one_step(self) -> dict[str, float]:
        cfg, run = self.recipe.optim, self.recipe.run
        set_lr(self.optimizers, lr_factor(cfg, self.step, run.steps))
        sums: dict[str, float] = {}
        for _ in range(run.accumulate):
            batch = self.stream.next().to(self.device)
            with self._autocast():
                loss = self.objective(self.net, batch, self.rng)
            (loss.total / run.accumulate).backward()  # type: ignore[no-untyped-call]
            self.tokens += batch.tokens
            for name, value in loss.metrics.items():
                sums[name] = sums.get(name, 0.0) + value / run.accumulate
        sums["grad_norm"] = self._clip()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._average()
        self.step += 1
        return sums

    def _clip(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.clip or math.inf).item()
        if not math.isfinite(norm):
            raise RunError(
                f"the gradient of step {self.step} is not finite; the last checkpoint is intact. "
                "Resume with a lower optim.lr or a smaller optim.clip"
            )
        return norm

    def _average(self) -> None:
        if self.ema:
            with torch.no_grad():
                for name, p in self.model.named_parameters():
                    self.ema[name].lerp_(p, 1 - self.recipe.run.ema)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.run.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    # --- what stays on disk ---------------------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    def weights(self) -> dict[str, Tensor]:
        """The weights that validation and export use: the moving average where there is one."""
        return self.ema or {n: p.detach() for n, p in self.model.named_parameters()}

    def _save(self) -> Saved:
        tensors: dict[str, Tensor] = {f"model.{n}": p for n, p in self.model.named_parameters()}
        tensors |= {f"ema.{n}": p for n, p in self.ema.items()}
        tensors["rng"] = self.rng.get_state()
        groups = []
        for i, optimizer in enumerate(self.optimizers):
            named, group = checkpoint.flatten_optimizer(optimizer, f"optim{i}")
            tensors |= named
            groups.append(group)
        state = {
            "tokens": self.tokens,
            "data": self.stream.state(),
            "groups": groups,
            "history": self.history,
            "shape": dataclasses.asdict(self.model.cfg),
        }
        path = checkpoint.save(self.checkpoints, self.step, tensors, state)
        checkpoint.prune(self.checkpoints, self.recipe.run.keep, None)
        return Saved(self.step, path)

    def _resume(self) -> None:
        path = checkpoint.latest(self.checkpoints)
        if path is not None and self.step == 0:
            self._restore(*checkpoint.load(path), path)
        self.history.append({"step": self.step, "steps": self.recipe.run.steps})
        _truncate(self.out / "metrics.jsonl", self.step)

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any], path: Path) -> None:
        if state["shape"] != dataclasses.asdict(self.model.cfg):
            raise ConfigError(f"{path} belongs to a model of another shape", remedy="use another run directory")
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(tensors[f"model.{name}"])
                if self.ema:
                    self.ema[name].copy_(tensors[f"ema.{name}"])
        for i, (optimizer, groups) in enumerate(zip(self.optimizers, state["groups"], strict=True)):
            peaks = [g["peak"] for g in optimizer.param_groups]
            checkpoint.restore_optimizer(optimizer, tensors, groups, f"optim{i}")
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak"] = peak
        self.rng.set_state(tensors["rng"])
        self.stream.restore(state["data"])
        self.step, self.tokens, self.history = state["step"], state["tokens"], state["history"]

    def _log(self, event: Progress) -> Progress:
        line = dataclasses.asdict(event)
        try:
            with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
        except OSError as e:
            raise RunError(f"could not write {self.out / 'metrics.jsonl'}: {e}") from e
        return event

    def _tokenizer(self) -> Tokenizer:
        cfg = self.recipe.tokenizer
        path = cfg.path or self.out / "tokenizer"
        if cfg.path is None and not (path / "tokenizer.json").exists():
            return train_tokenizer(self._texts(), cfg.vocab_size, path, self.recipe.model.max_len)
        try:
            return Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as e:  # the library raises its base class only
            raise ConfigError(f"cannot read {path / 'tokenizer.json'}", got=str(e)) from None

    def _texts(self) -> Iterator[str]:
        import random

        data = self.recipe.data
        items = load_function(data.source)(random.Random(f"{self.recipe.seed}/tokenizer"), data.stages[0].mix)
        for _ in range(self.recipe.tokenizer.samples):
            item = next(items)
            yield item.prompt
            yield item.answer

    def _export(self) -> Path:
        return export(self.model.cfg, self.weights(), self.out / "tokenizer", self.out / "model")


class _Meter:
    """Means between two log lines."""

    def __init__(self, tokens: int) -> None:
        self.sums: dict[str, float] = {}
        self.count, self.tokens, self.since = 0, tokens, time.perf_counter()

    def add(self, metrics: dict[str, float]) -> None:
        self.count += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def flush(self, trainer: Trainer) -> Progress:
        now, run = time.perf_counter(), trainer.recipe.run
        speed = (trainer.tokens - self.tokens) / max(1e-9, now - self.since)
        means = {k: v / self.count for k, v in self.sums.items()}
        factor = lr_factor(trainer.recipe.optim, trainer.step - 1, run.steps)
        self.__init__(trainer.tokens)  # type: ignore[misc]
        return Progress(trainer.step, run.steps, trainer.tokens, factor * trainer.recipe.optim.lr, speed, means)


def pick_device(name: str) -> torch.device:
    """ "auto" is cuda, then mps, then cpu."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}", expected="auto, cpu, cuda, cuda:1, mps") from None


def _truncate(path: Path, step: int) -> None:
    """Drops log lines of steps that a resumed run will do again."""
    if not path.exists():
        return
    lines = [x for x in path.read_text(encoding="utf-8").splitlines() if x and json.loads(x)["step"] <= step]
    path.write_text("".join(x + "\n" for x in lines), encoding="utf-8")
