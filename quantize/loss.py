"""What quantizing costs a model, against its fp32 towers on the same samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.base import Embeddings
from edgeclip.errors import UsageError
from edgeclip.manifest import Budget, Precision, Step, Target, Tower
from edgeclip.outcome import Job, draft
from edgeclip.paired import Drop, drop
from edgeclip.quantize.evaluation import Evaluation, Pair
from edgeclip.quantize.made import Made
from edgeclip.quantize.subject import Subject

TEXTS = "--calib-texts FILE with one text a line, or --tower image"
Towers = dict[Tower, Made]


class Loss:
    """Measures candidates of one model on one evaluation set; fp32 is run once, when it is first needed."""

    def __init__(self, subject: Subject, evaluation: Evaluation, progress: Callable[[str], None]) -> None:
        self._subject = subject
        self._evaluation = evaluation
        self._progress = progress

    def of(self, target: Target, precision: Precision, made: Towers) -> Drop:
        """What a candidate loses.

        Raises:
            UsageError: there are no texts, or a tower is missing that the evaluation set needs.
        """
        self._progress(f"{target} {precision}: measuring the loss")
        reference = self._reference
        rows = {tower: self._embed(Job(tower, target, precision), one.files) for tower, one in made.items()}
        return drop(self._right, self._evaluation.right(*_pair(rows), reference), groups=self._evaluation.groups)

    def budget(
        self, lost: Drop, kept: int = 0, steps: tuple[Step, ...] = (), max_drop_pt: float | None = None
    ) -> Budget:
        """What the manifest says of it."""
        return Budget(
            data=self._evaluation.data,
            metric=self._evaluation.metric,
            n=lost.n,
            max_drop_pt=max_drop_pt,
            reference=float(self._right.mean()),
            drop_pt=round(lost.drop_pt, 4),
            low_pt=round(lost.low_pt, 4),
            high_pt=round(lost.high_pt, 4),
            kept=kept,
            steps=steps,
        )

    @cached_property
    def _reference(self) -> Pair:
        """The fp32 embeddings of images and texts, by ONNX Runtime; None where there is no such tower."""
        self._progress("fp32 embeddings of the evaluation set")
        models = self._subject.models.items()
        return _pair({tower: self._embed(Job(tower, "onnx", "fp32"), {f"{tower}.onnx": one}) for tower, one in models})

    @cached_property
    def _right(self) -> NDArray[np.bool_]:
        """Which samples fp32 gets right."""
        return self._evaluation.right(*self._reference, self._reference)

    def _embed(self, job: Job, files: dict[str, bytes]) -> Embeddings:
        inputs = self._evaluation.pixels if job.tower == "image" else self._evaluation.ids
        if inputs is None:
            raise UsageError("there are no texts to measure the text tower on", hint=TEXTS)
        subject = self._subject
        artifact = draft(
            job, files, subject.preprocess, subject.embed_dim, subject.context_length, opset=subject.opset, libraries=()
        )
        return subject.embed(artifact, files, inputs)


def _pair(rows: dict[Tower, Embeddings]) -> Pair:
    return rows.get("image"), rows.get("text")
