"""What artifacts lose of their bundle's fp32: measured here, each in a process of its own; recorded; or not known."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.base import Array, Embeddings
from edgeclip.benchmarks.contenders import Loss
from edgeclip.benchmarks.rows import Row
from edgeclip.benchmarks.workers import COMMAND, Worker
from edgeclip.errors import EdgeClipError
from edgeclip.manifest import Budget, Precision, Tower
from edgeclip.paired import drop

FLOATS: tuple[Precision, ...] = ("fp32", "fp16")
"""What golden vectors hold to the reference; the first of them that runs is the reference of what is measured."""
CHUNK = 256
"""Inputs that a process embeds for one answer."""
Pair = tuple[Embeddings | None, Embeddings | None]
"""Embeddings of the images and of the texts."""
Say = Callable[[str], None]


class Judge(Protocol):
    """Samples, and which of them embeddings get right: `quantize.evaluation.Evaluation`."""

    @property
    def data(self) -> str: ...

    @property
    def metric(self) -> str: ...

    @property
    def pixels(self) -> NDArray[np.uint8]: ...

    @property
    def ids(self) -> NDArray[np.int32] | None: ...

    @property
    def groups(self) -> NDArray[np.int64] | None: ...

    def right(self, images: Embeddings | None, texts: Embeddings | None, reference: Pair) -> NDArray[np.bool_]: ...


@dataclass(frozen=True)
class Examined:
    """What is known of an artifact before it is timed."""

    loss: Loss | None = None
    """None where nothing is."""
    broken: tuple[str, ...] = ()
    """Bounds of its golden vectors that it breaks on this device."""
    error: EdgeClipError | None = None
    """Why it did not run."""


def recorded(row: Row) -> Loss | None:
    """What the manifest says: golden vectors of floating point, and what an integer precision was measured to lose.

    The bound is the one-sided one where the search for a budget noted it, else the upper end of the two-sided interval,
    which is never below it.
    """
    if row.precision in FLOATS:
        return Loss("golden vectors", 0.0)
    budgets = [one.quantization.budget if one.quantization else None for one in row.artifacts]
    known = [budget for budget in budgets if budget is not None]
    if len(known) < len(budgets):
        return None
    worst = max(known, key=_bound)
    basis = f"recorded: {worst.metric} of {worst.data}, n {worst.n}"
    return Loss(basis, _bound(worst), worst.drop_pt, worst.n)


@dataclass
class Examination:
    """Runs each artifact once, on its golden vectors and on the samples.

    Args:
        pictures: what a process needs to start with.
        references: floating point of the bundle, the most precise first.
        commands: what makes the process of a label, where that is not the usual one.
    """

    pictures: Sequence[Path]
    threads: int
    judge: Judge | None
    references: Sequence[Row]
    say: Say = lambda text: None
    commands: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def of(self, rows: Sequence[Row]) -> dict[str, Examined]:
        """By label."""
        with tempfile.TemporaryDirectory(prefix="edgeclip-tune-") as name:
            folder = Path(name)
            if self.judge is None:
                return {row.label: self._examined(row, folder)[0] for row in rows}
            _store(self.judge, folder)
            return self._held_against(*self._reference(folder), rows, folder)

    def _reference(self, folder: Path) -> tuple[str, Pair, dict[str, Examined]]:
        """The first that runs as it should, its embeddings, and what became of those before it."""
        found: dict[str, Examined] = {}
        for row in self.references:
            examined, pair = self._examined(row, folder)
            found[row.label] = examined
            if pair is not None and not examined.broken:
                return row.label, pair, found
        return "", (None, None), found

    def _held_against(
        self, label: str, reference: Pair, found: dict[str, Examined], rows: Sequence[Row], folder: Path
    ) -> dict[str, Examined]:
        if label:
            found[label] = Examined(Loss("the reference", 0.0, 0.0), found[label].broken)
        for row in rows:
            if row.label not in found:
                examined, pair = self._examined(row, folder)
                lost = self._loss(pair, reference) if label and pair is not None else None
                found[row.label] = Examined(lost, examined.broken, examined.error)
        return {row.label: found[row.label] for row in rows}

    def _examined(self, row: Row, folder: Path) -> tuple[Examined, Pair | None]:
        self.say(f"{row.label}: golden vectors")
        worker = Worker(row, self.commands.get(row.label, COMMAND))
        try:
            worker.load(self.pictures, self.threads)
            parity = worker.parity()
            pair = self._embedded(worker, folder) if self.judge is not None else None
        except EdgeClipError as exc:
            return Examined(error=exc), None
        finally:
            worker.close()
        return Examined(recorded(row), () if parity["passed"] else tuple(parity["failures"])), pair

    def _embedded(self, worker: Worker, folder: Path) -> Pair:
        towers = {artifact.tower for artifact in worker.row.artifacts}
        found = {tower: self._rows(worker, tower, folder) for tower in towers if _place(folder, tower).is_file()}
        return found.get("image"), found.get("text")

    def _rows(self, worker: Worker, tower: Tower, folder: Path) -> Embeddings:
        inputs = _place(folder, tower)
        count = len(np.load(inputs, mmap_mode="r"))
        parts = []
        for start in range(0, count, CHUNK):
            self.say(f"{worker.row.label}: {tower}s, {start} of {count}")
            parts.append(worker.embed(tower, inputs, start, min(start + CHUNK, count), folder / "rows.npy"))
        return np.concatenate(parts)

    def _loss(self, found: Pair, reference: Pair) -> Loss:
        judge = self.judge
        assert judge is not None
        lost = drop(judge.right(*reference, reference), judge.right(*found, reference), groups=judge.groups)
        basis = f"measured: {judge.metric} of {judge.data}, n {lost.n}"
        return Loss(basis, lost.high_one_sided_pt, lost.drop_pt, lost.n)


def references_of(rows: Iterable[Row]) -> list[Row]:
    """What may be the reference: floating point that runs here, the most precise first, ONNX before others."""
    able = [row for row in rows if not row.missing and row.precision in FLOATS]
    return sorted(able, key=lambda row: (FLOATS.index(row.precision), row.target != "onnx"))


def _store(judge: Judge, folder: Path) -> None:
    for tower, inputs in _inputs(judge):
        np.save(_place(folder, tower), inputs)


def _inputs(judge: Judge) -> Iterator[tuple[Tower, Array]]:
    yield "image", judge.pixels
    if judge.ids is not None:
        yield "text", judge.ids


def _place(folder: Path, tower: Tower) -> Path:
    return folder / f"{tower}.npy"


def _bound(budget: Budget) -> float:
    chosen = [step.high_pt for step in budget.steps if step.kept == budget.kept]
    return chosen[-1] if chosen else budget.high_pt
