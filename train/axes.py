"""What each axis of each weight of a `Clip` counts, by name: a smaller model has axes of one name cut alike.

A name stands for a set of channels, such as the residual stream of a transformer, or the neurons of one MLP.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeclip.train.models.config import ClipConfig, RepVggConfig, ResNetConfig, TextConfig, VitConfig

Axes = tuple[str | None, ...]
"""One name for each axis; None where the axis is never cut."""
JOINT = "joint"
"""The space that both towers share."""
PREFIX = "positions"
"""An axis of which a smaller model takes the first entries."""


def axes_of(config: ClipConfig) -> dict[str, Axes]:
    """Parameter or buffer -> its axes, for every one that has any."""
    image = config.image
    if isinstance(image, VitConfig):
        named = _vit(image)
    elif isinstance(image, ResNetConfig):
        named = _resnet(image)
    else:
        named = _repvgg(image)
    return dict([*named, *_text(config.text)])


def heads_of(config: ClipConfig) -> dict[str, int]:
    """Name of an axis that is split into heads -> how many."""
    text = dict.fromkeys(_head_names("text", config.text.layers), config.text.heads)
    image = config.image
    if isinstance(image, VitConfig):
        return text | dict.fromkeys(_head_names("image", image.layers), image.heads)
    return text | {"image.pool.heads": image.heads}


def _head_names(tower: str, layers: int) -> list[str]:
    return [f"{tower}.transformer.blocks.{i}.attention" for i in range(layers)]


def _vit(config: VitConfig) -> Iterator[tuple[str, Axes]]:
    width = "image.width"
    yield "image.patch_embedding.weight", (width, None, None, None)
    yield "image.class_embedding", (width,)
    yield "image.position_embedding", (None, width)
    yield from _pair("image.norm_pre", width)
    yield from _transformer("image", config.layers, width)


def _text(config: TextConfig) -> Iterator[tuple[str, Axes]]:
    width = "text.width"
    yield "text.token_embedding.weight", (None, width)
    yield "text.position_embedding", (PREFIX, width)
    yield from _transformer("text", config.layers, width)


def _transformer(tower: str, layers: int, width: str) -> Iterator[tuple[str, Axes]]:
    for i in range(layers):
        block = f"{tower}.transformer.blocks.{i}"
        yield from _pair(f"{block}.norm_attention", width)
        yield from _pair(f"{block}.norm_mlp", width)
        yield from _attention(f"{block}.attention", width, f"{block}.attention", width)
        yield from _linear(f"{block}.mlp.expand", f"{block}.mlp", width)
        yield from _linear(f"{block}.mlp.contract", width, f"{block}.mlp")
    yield from _pair(f"{tower}.norm_post", width)
    yield f"{tower}.projection.weight", (JOINT, width)


def _attention(where: str, inputs: str, inner: str, outputs: str) -> Iterator[tuple[str, Axes]]:
    for name in ("query", "key", "value"):
        yield from _linear(f"{where}.{name}", inner, inputs)
    yield from _linear(f"{where}.out", outputs, inner)


def _resnet(config: ResNetConfig) -> Iterator[tuple[str, Axes]]:
    inputs: str | None = None
    for i, name in enumerate(("image.stem.0", "image.stem.1", "image.stem")):
        yield from _conv_norm(f"image.stem.{i}", name, inputs)
        inputs = name
    assert inputs is not None
    for i, depth in enumerate(config.layers):
        outputs = f"image.stages.{i}"
        for j in range(depth):
            yield from _bottleneck(f"{outputs}.{j}", inputs, outputs, shortcut=j == 0)
            inputs = outputs
    yield from _attention_pool(inputs)


def _bottleneck(block: str, inputs: str, outputs: str, *, shortcut: bool) -> Iterator[tuple[str, Axes]]:
    yield from _conv_norm(f"{block}.reduce", f"{block}.reduce", inputs)
    yield from _conv_norm(f"{block}.spatial", f"{block}.spatial", f"{block}.reduce")
    yield from _conv_norm(f"{block}.expand", outputs, f"{block}.spatial")
    if shortcut:
        yield from _conv_norm(f"{block}.shortcut", outputs, inputs)


def _repvgg(config: RepVggConfig) -> Iterator[tuple[str, Axes]]:
    yield from _rep_block("image.stem", "image.stem", None, config)
    inputs, channels = "image.stem", config.stem
    for i, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        outputs = f"image.stages.{i}"
        kept = config.strides[i] == 1 and width == channels
        for j in range(depth):
            same = j > 0 or kept
            name = inputs if same else outputs  # what is added to its input has the input's channels
            yield from _rep_block(f"{outputs}.{j}", name, inputs, config, same=same)
            inputs = name
        channels = width
    if config.pool == "attention":
        yield from _attention_pool(inputs)
    else:
        yield "image.pool.projection.weight", (JOINT, inputs)


def _rep_block(
    block: str, outputs: str, inputs: str | None, config: RepVggConfig, *, same: bool = False
) -> Iterator[tuple[str, Axes]]:
    yield from _conv_norm(f"{block}.spatial", outputs, inputs)
    if "pointwise" in config.branches:
        yield from _conv_norm(f"{block}.pointwise", outputs, inputs)
    if same and "identity" in config.branches:
        yield from _batch_norm(f"{block}.identity", outputs)


def _attention_pool(width: str) -> Iterator[tuple[str, Axes]]:
    yield "image.pool.position_embedding", (None, width)
    yield from _attention("image.pool.attention", width, "image.pool.heads", JOINT)


def _conv_norm(where: str, outputs: str, inputs: str | None) -> Iterator[tuple[str, Axes]]:
    yield f"{where}.conv.weight", (outputs, inputs, None, None)
    yield from _batch_norm(f"{where}.norm", outputs)


def _batch_norm(where: str, channels: str) -> Iterator[tuple[str, Axes]]:
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{where}.{name}", (channels,)


def _linear(where: str, outputs: str, inputs: str) -> Iterator[tuple[str, Axes]]:
    yield f"{where}.weight", (outputs, inputs)
    yield f"{where}.bias", (outputs,)


def _pair(where: str, width: str) -> Iterator[tuple[str, Axes]]:
    yield f"{where}.weight", (width,)
    yield f"{where}.bias", (width,)
