"""CLIP: an image tower, a text tower and a temperature."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeclip.train.models.config import ClipConfig, RepVggConfig, ResNetConfig
from edgeclip.train.models.folding import fold_in_place
from edgeclip.train.models.repvgg import RepVgg
from edgeclip.train.models.resnet import ModifiedResNet
from edgeclip.train.models.text import TextTransformer
from edgeclip.train.models.vit import VisionTransformer

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
"""Source: arXiv 2103.00020 §2.5."""


class Clip(nn.Module):
    """Two towers into one space. New instances have random weights.

    The parameters' names are those of edgeclip's checkpoints.
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.image = image_tower(config)
        self.text = TextTransformer(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] float to features [B, D], not L2-normalised."""
        return cast("Tensor", self.image(pixels))

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids [B, C'] of an integer dtype, C' ≤ context_length, to features [B, D], not L2-normalised."""
        return cast("Tensor", self.text(ids))

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image embeddings [B, D], text embeddings [B', D], both float32 and L2-normalised, and exp(logit_scale)."""
        image = F.normalize(self.encode_image(pixels).float(), dim=-1)
        text = F.normalize(self.encode_text(ids).float(), dim=-1)
        return image, text, self.logit_scale.exp()


def image_tower(config: ClipConfig) -> VisionTransformer | ModifiedResNet | RepVgg:
    """The image tower alone, with random weights."""
    tower = _unfolded(config)
    return fold_in_place(tower.eval()).train() if config.folded else tower


def _unfolded(config: ClipConfig) -> VisionTransformer | ModifiedResNet | RepVgg:
    if isinstance(config.image, ResNetConfig):
        return ModifiedResNet(config.image, config.image_size, config.embed_dim)
    if isinstance(config.image, RepVggConfig):
        return RepVgg(config.image, config.image_size, config.embed_dim)
    return VisionTransformer(config.image, config.image_size, config.embed_dim)
