"""What runs of a bundle: each target at each precision that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

import edgeclip
from edgeclip import backends
from edgeclip.backends.base import Array, Embeddings, Options, Session
from edgeclip.bundle import Bundle
from edgeclip.manifest import Precision, Target, Tower
from edgeclip.model import Model
from edgeclip.outcome import JUDGES
from edgeclip.selection import PRECISIONS

TIMED: dict[Target, str] = {"onnx": "onnxruntime", "openvino": "openvino"}
"""Targets whose own engine is here, and that engine."""
MEASURED: tuple[Target, ...] = (*TIMED, "tensorrt", "coreml")
"""Targets whose accuracy is told, by their own engine or another that runs their artifacts."""
BATCH = 32


@dataclass(frozen=True)
class Variant:
    """One target at one precision."""

    bundle: Bundle
    target: Target
    precision: Precision

    @property
    def label(self) -> str:
        return f"{self.target} {self.precision}"

    @property
    def is_timed(self) -> bool:
        """Whether its times here are those of its own engine."""
        return self.target in TIMED

    @property
    def size_bytes(self) -> int:
        """Of both towers' files."""
        sizes = {entry.path: entry.size for entry in self.bundle.manifest.files}
        found = self.bundle.artifacts(target=self.target, precision=self.precision)
        return sum(sizes[name] for artifact in found for name in artifact.files)

    @property
    def kept(self) -> int | None:
        """Layers that were left in floating point to fit a budget; None where nothing was measured."""
        found = self.bundle.artifacts(target=self.target, precision=self.precision)
        budgets = [one.quantization.budget for one in found if one.quantization is not None]
        return next((budget.kept for budget in budgets if budget is not None), None)

    def load(self, threads: int) -> Model:
        """Both towers through the runtime. Of what is timed."""
        engine, path = TIMED[self.target], self.bundle.path
        return edgeclip.load(
            path, backend=engine, precision=self.precision, threads=threads, text_cache=False, tuned=False
        )

    @contextmanager
    def session(self, tower: Tower, threads: int) -> Iterator[Session]:
        """One tower, on the engine that tells how accurate it is."""
        [artifact] = self.bundle.artifacts(tower=tower, target=self.target, precision=self.precision)
        backend = backends.get(JUDGES[self.target])
        session = backend.open(artifact, dict(self.bundle.files(artifact)), Options(threads=threads))
        try:
            yield session
        finally:
            session.close()

    def embed(self, tower: Tower, inputs: Array, threads: int) -> Embeddings:
        """Embed inputs that are ready, uint8 [N, S, S, 3] or int32 [N, C]. Returns [N, D] float32."""
        with self.session(tower, threads) as session:
            parts = [session.run(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)]
        return np.concatenate(parts)


def variants_of(bundle: Bundle) -> list[Variant]:
    """All that a bundle holds of both towers and that runs here, by target, the most precise first."""
    found = []
    for target in MEASURED:
        for precision in PRECISIONS:
            if len(bundle.artifacts(target=target, precision=precision)) == 2:
                found.append(Variant(bundle, target, precision))
    return found
