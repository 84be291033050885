"""Configuration and preprocessing of a transformers `CLIPModel` directory. Source: transformers 5, models/clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgeclip.errors import CheckpointError
from edgeclip.manifest import Preprocess
from edgeclip.train.checkpoints.files import convert, read_json, square
from edgeclip.train.checkpoints.infer import OPENAI_MEAN, OPENAI_STD, named
from edgeclip.train.models.config import ClipConfig

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"

LEGACY_EOS_ID = 2
"""A wrong id in early configurations, by which transformers still means "the row's highest id"."""
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""


class _Vision(msgspec.Struct):
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int | list[int] = 224
    patch_size: int | list[int] = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


class _Text(msgspec.Struct):
    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int | list[int] = 49407


class _Model(msgspec.Struct):
    model_type: str
    projection_dim: int = 512
    text_config: _Text | None = None
    vision_config: _Vision | None = None
    text_config_dict: _Text | None = None
    vision_config_dict: _Vision | None = None


class _Preprocessor(msgspec.Struct):
    image_processor_type: str = "CLIPImageProcessor"
    do_resize: bool = True
    size: int | dict[str, int | None] = 224
    resample: int = 3
    do_center_crop: bool = True
    crop_size: int | dict[str, int | None] = 224
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = OPENAI_MEAN
    image_std: tuple[float, float, float] = OPENAI_STD


class _Processor(msgspec.Struct):
    image_processor: _Preprocessor | None = None


def read_huggingface(folder: Path) -> tuple[ClipConfig, Preprocess]:
    """The architecture and the preprocessing of a `CLIPModel` directory.

    Without a preprocessor's configuration, images are made as transformers' `CLIPImageProcessor` makes them.

    Raises:
        CheckpointError: a file is malformed, or asks for something that is not plain CLIP.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder.name}: Hugging Face weights without {CONFIG}",
            hint="pass what `save_pretrained` wrote",
        )
    model = read_json(folder / CONFIG, _Model)
    if model.model_type != "clip":
        raise CheckpointError(f"{CONFIG}: model_type {model.model_type!r} is not supported", hint="only 'clip' is")
    config = _config(model)
    return config, _preprocess(_preprocessor(folder, config.image_size), config.image_size)


def _config(model: _Model) -> ClipConfig:
    # Where the old `*_config_dict` is present, transformers lets it and the defaults override `*_config`.
    vision = model.vision_config_dict or model.vision_config or _Vision()
    text = model.text_config_dict or model.text_config or _Text()
    if vision.num_channels != 3:
        raise CheckpointError(f"{CONFIG}: {vision.num_channels} channels are not supported")
    values = {
        "name": "unnamed",
        "embed_dim": model.projection_dim,
        "image_size": square(vision.image_size, "image_size", CONFIG),
        "image": {
            "kind": "vit",
            "patch": square(vision.patch_size, "patch_size", CONFIG),
            **_transformer(vision),
        },
        "text": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "eot_id": _eot_id(text.eos_token_id),
            **_transformer(text),
        },
    }
    return named(convert(values, ClipConfig, CONFIG))


def _transformer(tower: _Vision | _Text) -> dict[str, Any]:
    return {
        "width": tower.hidden_size,
        "layers": tower.num_hidden_layers,
        "heads": tower.num_attention_heads,
        "mlp_width": tower.intermediate_size,
        "activation": tower.hidden_act,
        "layer_norm_eps": tower.layer_norm_eps,
    }


def _eot_id(eos: int | list[int]) -> int | None:
    ids = [eos] if isinstance(eos, int) else eos
    if len(ids) != 1:
        raise CheckpointError(f"{CONFIG}: eos_token_id {eos} is not one id")
    return None if ids[0] == LEGACY_EOS_ID else ids[0]


def _preprocessor(folder: Path, image_size: int) -> _Preprocessor:
    if (folder / PREPROCESSOR).is_file():
        return read_json(folder / PREPROCESSOR, _Preprocessor)
    if (folder / PROCESSOR).is_file():
        inner = read_json(folder / PROCESSOR, _Processor).image_processor
        if inner is not None:
            return inner
    return _Preprocessor(size=image_size, crop_size=image_size)


def _preprocess(values: _Preprocessor, image_size: int) -> Preprocess:
    if not values.image_processor_type.startswith("CLIP"):
        raise CheckpointError(f"{PREPROCESSOR}: {values.image_processor_type} is not supported")
    if not values.do_resize or not values.do_rescale or abs(values.rescale_factor * 255 - 1) > 1e-6:
        raise CheckpointError(f"{PREPROCESSOR}: images must be resized, and scaled by 1/255")
    if values.resample not in _INTERPOLATION:
        raise CheckpointError(f"{PREPROCESSOR}: resample {values.resample} is neither bilinear (2) nor bicubic (3)")
    fields = {
        "size": image_size,
        "mean": values.image_mean if values.do_normalize else (0.0, 0.0, 0.0),
        "std": values.image_std if values.do_normalize else (1.0, 1.0, 1.0),
        "resize": _resize(values, image_size),
        "interpolation": _INTERPOLATION[values.resample],
        "crop": "floor",
    }
    return convert(fields, Preprocess, PREPROCESSOR)


def _resize(values: _Preprocessor, image_size: int) -> str:
    """`shortest` or `squash`, if the steps make the square that the model takes.

    Raises:
        CheckpointError: they make something else.
    """
    size: dict[str, int | None] = {"shortest_edge": values.size} if isinstance(values.size, int) else values.size
    sides = {key: side for key, side in size.items() if side is not None}
    crop: dict[str, int | None] = (
        {"height": values.crop_size} if isinstance(values.crop_size, int) else values.crop_size
    )
    cropped = values.do_center_crop and {side for side in crop.values() if side is not None} == {image_size}
    if sides == {"shortest_edge": image_size} and cropped:
        return "shortest"
    if sides == {"height": image_size, "width": image_size} and (cropped or not values.do_center_crop):
        return "squash"
    crops = f"then crop to {values.crop_size}" if values.do_center_crop else "without a crop"
    raise CheckpointError(
        f"{PREPROCESSOR}: resize to {values.size} {crops} does not make the model's {image_size} x {image_size}"
    )
