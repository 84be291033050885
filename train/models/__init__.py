"""CLIP in PyTorch: ViT and ModifiedResNet image towers, the text tower, their configurations."""

from edgeclip.train.models.clip import Clip, image_tower
from edgeclip.train.models.config import (
    Activation,
    ClipConfig,
    ResNetConfig,
    TextConfig,
    VitConfig,
    list_configs,
    load_config,
)
from edgeclip.train.models.layers import to_precision
from edgeclip.train.models.resnet import ModifiedResNet, fold_batchnorm
from edgeclip.train.models.text import TextTransformer
from edgeclip.train.models.vit import VisionTransformer

__all__ = [
    "Activation",
    "Clip",
    "ClipConfig",
    "ModifiedResNet",
    "ResNetConfig",
    "TextConfig",
    "TextTransformer",
    "VisionTransformer",
    "VitConfig",
    "fold_batchnorm",
    "image_tower",
    "list_configs",
    "load_config",
    "to_precision",
]
