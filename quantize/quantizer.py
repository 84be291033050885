"""From fp32 towers to integer ones whose loss was measured, and fits a budget where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from edgeclip.backends.base import Array
from edgeclip.errors import UsageError
from edgeclip.manifest import Budget, Layer, Precision, Quantization, Target, Tower
from edgeclip.paired import Drop, samples_needed
from edgeclip.quantize import scheme
from edgeclip.quantize.budget import Found, search
from edgeclip.quantize.layers import check_finite, list_layers
from edgeclip.quantize.learned_artifact import produce_learned
from edgeclip.quantize.loss import TEXTS, Loss, Towers
from edgeclip.quantize.made import Made
from edgeclip.quantize.produce import produce
from edgeclip.quantize.sensitivity import distortions
from edgeclip.quantize.shortcut import separate_shortcuts
from edgeclip.quantize.subject import Subject

if TYPE_CHECKING:
    from edgeclip.quantize.calibration import Calibration
    from edgeclip.quantize.evaluation import Evaluation

RANKED_ON = 32
"""Samples that layers are ranked on."""
Progress = Callable[[str], None]
Place = tuple[Tower, str]
"""A layer, by tower and name."""


@dataclass(frozen=True)
class Settings:
    """What a loss is measured on, and how large it may be."""

    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    max_drop_pt: float | None = None
    """Percentage points; None only measures."""


@dataclass(frozen=True)
class Quantized:
    """One tower, quantized."""

    files: dict[str, bytes]
    """By name within the artifact's folder."""
    quantization: Quantization
    failures: tuple[str, ...] = ()
    """Why it is not within its budget."""


class Quantizer:
    """Quantizes one model for several targets; what they have in common is computed once.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
        UsageError: a budget, and nothing to measure it on.
    """

    def __init__(self, subject: Subject, settings: Settings, progress: Progress = lambda step: None) -> None:
        for model in subject.models.values():
            check_finite(model)
        scheme.check_measurable(settings.max_drop_pt, settings.evaluation)
        self._subject = subject
        self._models = subject.models if subject.learned else _roundable(subject.models)
        self._settings = settings
        self._loss = Loss(subject, settings.evaluation, progress) if settings.evaluation else None
        self._progress = progress
        self._layers = {tower: list_layers(model) for tower, model in self._models.items()}
        self._ranks: dict[Precision, dict[Place, float]] = {}

    def make(self, target: Target, precision: Precision) -> dict[Tower, Quantized]:
        """Quantize every tower.

        Raises:
            UsageError: the target has no such precision, there is nothing to calibrate on, or the model has learned
                scales of another precision.
        """
        scheme.check(target, precision)
        if self._subject.learned is not None:
            self._subject.learned.check(target, precision)
        samples = {tower: self._samples(tower, precision) for tower in self._subject.models}
        candidates = _Candidates(self, target, precision, samples)
        if self._loss is None:
            return self._finished(target, precision, candidates.make(frozenset()), None, ())
        loss = self._loss

        def attempt(keep: frozenset[Place]) -> tuple[Towers, Drop]:
            made = candidates.make(keep)
            return made, loss.of(target, precision, made)

        if self._settings.max_drop_pt is None:
            made, lost = attempt(frozenset())
            return self._finished(target, precision, made, loss.budget(lost), ())
        rank = partial(self._ranked, precision)
        found = search(len(self._places(precision)), rank, attempt, self._settings.max_drop_pt)
        budget = loss.budget(found.best.drop, found.best.kept, found.steps, self._settings.max_drop_pt)
        return self._finished(target, precision, found.best.made, budget, self._failures(found, precision))

    def produce(
        self, tower: Tower, target: Target, precision: Precision, samples: Array | None, keep: frozenset[str]
    ) -> Made:
        """One tower of one candidate."""
        kept = f", {len(keep)} layers kept" if keep else ""
        self._progress(f"{target} {precision} {tower}{kept}")
        model, learned = self._models[tower], self._subject.learned
        if learned is not None:
            return produce_learned(model, tower, target, precision, learned, keep)
        packages = self._subject.packages if target == "coreml" else None
        package = packages(tower, precision) if packages else {}
        return produce(model, tower, target, precision, samples, keep, package)

    def _samples(self, tower: Tower, precision: Precision) -> Array | None:
        """What activations are measured on; for weights alone, what there is. Learned scales need nothing."""
        if self._subject.learned is not None:
            return None
        calibration = self._settings.calibration
        scheme.check_calibrated(precision, calibration)
        samples = None if calibration is None else calibration.pixels if tower == "image" else calibration.ids
        if samples is None and scheme.needs_calibration(precision):
            raise UsageError("the calibration data has no texts for the text tower", hint=TEXTS)
        return samples

    def _places(self, precision: Precision) -> list[Place]:
        """The layers that a precision quantizes."""
        return [
            (tower, layer.name)
            for tower, layers in self._layers.items()
            for layer in layers
            if layer.weighted or precision == "w8a8"
        ]

    def _ranked(self, precision: Precision) -> list[Place]:
        """Layers of all towers, the most sensitive first."""
        if precision not in self._ranks:
            self._ranks[precision] = self._distortions(precision)
        found = self._ranks[precision]
        return sorted(found, key=lambda place: -found[place])

    def _distortions(self, precision: Precision) -> dict[Place, float]:
        found: dict[Place, float] = {}
        for tower, model in self._models.items():
            told = partial(self._tell_rank, tower, count(1))
            values = distortions(model, self._any_samples(tower), precision, advance=told)
            found |= {(tower, name): value for name, value in values.items()}
        return found

    def _tell_rank(self, tower: Tower, numbers: Iterator[int], amount: int) -> None:
        self._progress(f"ranking the layers of the {tower} tower: {next(numbers)} of {len(self._layers[tower])}")

    def _any_samples(self, tower: Tower) -> Array:
        """What layers are ranked on: calibration data, or else the beginning of the evaluation set."""
        calibration, evaluation = self._settings.calibration, self._settings.evaluation
        given = None if calibration is None else calibration.pixels if tower == "image" else calibration.ids
        if given is None:
            assert evaluation is not None
            given = evaluation.pixels if tower == "image" else evaluation.ids
        assert given is not None
        return given[:RANKED_ON]

    def _failures(self, found: Found[Towers], precision: Precision) -> tuple[str, ...]:
        if found.fits:
            return ()
        lost, allowed = found.best.drop, self._settings.max_drop_pt
        assert allowed is not None
        worst = ", ".join(f"{tower} {name}" for tower, name in self._ranked(precision)[:3])
        return (
            f"loses {lost.drop_pt:.2f} points (95 % bound {lost.high_one_sided_pt:.2f}), "
            f"the budget is {allowed:g}{_too_few(lost.n, allowed)}; most sensitive: {worst}",
        )

    def _finished(
        self, target: Target, precision: Precision, made: Towers, budget: Budget | None, failures: tuple[str, ...]
    ) -> dict[Tower, Quantized]:
        calibration, learned = self._settings.calibration, self._subject.learned is not None
        spec = calibration.spec if calibration and scheme.uses_calibration(target, precision) and not learned else None
        tables = {tower: self._table(tower, precision, one) for tower, one in made.items()}
        return {
            tower: Quantized(
                one.files,
                Quantization(layers=tables[tower], calibration=spec, learned=learned, budget=budget),
                failures,
            )
            for tower, one in made.items()
        }

    def _table(self, tower: Tower, precision: Precision, made: Made) -> tuple[Layer, ...]:
        ranks = self._ranks.get(precision, {})
        return tuple(
            Layer(
                name=layer.name,
                op=layer.op,
                precision=precision if layer.name in made.quantized else "fp32",
                distortion=ranks.get((tower, layer.name)),
            )
            for layer in self._layers[tower]
        )


def _roundable(models: Mapping[Tower, bytes]) -> dict[Tower, bytes]:
    """The same towers in the form that integers lose least of. Learned scales belong to the form that they have."""
    return {tower: separate_shortcuts(model) for tower, model in models.items()}


class _Candidates:
    """Quantizes all but some layers; a tower whose layers are the same as before is not made anew."""

    def __init__(
        self, quantizer: Quantizer, target: Target, precision: Precision, samples: dict[Tower, Array | None]
    ) -> None:
        self._quantizer = quantizer
        self._target: Target = target
        self._precision: Precision = precision
        self._samples = samples
        self._last: dict[Tower, tuple[frozenset[str], Made]] = {}

    def make(self, keep: frozenset[Place]) -> Towers:
        return {tower: self._tower(tower, frozenset(name for t, name in keep if t == tower)) for tower in self._samples}

    def _tower(self, tower: Tower, keep: frozenset[str]) -> Made:
        if tower not in self._last or self._last[tower][0] != keep:
            made = self._quantizer.produce(tower, self._target, self._precision, self._samples[tower], keep)
            self._last[tower] = keep, made
        return self._last[tower][1]


def _too_few(n: int, allowed_pt: float) -> str:
    if allowed_pt <= 0 or n >= samples_needed(allowed_pt):
        return ""
    return f"; {n} samples cannot show so small a loss, {samples_needed(allowed_pt)} can: --eval, or --calib-count"
