"""What is quantized: the fp32 towers of one model, and how its inputs are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeclip.backends.base import Array, Embeddings
from edgeclip.golden import Golden
from edgeclip.manifest import Artifact, Precision, Preprocess, Tower
from edgeclip.outcome import open_session
from edgeclip.quantize.scales import Learned
from edgeclip.tokenizer import Tokenizer

BATCH = 32
Packages = Callable[[Tower, Precision], dict[str, bytes]]
"""Gives the half-precision Core ML package of a tower that one of an integer precision is made from."""


@dataclass(frozen=True)
class Subject:
    """A model in floating point."""

    models: dict[Tower, bytes]
    """The fp32 ONNX of each tower that is to be quantized."""
    preprocess: Preprocess
    tokenizer: Tokenizer | None
    embed_dim: int
    opset: int
    golden: Golden
    learned: Learned | None = None
    """Scales of its layers, where the model was trained with rounding."""
    packages: Packages | None = None
    """None where nothing is made for Core ML."""

    @property
    def context_length(self) -> int | None:
        """The most token ids of a row; None where there is no text tower."""
        return self.tokenizer.spec.context_length if self.tokenizer else None

    def embed(self, artifact: Artifact, files: dict[str, bytes], inputs: Array) -> Embeddings:
        """What an artifact of this model makes of its inputs, uint8 [N, S, S, 3] or int32 [N, C]. Returns [N, D]."""
        session = open_session(artifact, files)
        out = np.empty((len(inputs), self.embed_dim), np.float32)
        try:
            for rows in self._batches(artifact.tower, inputs):
                out[rows] = session.run(self._cut(artifact.tower, inputs[rows]))
        finally:
            session.close()
        return out

    def _batches(self, tower: Tower, inputs: Array) -> list[Array]:
        """Rows of each batch; texts of like length together, as the runtime does it."""
        order = np.arange(len(inputs))
        if tower == "text" and self.tokenizer is not None:
            order = np.argsort(self.tokenizer.lengths(inputs), kind="stable")
        return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]

    def _cut(self, tower: Tower, inputs: Array) -> Array:
        if tower == "text" and self.tokenizer is not None:
            return np.ascontiguousarray(self.tokenizer.trim(inputs))
        return np.ascontiguousarray(inputs)
