"""What a CLIP model is made of, as strict structs; the architectures that OpenAI published, and ours for the edge."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgeclip.errors import UsageError

Activation = Literal["quick_gelu", "gelu"]
Branch = Literal["pointwise", "identity", "skip"]
Count = Annotated[int, Meta(ge=1, le=1 << 20)]
Epsilon = Annotated[float, Meta(gt=0.0, le=0.1)]
TokenId = Annotated[int, Meta(ge=0, le=1 << 24)]

CONFIGS = Path(__file__).parent / "configs"
OURS = "edge-"
"""What the names of our own architectures begin with; the others are OpenAI's."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every struct here."""


class VitConfig(Config, frozen=True, tag="vit", tag_field="kind"):
    """A vision transformer. Source: arXiv 2010.11929, with a LayerNorm before the transformer (arXiv 2103.00020)."""

    width: Count
    layers: Count
    heads: Count
    patch: Count
    """Side of a patch in pixels."""
    mlp_width: Count
    activation: Activation
    layer_norm_eps: Epsilon = 1e-5

    def __post_init__(self) -> None:
        _check_heads(self.width, self.heads)


class ResNetConfig(Config, frozen=True, tag="resnet", tag_field="kind"):
    """A ModifiedResNet: three-convolution stem, average-pooled strides, attention pooling."""

    width: Annotated[int, Meta(ge=2, le=4096, multiple_of=2)]
    """Channels after the stem; the last stage has 32 times as many."""
    layers: tuple[Count, Count, Count, Count]
    """Blocks of each stage."""
    heads: Count
    """Of the attention pooling."""

    def __post_init__(self) -> None:
        _check_heads(self.width * 32, self.heads)


class RepVggConfig(Config, frozen=True, tag="repvgg", tag_field="kind"):
    """3x3 convolutions whose branches fold away after training: a stem of stride 2, stages, a pooled head."""

    stem: Count
    """Channels after the stem."""
    widths: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=8)]
    """Channels of each stage."""
    depths: tuple[Count, ...]
    """Blocks of each stage."""
    strides: tuple[Literal[1, 2], ...]
    """Of each stage's first block."""
    branches: tuple[Branch, ...] = ("skip",)
    """Beside each 3x3 convolution, in training: a normalised 1x1 convolution, the normalised input, the input."""
    pool: Literal["average", "attention"] = "average"
    heads: Count = 1
    """Of attention pooling."""

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.depths) == len(self.strides):
            sizes = f"{len(self.widths)} widths, {len(self.depths)} depths and {len(self.strides)} strides"
            raise ValueError(f"{sizes}: each stage needs one of each")
        if len(set(self.branches)) < len(self.branches):
            raise ValueError(f"a branch is named twice: {', '.join(self.branches)}")
        _check_heads(self.widths[-1], self.heads)

    @property
    def stride(self) -> int:
        """Side of the input over side of the last stage's map."""
        return 2 * math.prod(self.strides)


class TextConfig(Config, frozen=True):
    """A causal transformer over token ids."""

    width: Count
    layers: Count
    heads: Count
    context_length: Count
    vocab_size: Count
    mlp_width: Count
    activation: Activation
    layer_norm_eps: Epsilon = 1e-5
    eot_id: TokenId | None = None
    """The feature is read at the first position of this id; None: at the first position of the row's highest id."""

    def __post_init__(self) -> None:
        _check_heads(self.width, self.heads)


class ClipConfig(Config, frozen=True):
    """Both towers and the space that they share."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    embed_dim: Count
    image_size: Annotated[int, Meta(ge=1, le=4096)]
    """Side S of the square input in pixels."""
    image: VitConfig | ResNetConfig | RepVggConfig
    text: TextConfig
    folded: bool = False
    """Batch normalisation and parallel branches of the image tower are in its convolutions' weights."""

    def __post_init__(self) -> None:
        if isinstance(self.image, ResNetConfig) and self.image_size % 32:
            raise ValueError(f"a ResNet needs an image_size that 32 divides, got {self.image_size}")
        if isinstance(self.image, RepVggConfig) and self.image_size % self.image.stride:
            raise ValueError(f"a stride of {self.image.stride} does not divide an image_size of {self.image_size}")
        if isinstance(self.image, VitConfig) and self.image_size < self.image.patch:
            raise ValueError(f"patches of {self.image.patch} do not fit an image_size of {self.image_size}")

    @property
    def activation(self) -> Activation:
        """The text tower's; every published CLIP has the same one in both towers."""
        return self.text.activation

    def with_activation(self, activation: Activation) -> ClipConfig:
        """The same model with this activation in both towers."""
        image = self.image
        if isinstance(image, VitConfig):
            image = msgspec.structs.replace(image, activation=activation)
        text = msgspec.structs.replace(self.text, activation=activation)
        return msgspec.structs.replace(self, image=image, text=text)


def list_configs() -> tuple[str, ...]:
    """Names that `load_config` knows, sorted."""
    return tuple(sorted(path.stem for path in CONFIGS.glob("*.json")))


def list_published() -> tuple[str, ...]:
    """Those of the names that are OpenAI's, sorted."""
    return tuple(name for name in list_configs() if not name.startswith(OURS))


def load_config(name: str) -> ClipConfig:
    """One of the architectures that have a name; `ViT-B/32` and `ViT-L/14@336px` mean `ViT-B-32` and `ViT-L-14-336`.

    Raises:
        UsageError: there is no such architecture.
    """
    known = list_configs()
    stem = name.replace("/", "-").replace("@", "-").removesuffix("px")
    if stem not in known:
        close = difflib.get_close_matches(stem, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise UsageError(f"unknown architecture {name!r}", hint=hint)
    return msgspec.json.decode((CONFIGS / f"{stem}.json").read_bytes(), type=ClipConfig)


def known_name(config: ClipConfig) -> str | None:
    """Name of the published architecture that has these sizes, whatever its activation and pooling."""
    return next((name for name in list_published() if _sizes(load_config(name)) == _sizes(config)), None)


def _sizes(config: ClipConfig) -> ClipConfig:
    """The config without what leaves its tensors alone."""
    plain = config.with_activation("gelu")
    text = msgspec.structs.replace(plain.text, eot_id=None)
    return msgspec.structs.replace(plain, name="-", text=text)


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}")
