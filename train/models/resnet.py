"""The ModifiedResNet: ResNet-D's stem, anti-aliased strides, attention pooling. Source: arXiv 2103.00020 §2.4."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeclip.train.models.config import ResNetConfig
from edgeclip.train.models.folding import ConvNorm
from edgeclip.train.models.layers import Attention

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a residual; strides are average pooling, which avoids aliasing."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = planes * EXPANSION
        self.reduce = ConvNorm(inputs, planes, 1)
        self.spatial = ConvNorm(planes, planes, 3)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.expand = ConvNorm(planes, outputs, 1)
        self.shortcut = ConvNorm(inputs, outputs, 1) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, 4 · planes, H / stride, W / stride]."""
        y = F.relu(self.spatial(F.relu(self.reduce(x))))
        y = self.expand(self.pool(y))
        return F.relu(y + self.shortcut(self.pool(x)))


class AttentionPool(nn.Module):
    """The mean of all positions, as a query, attends to itself and to them."""

    def __init__(self, positions: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.position_embedding = nn.Parameter(torch.empty(positions + 1, width))
        self.attention = Attention(width, heads, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, W, h, w] to [B, D]."""
        x = x.flatten(2).transpose(1, 2)  # [B, h · w, W]
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.position_embedding
        return cast("Tensor", self.attention(x[:, :1], x).squeeze(1))

    def reset_parameters(self) -> None:
        """Draw new weights, scaled by width."""
        std = self.position_embedding.shape[1] ** -0.5
        nn.init.normal_(self.position_embedding, std=std)
        for linear in (self.attention.query, self.attention.key, self.attention.value, self.attention.out):
            nn.init.normal_(linear.weight, std=std)


class ModifiedResNet(nn.Module):
    """Three-convolution stem, four stages, attention pooling."""

    def __init__(self, config: ResNetConfig, image_size: int, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        convolutions = ((3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1))
        self.stem = nn.ModuleList(ConvNorm(i, o, 3, stride) for i, o, stride in convolutions)
        inputs = (width, *(width * EXPANSION * 2**i for i in range(3)))
        self.stages = nn.ModuleList(
            _stage(inputs[i], width * 2**i, blocks, stride=1 if i == 0 else 2) for i, blocks in enumerate(config.layers)
        )
        self.pool = AttentionPool((image_size // 32) ** 2, width * 32, config.heads, embed_dim)
        self.reset_parameters()

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] float to features [B, D], not L2-normalised, of the weights' dtype."""
        x = pixels.to(self.pool.position_embedding.dtype)
        for layer in self.stem:
            x = F.relu(layer(x))
        x = F.avg_pool2d(x, 2)  # [B, width, S / 4, S / 4]
        for stage in self.stages:
            x = stage(x)
        return cast("Tensor", self.pool(x))

    def reset_parameters(self) -> None:
        """Draw new weights for the head; each block starts as an identity, with zero gain on its last normalisation."""
        self.pool.reset_parameters()
        for module in self.modules():
            if isinstance(module, Bottleneck) and isinstance(module.expand.norm, nn.BatchNorm2d):
                nn.init.zeros_(module.expand.norm.weight)


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    outputs = planes * EXPANSION
    return nn.Sequential(
        Bottleneck(inputs, planes, stride), *(Bottleneck(outputs, planes, 1) for _ in range(blocks - 1))
    )
