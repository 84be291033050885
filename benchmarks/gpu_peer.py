"""PyTorch on the same GPU: Hugging Face's `CLIPModel` in half precision, eager and compiled.

PyTorch and transformers are imported when a function is called. Both sides begin and end in the host's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.backends.base import Array, Embeddings
from edgeclip.manifest import Preprocess

Encode = Callable[[Any], Embeddings]


class GpuPeer:
    """A `CLIPModel` in fp16 on a GPU.

    Args:
        folder: what `peer.write_checkpoint` wrote.
        compiled: through `torch.compile(mode="reduce-overhead")`, which uses CUDA graphs.
    """

    def __init__(self, folder: Path, device: str, *, compiled: bool) -> None:
        import torch
        from transformers import CLIPModel

        self._torch, self._device = torch, device
        model = CLIPModel.from_pretrained(folder, dtype=torch.float16).eval().to(device)
        functions: dict[str, Callable[[Any], Any]] = {
            "image": lambda pixels: _unit(model.get_image_features(pixel_values=pixels)),
            "text": lambda ids: _unit(model.get_text_features(input_ids=ids)),
        }
        if compiled:
            functions = {t: torch.compile(f, mode="reduce-overhead", dynamic=False) for t, f in functions.items()}
        self._functions = functions

    def image(self, pixels: Any) -> Embeddings:
        """Embed what `pixels_of` made. Returns [B, D] float32, L2-normalised."""
        return self._run("image", pixels)

    def text(self, ids: Any) -> Embeddings:
        """Embed what `ids_of` made. Returns [B, D] float32, L2-normalised."""
        return self._run("text", ids)

    def _run(self, tower: str, inputs: Any) -> Embeddings:
        with self._torch.inference_mode():
            found = self._functions[tower](inputs.to(self._device)).cpu().numpy()
        return np.asarray(found, np.float32)


def pixels_of(pixels: Array, spec: Preprocess) -> Any:
    """uint8 [B, S, S, 3] to the fp16 [B, 3, S, S] tensor that the peer takes, in the host's memory."""
    import torch

    scaled = (pixels.astype(np.float32) / 255 - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))).half()


def ids_of(ids: Array) -> Any:
    """int32 [B, C] to the int64 tensor that the peer takes, in the host's memory."""
    import torch

    return torch.from_numpy(ids.astype(np.int64))


def _unit(output: Any) -> Any:
    features = getattr(output, "pooler_output", output).float()
    return features / features.norm(dim=-1, keepdim=True)
