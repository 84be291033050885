"""A checkpoint in PyTorch's eager mode behind the calls of `edgeclip.Model`, so that the two can be timed alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeclip.backends.base import Array, Embeddings
from edgeclip.model import Model
from edgeclip.preprocess import preprocess_batch
from edgeclip.train.checkpoints import build, read_checkpoint
from edgeclip.train.data.augment import normalise


class Eager:
    """The towers in fp32 on the CPU. Files are decoded, and strings tokenized, as the bundle's model does it.

    Args:
        model: of the bundle that was made from the checkpoint.
        checkpoint: its path.
        threads: of PyTorch.
    """

    engine = f"torch {torch.__version__}"

    def __init__(self, model: Model, checkpoint: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model, self._spec = model, model.bundle.manifest.preprocess
        self._clip = build(read_checkpoint(checkpoint))

    def encode_pixels(self, pixels: Array) -> Embeddings:
        """uint8 [N, S, S, 3] to float32 [N, D], L2-normalised."""
        ready = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            return _unit(self._clip.encode_image(normalise(ready, self._spec)))

    def encode_ids(self, ids: Array) -> Embeddings:
        """int32 [N, C] to float32 [N, D], L2-normalised. All of the context is computed, as is usual in PyTorch."""
        with torch.inference_mode():
            return _unit(self._clip.encode_text(torch.from_numpy(np.ascontiguousarray(ids)).long()))

    def encode_image(self, images: Sequence[Any]) -> Embeddings:
        """Files to float32 [N, D], L2-normalised."""
        return self.encode_pixels(preprocess_batch(images, self._spec))

    def encode_text(self, texts: Iterable[str]) -> Embeddings:
        """Strings to float32 [N, D], L2-normalised."""
        return self.encode_ids(self._model.tokenize(list(texts)))


def _unit(features: Tensor) -> Embeddings:
    embeddings: Embeddings = F.normalize(features.float(), dim=-1).numpy()
    return embeddings
