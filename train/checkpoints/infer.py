"""The architecture that a state dict's shapes imply, for checkpoints that carry no configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import msgspec
from torch import Tensor

from edgeclip.errors import CheckpointError
from edgeclip.manifest import Preprocess
from edgeclip.train.models.config import Activation, ClipConfig, ResNetConfig, TextConfig, VitConfig, known_name

HEAD_WIDTH = 64
"""Of every published CLIP. Shapes do not tell it. Source: arXiv 2103.00020, table 19 and 20."""

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the training images of OpenAI's CLIP, and the default of those who followed. Source: github.com/openai/CLIP."""


def openai_preprocess(image_size: int) -> Preprocess:
    """Shortest side to S by bicubic interpolation, then a centre crop as torchvision rounds it."""
    return Preprocess(size=image_size, mean=OPENAI_MEAN, std=OPENAI_STD, crop="round")


def infer_config(state: Mapping[str, Tensor], activation: Activation, where: str) -> ClipConfig:
    """Read the sizes off a state dict with `Clip`'s names; a head is taken to be 64 wide.

    Raises:
        CheckpointError: a tensor that tells a size is missing, or the sizes contradict each other.
    """
    try:
        image, image_size = _image(state, activation)
        text = _text(state, activation)
        embed_dim = state["text.projection.weight"].shape[0]
        config = ClipConfig(name="unnamed", embed_dim=embed_dim, image_size=image_size, image=image, text=text)
    except (KeyError, IndexError, ValueError) as exc:
        reason = f"there is no tensor {exc}" if isinstance(exc, KeyError) else str(exc)
        raise CheckpointError(f"{where}: the weights are not those of a CLIP model: {reason}") from exc
    return named(config)


def named(config: ClipConfig) -> ClipConfig:
    """With the name of the published architecture of these sizes, or one that says them."""
    image = config.image
    if isinstance(image, VitConfig):
        sizes = f"ViT-{image.width}x{image.layers}-{image.patch}-{config.image_size}"
    elif isinstance(image, ResNetConfig):
        sizes = f"RN-{image.width}x{'.'.join(map(str, image.layers))}-{config.image_size}"
    else:
        sizes = config.name
    return msgspec.structs.replace(config, name=known_name(config) or sizes)


def _image(state: Mapping[str, Tensor], activation: Activation) -> tuple[VitConfig | ResNetConfig, int]:
    """The image tower and the side of its input."""
    if "image.stages.0.0.reduce.conv.weight" in state:
        return _resnet(state)
    width, _, _, patch = state["image.patch_embedding.weight"].shape
    prefix = "image.transformer.blocks"
    vit = VitConfig(
        width=width,
        layers=_count(state, prefix),
        heads=_heads(width),
        patch=patch,
        mlp_width=state[f"{prefix}.0.mlp.expand.weight"].shape[0],
        activation=activation,
    )
    return vit, patch * _grid(state["image.position_embedding"])


def _resnet(state: Mapping[str, Tensor]) -> tuple[ResNetConfig, int]:
    width = state["image.stages.0.0.reduce.conv.weight"].shape[0]
    first, second, third, fourth = (_count(state, f"image.stages.{i}") for i in range(4))
    config = ResNetConfig(width=width, layers=(first, second, third, fourth), heads=_heads(width * 32))
    return config, 32 * _grid(state["image.pool.position_embedding"])


def _text(state: Mapping[str, Tensor], activation: Activation) -> TextConfig:
    vocab_size, width = state["text.token_embedding.weight"].shape
    prefix = "text.transformer.blocks"
    return TextConfig(
        width=width,
        layers=_count(state, prefix),
        heads=_heads(width),
        context_length=state["text.position_embedding"].shape[0],
        vocab_size=vocab_size,
        mlp_width=state[f"{prefix}.0.mlp.expand.weight"].shape[0],
        activation=activation,
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules there are under a prefix."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for name in state if (match := pattern.match(name))})


def _grid(positions: Tensor) -> int:
    """Side of the square of positions, of which one is the class token or the mean."""
    side = math.isqrt(positions.shape[0] - 1)
    if side**2 + 1 != positions.shape[0]:
        raise ValueError(f"{positions.shape[0]} positions are not a square and one")
    return side


def _heads(width: int) -> int:
    if width % HEAD_WIDTH:
        raise ValueError(f"a width of {width} is not a multiple of {HEAD_WIDTH}, so that the heads cannot be told")
    return width // HEAD_WIDTH
