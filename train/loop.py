"""The training loop: steps, metrics, states, and the checkpoint at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from torch import nn

from edgeclip.errors import CheckpointError, NonFiniteError, UsageError
from edgeclip.quantize.fakequant import freeze
from edgeclip.train import distributed, optimizer, qat
from edgeclip.train.checkpoints import Origin, save_checkpoint
from edgeclip.train.data import augment
from edgeclip.train.data.batch import Batch
from edgeclip.train.data.loader import prefetched
from edgeclip.train.distributed import World
from edgeclip.train.evaluate import Evaluator, Score
from edgeclip.train.metrics import Metrics
from edgeclip.train.models.clip import Clip
from edgeclip.train.objective import Objective
from edgeclip.train.recipe import Recipe, resolve
from edgeclip.train.setup import TOKENIZER, Begin, Parts, assemble
from edgeclip.train.state import Facts, State, collect, newest_state, restore, write_state
from edgeclip.train.step import Step, autocast, read_once
from edgeclip.train.summary import RECIPE, SCORES

CHECKPOINT, STATES = "checkpoint", "states"
FREE = {"output", "data.root", "data.cache_dir", "data.about", "model.licence"} | {
    f"loop.{key}" for key in ("threads", "device", "save_every", "keep", "log_every", "tensorboard", "recalibrate")
}
"""Keys that a resumed run may change: they do not change the steps. So may all of `evaluate`."""

Logged = dict[str, Any]
OnStep = Callable[[int, Logged], None]


@contextmanager
def start(recipe: Recipe, *, resume: bool = False, begin: Begin = lambda name: None) -> Iterator[Run]:
    """A run, ready for its first step or for the one after its newest state.

    Args:
        resume: go on from the newest state; begins anew where there is none yet.
        begin: called with the name of each stage of the preparation.

    Raises:
        UsageError: the run's folder has states and `resume` is false, or they are another recipe's.
        EdgeClipError: as reading the data and the models does.
    """
    with distributed.join(recipe.loop.device) as world:
        if recipe.loop.threads:
            torch.set_num_threads(recipe.loop.threads)
        distributed.split(recipe.loop.batch_size, world)
        folder = Path(recipe.output) / recipe.name
        state = _find_state(folder, recipe, resume=resume)
        if world.first:
            folder.mkdir(parents=True, exist_ok=True)
        run = Run(recipe, assemble(recipe, folder, world, begin), world, folder)
        if state is not None:
            run.restore(state)
        yield run


class Run:
    """A model in training."""

    def __init__(self, recipe: Recipe, parts: Parts, world: World, folder: Path) -> None:
        self.recipe = recipe
        self.parts = parts
        self.world = world
        self.folder = folder
        self.step = 0
        """Steps that are done."""
        self.steps = recipe.loop.steps or _steps(recipe, parts)
        """Steps in all."""
        self.scores: list[Score] = []
        """Of the trained model, once it is."""
        self.clip: Clip = parts.clip.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if recipe.quantize is not None:
            batches = islice(parts.loader.batches(0), recipe.quantize.observe_batches)
            qat.initialise(self.clip, batches, partial(self._show, self.clip, texts=True))
        self.objective = Objective(recipe, parts.distiller).to(world.device)
        self.optimizer = optimizer.adamw([self.clip, self.objective], recipe.optimizer)
        self.average = optimizer.averaged(self.clip, recipe.loop.ema) if recipe.loop.ema else None
        half = recipe.loop.precision == "fp16"
        self.scaler = torch.amp.GradScaler(world.device.type) if half else None
        self._compute = Step(
            self.clip,
            self.objective,
            parts.preprocess,
            world,
            precision=recipe.loop.precision,
            micro_batch=recipe.loop.micro_batch,
            scaler=self.scaler,
            teach=parts.teachers,
        )
        self._evaluator = _evaluator(recipe, parts)
        distributed.same_everywhere(self.clip, world)
        distributed.same_everywhere(self.objective, world)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All that has weights, by its name in states."""
        named: dict[str, nn.Module] = {"model": self.clip, "objective": self.objective}
        return named if self.average is None else {**named, "average": self.average}

    @property
    def checkpoint(self) -> Path:
        """Where the trained model is, once it is."""
        return self.folder / CHECKPOINT

    def train(self, on_step: OnStep = lambda step, values: None) -> Path:
        """Go on to the end; returns the folder of the checkpoint.

        Args:
            on_step: called after each step with its number, from 1, and what it measured.

        Raises:
            NonFiniteError: the loss or a gradient is NaN or infinite; earlier states are intact.
            ResourceError: the disk is full; earlier states are intact.
        """
        if self.world.first:
            (self.folder / TOKENIZER).write_bytes(self.parts.tokenizer)
            (self.folder / RECIPE).write_bytes(msgspec.json.format(msgspec.json.encode(self.recipe)))
        with self._metrics() as metrics:
            batches = self.parts.loader.batches(self.step)
            for batch in prefetched(batches) if self.step < self.steps else ():
                began = time.perf_counter()
                values = self.advance(batch.to(self.world.device))
                values |= {"step_s": round(time.perf_counter() - began, 4)}
                self._report(metrics, values, on_step)
                if self.step >= self.steps:
                    break
            self.finish()
            self.scores = self.evaluate()
            self._report_scores(metrics, self.scores)
            if self.scores:
                (self.folder / SCORES).write_bytes(msgspec.json.format(msgspec.json.encode(self.scores)))
        return self.checkpoint

    def advance(self, batch: Any) -> Logged:
        """One step."""
        rate = optimizer.learning_rate(self.step, self.steps, self.recipe.optimizer)
        optimizer.set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        if self.recipe.quantize is not None and self.step >= self.recipe.quantize.freeze_after * self.steps:
            freeze(self.clip)
        losses = self._compute(batch, self.recipe.loop.side(self.step / self.steps))
        norm = self._update(losses["loss"])
        optimizer.clamp_scale(self.clip.logit_scale)
        if self.average is not None:
            self.average.update_parameters(self.clip)
        self.step += 1
        return {**losses, "grad_norm": norm, "lr": rate, "scale": float(self.clip.logit_scale.detach().exp())}

    def save(self) -> None:
        """Write a state; of several ranks, the first does."""
        distributed.mean_statistics(self.clip, self.world)
        if self.average is not None:
            optimizer.take_statistics(self.average.module, self.clip)
        if self.world.first:
            scaler = self.scaler.state_dict() if self.scaler else {}
            facts = Facts(step=self.step, recipe=self.recipe.plain, scaler=scaler)
            write_state(self.folder / STATES, facts, collect(self.modules, self.optimizer), keep=self.recipe.loop.keep)
        distributed.wait(self.world)

    def restore(self, state: State) -> None:
        """Go back to a state."""
        try:
            restore(state, self.modules, self.optimizer)
        except (KeyError, RuntimeError, ValueError) as exc:
            raise CheckpointError(f"{self.folder}: its states are of another model: {exc}") from exc
        if self.scaler is not None and state.facts.scaler:
            self.scaler.load_state_dict(state.facts.scaler)
        self.step = state.facts.step

    def trained(self) -> Clip:
        """The model as it is now, averaged where the recipe says so."""
        return self.clip if self.average is None else cast("Clip", self.average.module)

    def evaluate(self) -> list[Score]:
        """Scores of the model as it is now; none without test sets, or where this is not the first rank."""
        if self._evaluator is None:
            return []
        scores = self._evaluator(self.trained()) if self.world.first else []
        distributed.wait(self.world)
        return scores

    def finish(self) -> Path:
        """Write the last state and the checkpoint.

        Raises:
            ResourceError: the disk is full.
        """
        self.save()
        if self.world.first:
            self._recalibrate(self.trained())
        if self.world.first and not self.checkpoint.exists():
            settings = self.recipe.quantize
            clip, scales = qat.split(self.trained(), settings) if settings else (self.trained(), None)
            save_checkpoint(
                clip,
                self.checkpoint,
                self.parts.preprocess,
                self.folder / TOKENIZER,
                origin=_origin(self.recipe),
                scales=scales,
                matryoshka=self.recipe.model.matryoshka,
            )
        distributed.wait(self.world)
        return self.checkpoint

    def _recalibrate(self, clip: Clip) -> None:
        """After the last state is written: training goes on with the statistics that it had."""
        count = self.recipe.loop.recalibrate
        if not count:
            return

        def run() -> None:
            for batch in islice(self.parts.loader.batches(0), count):
                self._show(clip, batch)

        optimizer.estimate_statistics(clip.image, run)

    def _show(self, clip: Clip, batch: Batch, *, texts: bool = False) -> None:
        """Let a model see a batch's images whole, as tests show them, and read its texts."""
        shown = batch.to(self.world.device)
        views = augment.whole(len(shown)).to(self.world.device)
        pixels = augment.apply(shown.pixels, views, self.parts.preprocess.size)
        with autocast(self.recipe.loop.precision, self.world.device):
            clip.encode_image(augment.normalise(pixels, self.parts.preprocess))
            if texts:
                read_once(clip, shown.ids)

    def _update(self, loss: float) -> float:
        """Let the optimizer step; returns the gradient's norm."""
        self._require_finite("loss", loss)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        limit = self.recipe.optimizer.clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(self._compute.parameters(), limit))
        if self.scaler is None:
            self._require_finite("gradient", norm)
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return norm

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise NonFiniteError(
                f"step {self.step + 1}: the {what} is {value}",
                hint=f"earlier states in {self.folder / STATES} are intact; lower optimizer.lr or set optimizer.clip",
            )

    def _report(self, metrics: Metrics | None, values: Logged, on_step: OnStep) -> None:
        every = self.recipe.loop
        values["images_per_s"] = round(every.batch_size / max(values["step_s"], 1e-9), 1)
        if metrics is not None and (self.step % every.log_every == 0 or self.step == self.steps):
            metrics.write(self.step, values)
        on_step(self.step, values)
        if self.recipe.evaluate.every and self.step % self.recipe.evaluate.every == 0 and self.step < self.steps:
            self._report_scores(metrics, self.evaluate())
        if every.save_every and self.step % every.save_every == 0 and self.step < self.steps:
            self.save()

    def _report_scores(self, metrics: Metrics | None, scores: list[Score]) -> None:
        if metrics is not None and scores:
            metrics.write(self.step, {f"{score.data}/{score.metric}": round(score.value, 5) for score in scores})

    def _metrics(self) -> Any:
        """The first rank's metrics; nothing for the others."""
        if not self.world.first:
            return nullcontext()
        return Metrics(self.folder, first_step=self.step + 1, tensorboard=self.recipe.loop.tensorboard)


def _steps(recipe: Recipe, parts: Parts) -> int:
    assert parts.loader.steps_per_epoch is not None  # a recipe with epochs has data of known length
    return max(1, round(recipe.loop.epochs * parts.loader.steps_per_epoch))


def _origin(recipe: Recipe) -> Origin:
    described = f"{recipe.name}, sha256 {recipe.digest}"
    return Origin(licence=recipe.model.licence, recipe=described, data=recipe.data.about)


def _evaluator(recipe: Recipe, parts: Parts) -> Evaluator | None:
    if not recipe.evaluate.folder:
        return None
    folder = resolve(recipe.evaluate.folder)
    return Evaluator(folder, parts.preprocess, parts.texts, recipe.evaluate.sets, recipe.evaluate.limit)


def _find_state(folder: Path, recipe: Recipe, *, resume: bool) -> State | None:
    if not resume:
        if (folder / STATES).exists() or (folder / CHECKPOINT).exists():
            raise UsageError(f"{folder}: a run is there already", hint="--resume, or another name or output")
        return None
    state = newest_state(folder / STATES)
    if state is not None:
        _require_same(state.facts.recipe, recipe, folder)
    return state


def _require_same(was: dict[str, Any], recipe: Recipe, folder: Path) -> None:
    """
    Raises:
        UsageError: naming the first key that decides the result and differs.
    """
    before, now = _flat(was), _flat(recipe.plain)
    for key in sorted(before.keys() | now.keys()):
        changed = before.get(key) != now.get(key)
        if changed and key not in FREE and not key.startswith("evaluate."):
            raise UsageError(
                f"{folder}: began with {key} = {before.get(key)!r}, not {now.get(key)!r}",
                hint="resume with the same recipe, or choose another name",
            )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
