"""CLIP in PyTorch: ViT, ModifiedResNet and RepVGG image towers, the text tower, their configurations."""

from edgeclip.train.models.clip import Clip, image_tower
from edgeclip.train.models.config import (
    Activation,
    ClipConfig,
    RepVggConfig,
    ResNetConfig,
    TextConfig,
    VitConfig,
    list_configs,
    list_published,
    load_config,
)
from edgeclip.train.models.folding import fold_batchnorm
from edgeclip.train.models.layers import to_precision
from edgeclip.train.models.repvgg import RepVgg
from edgeclip.train.models.resnet import ModifiedResNet
from edgeclip.train.models.text import TextTransformer
from edgeclip.train.models.vit import VisionTransformer

__all__ = [
    "Activation",
    "Clip",
    "ClipConfig",
    "ModifiedResNet",
    "RepVgg",
    "RepVggConfig",
    "ResNetConfig",
    "TextConfig",
    "TextTransformer",
    "VisionTransformer",
    "VitConfig",
    "fold_batchnorm",
    "image_tower",
    "list_configs",
    "list_published",
    "load_config",
    "to_precision",
]
