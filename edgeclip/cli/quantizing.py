"""Options of the commands that quantize, and how what became of it is shown."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from edgeclip.cli.options import need
from edgeclip.cli.output import Output
from edgeclip.errors import UsageError
from edgeclip.manifest import Budget, Precision, Preprocess
from edgeclip.outcome import Outcome

if TYPE_CHECKING:
    from edgeclip.quantize.quantizer import Settings
    from edgeclip.tokenizer import Tokenizer

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Measuring:
    """What the command line says about calibration, evaluation and budget."""

    calib: Path | None = None
    calib_texts: Path | None = None
    calib_count: int = 300
    seed: int = 0
    eval_data: Path | None = None
    eval_limit: int = 0
    max_drop: float | None = None

    def check(self, precisions: Sequence[Precision], *, learned: bool = False) -> None:
        """Before anything slow begins.

        Args:
            learned: the model brings the ranges of its activations.

        Raises:
            UsageError: calibration data or data to measure on are missing, or given and not used.
            TargetUnavailableError: the toolchain is not installed.
        """
        from edgeclip.quantize import scheme

        if not any(map(scheme.is_integer, precisions)):
            if self.calib or self.eval_data or self.max_drop is not None:
                raise UsageError(
                    "--calib, --eval and --max-drop are for integer precisions", hint="add --precision w8a8"
                )
            return
        for precision in precisions if not learned else ():
            scheme.check_calibrated(precision, self.calib)
        scheme.check_measurable(self.max_drop, self.eval_data or self.calib)
        need("onnx", "onnxruntime", extra="quantize", what="quantizing")

    def settings(
        self,
        output: Output,
        preprocess: Preprocess,
        make_tokenizer: Callable[[], Tokenizer | None],
        progress: Callable[[str], None],
    ) -> Settings:
        """Read the data, and say what about it may make a poor result. Without data, nothing is imported or made.

        Raises:
            DataError: it is missing, damaged or says nothing.
        """
        from edgeclip.quantize.quantizer import Settings

        if self.calib is None and self.eval_data is None:
            return Settings(max_drop_pt=self.max_drop)
        from edgeclip.quantize.calibration import collect
        from edgeclip.quantize.evaluation import agreement, open_evaluation

        tokenizer = make_tokenizer()
        calibration = evaluation = None
        if self.calib is not None:
            progress("calibration data")
            calibration = collect(
                self.calib, preprocess, tokenizer, count=self.calib_count, seed=self.seed, texts=self.calib_texts
            )
            output.document["calibration"] = {
                "spec": calibration.spec,
                "warnings": calibration.warnings,
                "skipped": calibration.skipped,
            }
            for warning in calibration.warnings:
                warnings.warn(f"{self.calib}: {warning}", stacklevel=2)
        if self.eval_data is not None:
            progress("evaluation data")
            evaluation = open_evaluation(self.eval_data, preprocess, tokenizer, limit=self.eval_limit)
        elif calibration is not None:
            evaluation = agreement(calibration)
        return Settings(calibration, evaluation, self.max_drop)


_OPTIONS = (
    click.option(
        "--calib",
        type=click.Path(path_type=Path),
        help="Pictures and texts to measure activations on: a folder, a test set, tar shards, or a CSV of captions.",
    ),
    click.option("--calib-texts", type=click.Path(path_type=Path), help="A file of texts, where --calib has none."),
    click.option(
        "--calib-count", type=click.IntRange(min=16), default=300, show_default=True, help="Pictures to take."
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of their selection."),
    click.option(
        "--eval",
        "eval_data",
        type=click.Path(path_type=Path),
        help="What the loss is measured on: a test set, class folders or a CSV of captions.",
    ),
    click.option("--eval-limit", type=click.IntRange(min=0), default=0, help="Pictures of it; 0: all."),
    click.option(
        "--max-drop",
        type=click.FloatRange(min=0, max=100),
        help="Percentage points that may be lost; the most sensitive layers stay in floating point until it fits.",
    ),
)


def quantize_options(function: Function) -> Function:
    """Add the options; the function gets them as `measuring`."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        names = Measuring.__dataclass_fields__
        measuring = Measuring(**{name: kwargs.pop(name) for name in list(kwargs) if name in names})
        return function(*args, measuring=measuring, **kwargs)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return cast("Function", wrapper)


def show_budgets(output: Output, outcomes: Sequence[Outcome]) -> None:
    """Print, for each target and precision, what was lost, how the search went, and what stayed in floating point."""
    shown: set[str] = set()
    for outcome in outcomes:
        quantization = outcome.artifact.quantization if outcome.artifact else None
        if quantization is None or outcome.job.folder in shown:
            continue
        shown.add(outcome.job.folder)
        if quantization.budget is not None:
            _show_budget(output, outcome.job.folder, quantization.budget)
    kept = _kept(outcomes)
    if kept:
        output.table("Layers in floating point", ("artifact", "layer", "op", "distortion alone"), kept)


def _show_budget(output: Output, name: str, budget: Budget) -> None:
    allowed = "" if budget.max_drop_pt is None else f", allowed {budget.max_drop_pt:g}"
    output.line(
        f"{name}: loses {budget.drop_pt:.2f} points [{budget.low_pt:.2f}, {budget.high_pt:.2f}]{allowed}; "
        f"{budget.metric} of {budget.data}, fp32 {100 * budget.reference:.1f} %, n {budget.n}"
    )
    if len(budget.steps) > 1:
        rows = [
            [
                str(step.kept),
                f"{step.drop_pt:.2f}",
                f"{step.high_pt:.2f}",
                output.status("ok" if step.fits else "below gate"),
            ]
            for step in budget.steps
        ]
        output.table(f"Search of {name}", ("layers kept", "loss", "95 % bound", "budget"), rows)


def _kept(outcomes: Sequence[Outcome]) -> list[list[str]]:
    return [
        [str(outcome.job), layer.name, layer.op, "" if layer.distortion is None else f"{layer.distortion:.1e}"]
        for outcome in outcomes
        if outcome.artifact and outcome.artifact.quantization and outcome.artifact.quantization.budget
        for layer in outcome.artifact.quantization.layers
        if layer.precision == "fp32" and outcome.artifact.quantization.budget.kept
    ]
