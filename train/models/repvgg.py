"""A tower of 3x3 convolutions whose branches exist only while it trains. Source: arXiv 2101.03697."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgeclip.train.models.config import Branch, RepVggConfig
from edgeclip.train.models.folding import ConvNorm, Foldable
from edgeclip.train.models.resnet import AttentionPool


class RepBlock(Foldable):
    """A 3x3 convolution, the branches beside it, their sum, ReLU. Folded, it is one 3x3 convolution and ReLU.

    The branches that keep the input (`identity`, `skip`) exist only where its shape does not change.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, branches: tuple[Branch, ...]) -> None:
        super().__init__()
        same = inputs == outputs and stride == 1
        self.spatial = ConvNorm(inputs, outputs, 3, stride)
        self.pointwise = ConvNorm(inputs, outputs, 1, stride) if "pointwise" in branches else None
        self.identity = nn.BatchNorm2d(inputs) if same and "identity" in branches else None
        self.skip = same and "skip" in branches

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H / stride, W / stride]."""
        y = self.spatial(x)
        if self.pointwise is not None:
            y = y + self.pointwise(x)
        if self.identity is not None:
            y = y + self.identity(x)
        if self.skip:
            y = y + x
        return F.relu(y)

    @torch.no_grad()
    def fold(self) -> None:
        """Put every branch into the 3x3 convolution. Each is linear, and its kernel is the middle of a 3x3 kernel."""
        self.spatial.fold()
        weight, bias = self.spatial.conv.weight, self.spatial.conv.bias
        assert bias is not None
        middle, shift = self._middle()
        weight[:, :, 1, 1] += middle
        bias += shift
        self.pointwise = self.identity = None
        self.skip = False

    def _middle(self) -> tuple[Tensor, Tensor]:
        """What the branches add: to the middle of the kernel, [C', C], and to the bias, [C']."""
        weight = self.spatial.conv.weight
        middle, shift = torch.zeros_like(weight[:, :, 1, 1]), weight.new_zeros(len(weight))
        if self.pointwise is not None:
            self.pointwise.fold()
            assert self.pointwise.conv.bias is not None
            middle += self.pointwise.conv.weight[:, :, 0, 0]
            shift += self.pointwise.conv.bias
        if self.identity is not None:
            gain, offset = _affine(self.identity)
            middle += gain.diag()
            shift += offset
        if self.skip:
            middle += torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        return middle, shift


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Gain and offset per channel that batch normalisation applies in evaluation mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return gain, norm.bias - norm.running_mean * gain


class AveragePool(nn.Module):
    """The mean of all positions, projected into the joint space."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, embed_dim, bias=False)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """[B, W, h, w] to [B, D]."""
        return cast("Tensor", self.projection(x.mean(dim=(2, 3))))

    def reset_parameters(self) -> None:
        """Draw new weights, scaled by width."""
        nn.init.normal_(self.projection.weight, std=self.projection.in_features**-0.5)


class RepVgg(nn.Module):
    """A strided stem, stages of blocks, a pooled head."""

    def __init__(self, config: RepVggConfig, image_size: int, embed_dim: int) -> None:
        super().__init__()
        self.checkpointing = False
        """Recompute each stage's activations in the backward pass instead of keeping them."""
        self.stem = RepBlock(3, config.stem, 2, config.branches)
        self.stages = nn.ModuleList(_stages(config))
        side, width = image_size // config.stride, config.widths[-1]
        self.pool: AttentionPool | AveragePool
        if config.pool == "attention":
            self.pool = AttentionPool(side**2, width, config.heads, embed_dim)
            self.pool.reset_parameters()
        else:
            self.pool = AveragePool(width, embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] float to features [B, D], not L2-normalised, of the weights' dtype."""
        x = self.stem(pixels.to(self.stem.spatial.conv.weight.dtype))
        for stage in self.stages:
            rerun = self.checkpointing and self.training
            x = checkpoint(stage, x, use_reentrant=False) if rerun else stage(x)
        return cast("Tensor", self.pool(x))


def _stages(config: RepVggConfig) -> Iterator[nn.Sequential]:
    inputs = config.stem
    for outputs, blocks, stride in zip(config.widths, config.depths, config.strides, strict=True):
        first = RepBlock(inputs, outputs, stride, config.branches)
        yield nn.Sequential(first, *(RepBlock(outputs, outputs, 1, config.branches) for _ in range(blocks - 1)))
        inputs = outputs
