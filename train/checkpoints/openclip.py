"""OpenCLIP's `open_clip_config.json`. Source: github.com/mlfoundations/open_clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgeclip.errors import CheckpointError
from edgeclip.manifest import Preprocess
from edgeclip.train.checkpoints.files import convert, read_json, square
from edgeclip.train.checkpoints.infer import OPENAI_MEAN, OPENAI_STD, named
from edgeclip.train.models.config import ClipConfig

CONFIG = "open_clip_config.json"

_HARMLESS = {
    "vision_cfg": {
        "patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool", "timm_proj",
        "timm_proj_bias", "timm_drop", "timm_drop_path",
    },
    "text_cfg": {
        "hf_tokenizer_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "tokenizer_kwargs",
        "tokenizer_mode", "pad_id", "eos_id",
    },
}  # fmt: skip
"""Settings of training, of tokenizers, and of parts that the model has only when another setting says so."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
    "block_type": ("default",),
}
"""Settings whose value is that of CLIP. Everything else must be absent, null, false or empty."""


class _Vision(msgspec.Struct):
    layers: int | list[int] = 12
    width: int = 768
    head_width: int = 64
    mlp_ratio: float = 4.0
    patch_size: int | list[int] = 16
    image_size: int | list[int] = 224
    pool_type: str = "tok"
    norm_kwargs: dict[str, float] | None = None


class _Text(msgspec.Struct):
    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12
    mlp_ratio: float = 4.0
    pool_type: str = "argmax"
    eos_id: int = 2
    norm_kwargs: dict[str, float] | None = None


class _Model(msgspec.Struct):
    embed_dim: int
    vision_cfg: dict[str, Any]
    text_cfg: dict[str, Any]
    quick_gelu: bool = False
    multimodal_cfg: dict[str, Any] | None = None


class _Preprocess(msgspec.Struct):
    size: int | list[int] | None = None
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


class _Root(msgspec.Struct):
    model_cfg: _Model
    preprocess_cfg: _Preprocess = msgspec.field(default_factory=_Preprocess)


def read_openclip(folder: Path) -> tuple[ClipConfig, Preprocess]:
    """The architecture and the preprocessing of an OpenCLIP directory.

    Raises:
        CheckpointError: the file is malformed, or asks for something that is not plain CLIP.
    """
    root = read_json(folder / CONFIG, _Root)
    config = _config(root.model_cfg)
    return config, _preprocess(root.preprocess_cfg, config.image_size)


def _config(model: _Model) -> ClipConfig:
    if model.multimodal_cfg:
        raise CheckpointError(f"{CONFIG}: multimodal_cfg is not supported", hint="CoCa is not a two-tower CLIP")
    vision = _section(model.vision_cfg, _Vision, "vision_cfg")
    text = _section(model.text_cfg, _Text, "text_cfg")
    activation = "quick_gelu" if model.quick_gelu else "gelu"
    values = {
        "name": "unnamed",
        "embed_dim": model.embed_dim,
        "image_size": square(vision.image_size, "image_size", CONFIG),
        "image": _image(vision, activation),
        "text": _text(text, activation),
    }
    return named(convert(values, ClipConfig, CONFIG))


def _section(values: dict[str, Any], kind: type[Any], name: str) -> Any:
    """One tower's settings, of which none may ask for what `Clip` does not do."""
    known = set(kind.__struct_fields__) | _HARMLESS[name]
    for key, value in values.items():
        if key not in known and value and value not in _NEUTRAL.get(key, ()):
            raise CheckpointError(f"{CONFIG}: {name}.{key} = {value!r} is not supported", hint="only plain CLIP is")
    return convert(values, kind, f"{CONFIG}: {name}")


def _image(vision: _Vision, activation: str) -> dict[str, Any]:
    if isinstance(vision.layers, list):
        heads = vision.width * 32 // vision.head_width
        return {"kind": "resnet", "width": vision.width, "layers": vision.layers, "heads": heads}
    if vision.pool_type != "tok":
        raise CheckpointError(f"{CONFIG}: vision_cfg.pool_type = {vision.pool_type!r} is not supported")
    return {
        "kind": "vit",
        "width": vision.width,
        "layers": vision.layers,
        "heads": vision.width // vision.head_width,
        "patch": square(vision.patch_size, "patch_size", CONFIG),
        "mlp_width": int(vision.width * vision.mlp_ratio),
        "activation": activation,
    } | _norm(vision.norm_kwargs)


def _text(text: _Text, activation: str) -> dict[str, Any]:
    if text.pool_type not in ("argmax", "eos"):
        raise CheckpointError(f"{CONFIG}: text_cfg.pool_type = {text.pool_type!r} is not supported")
    return {
        "width": text.width,
        "layers": text.layers,
        "heads": text.heads,
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "mlp_width": int(text.width * text.mlp_ratio),
        "activation": activation,
        "eot_id": text.eos_id if text.pool_type == "eos" else None,
    } | _norm(text.norm_kwargs)


def _norm(settings: dict[str, float] | None) -> dict[str, float]:
    return {"layer_norm_eps": settings["eps"]} if settings and "eps" in settings else {}


def _preprocess(values: _Preprocess, image_size: int) -> Preprocess:
    size = square(values.size or image_size, "preprocess_cfg.size", CONFIG)
    if size != image_size:
        raise CheckpointError(f"{CONFIG}: images of {size} for a model of {image_size}")
    fields = {
        "size": size,
        "mean": values.mean,
        "std": values.std,
        "resize": values.resize_mode,
        # `random` is a training augmentation; upstream evaluates with bicubic then.
        "interpolation": "bicubic" if values.interpolation == "random" else values.interpolation,
        "crop": "round",
    }
    return convert(fields, Preprocess, f"{CONFIG}: preprocess_cfg")
