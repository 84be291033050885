"""A bundle as LAION's CLIP_benchmark wants a model: `(model, transform, tokenizer)`. Needs PyTorch, as that does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeclip.loading import load
from edgeclip.preprocess import preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgeclip.model import Model


class Adapter:
    """The part of a PyTorch CLIP model that CLIP_benchmark calls."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def encode_image(self, pixels: Any) -> Any:
        """uint8 [B, S, S, 3] -> float32 [B, D], L2-normalised; both PyTorch tensors on the CPU."""
        import torch

        return torch.from_numpy(self._model.encode_pixels(pixels.cpu().numpy()))

    def encode_text(self, ids: Any) -> Any:
        """int32 [B, C] -> float32 [B, D], L2-normalised; both PyTorch tensors on the CPU."""
        import torch

        return torch.from_numpy(self._model.encode_ids(ids.cpu().numpy()))

    def eval(self) -> Adapter:
        """Nothing: a bundle is always in that mode."""
        return self

    def transform(self, image: Image) -> Any:
        """A decoded image -> uint8 [S, S, 3], as the bundle's model was trained."""
        import torch

        return torch.from_numpy(preprocess(image, self._model.bundle.manifest.preprocess))

    def tokenize(self, texts: list[str]) -> Any:
        """Texts -> int32 [B, C]."""
        import torch

        return torch.from_numpy(np.asarray(self._model.tokenize(texts), np.int32))


def load_clip(
    model_name: str, pretrained: str, cache_dir: str | None = None, device: Any = "cpu"
) -> tuple[Any, Any, Any]:
    """What CLIP_benchmark's table of loaders holds: `clip_benchmark.models.TYPE2FUNC["edgeclip"] = load_clip`.

    Args:
        model_name: the backend, or `auto`.
        pretrained: the bundle's path; "" is the built-in one.
        cache_dir, device: not used; the bundle is loaded from where it is, and answers on the CPU.

    Raises:
        As `edgeclip.load`.
    """
    adapter = Adapter(load(Path(pretrained) if pretrained else None, backend=model_name, tuned=False))
    return adapter, adapter.transform, adapter.tokenize
