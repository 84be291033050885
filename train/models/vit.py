"""The vision transformer."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from edgeclip.train.models.config import VitConfig
from edgeclip.train.models.layers import LayerNorm, Transformer


class VisionTransformer(nn.Module):
    """Patches, a class token, a transformer; the class token is the feature. Source: arXiv 2103.00020 §2.4."""

    def __init__(self, config: VitConfig, image_size: int, embed_dim: int) -> None:
        super().__init__()
        width, eps = config.width, config.layer_norm_eps
        positions = (image_size // config.patch) ** 2 + 1
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=config.patch, stride=config.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.position_embedding = nn.Parameter(torch.empty(positions, width))
        self.norm_pre = LayerNorm(width, eps=eps)
        self.transformer = Transformer(width, config.layers, config.heads, config.mlp_width, config.activation, eps)
        self.norm_post = LayerNorm(width, eps=eps)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        self.reset_parameters()

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] float to features [B, D], not L2-normalised, of the weights' dtype."""
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))  # [B, W, S / patch, S / patch]
        patches = patches.flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        x = torch.cat([first, patches], dim=1) + self.position_embedding  # [B, N, W]
        pooled = self.transformer(self.norm_pre(x))  # [B, W]
        return cast("Tensor", self.projection(self.norm_post(pooled)))

    def reset_parameters(self) -> None:
        """Draw new weights, scaled by width as upstream does."""
        std = self.transformer.width**-0.5
        for weight in (self.class_embedding, self.position_embedding, self.projection.weight):
            nn.init.normal_(weight, std=std)
        self.transformer.reset_parameters()
