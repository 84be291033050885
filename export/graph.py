"""What an exported graph computes: a tower, with everything per pixel and per vector inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeclip.manifest import Preprocess, Tower
from edgeclip.train.models.clip import Clip
from edgeclip.train.models.folding import fold_batchnorm
from edgeclip.train.models.layers import to_precision


class PlanarImageGraph(nn.Module):
    """Values 0 to 255, float32 [B, 3, S, S], to float32 [B, D] embeddings, L2-normalised."""

    scale: Tensor
    shift: Tensor

    def __init__(self, tower: nn.Module, preprocess: Preprocess, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.tower = tower
        self.dtype = dtype
        mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return normalize(self.tower((pixels * self.scale + self.shift).to(self.dtype)))


class ImageGraph(PlanarImageGraph):
    """uint8 [B, S, S, 3] pixels to float32 [B, D] embeddings, L2-normalised."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels.permute(0, 3, 1, 2).float())


class TextGraph(nn.Module):
    """int32 [B, C] token ids to float32 [B, D] embeddings, L2-normalised."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor) -> Tensor:
        return normalize(self.tower(ids))


def normalize(features: Tensor) -> Tensor:
    """L2-normalise the last axis in float32, which half precision could overflow in."""
    x = features.float()
    return x / torch.sqrt((x * x).sum(dim=-1, keepdim=True))


def tower_graph(clip: Clip, tower: Tower, preprocess: Preprocess, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The graph of one tower, in evaluation mode, weights in `dtype`. The model itself is not changed."""
    if tower == "text":
        text = clip.text if dtype == torch.float32 else to_precision(clip.text, dtype)
        return TextGraph(text).eval()
    image: nn.Module = fold_batchnorm(clip.image)
    return ImageGraph(image if dtype == torch.float32 else to_precision(image, dtype), preprocess, dtype).eval()


def example(clip: Clip, tower: Tower) -> Tensor:
    """An example input of the tower's graph, for tracing.

    No axis that is dynamic has a special size: neither a batch of one, nor the whole context, which would both be
    taken for constants.
    """
    if tower == "image":
        size = clip.config.image_size
        return torch.zeros(2, size, size, 3, dtype=torch.uint8)
    return torch.ones(2, clip.config.text.context_length - 1, dtype=torch.int32)
