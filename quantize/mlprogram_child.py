"""The child process of `mlprogram`: a Core ML package in, a smaller one and the names of its integer layers out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgeclip.quantize import mil
from edgeclip.quantize.deployment import SYSTEMS
from edgeclip.quantize.groups import group_size
from edgeclip.quantize.mil import ct
from edgeclip.quantize.mil_process import OPTIONS, RESULT, serve
from edgeclip.quantize.onnx_weights import MIN_SIZE, to_integers
from edgeclip.quantize.palette import palette

LAYERS = ("conv", "linear")
CHANNELS = 16
"""Output channels that share a table, where tables can be shared by some channels."""
MAX_ERROR = 0.02
"""Of a weight in int8 with a scale a channel, relative to its length; Gaussian weights have 0.008. A 3x3 convolution
that a residual was folded into has a 1 among small numbers, and 0.1."""
_GROUPS_SINCE = SYSTEMS["iOS18"]
_compress = ct.optimize.coreml
Weights = dict[str, NDArray[Any]]


def main(folder: Path) -> None:
    options = json.loads((folder / OPTIONS).read_text("utf-8"))
    tower, precision, keep = options["tower"], options["precision"], set(options["keep"])
    model = mil.read(folder, tower)
    weights, of_pixels = _weights(model, keep)
    if precision == "w8a8":
        model = _round_activations(model, options["ranges"], keep)
    model = _eight(model, of_pixels)
    model = _MAKERS[precision](model, weights)
    (folder / "quantized.json").write_text(json.dumps(_quantized(model, activations=precision == "w8a8")), "utf-8")
    mil.store(model, folder / RESULT, tower)


def _weights(model: Any, keep: set[str]) -> tuple[Weights, Weights]:
    """The weights to compress, by the names of their constants: those of layers, and the table of tokens.

    Those of a layer that sees the pixels are apart: they are few, and cost much where they are rounded to less than 8
    bits. In a convolutional tower, rounded to 4 bits, they cost five times as much as all others together.
    """
    unfed = _sees_pixels(model)
    weights: Weights = {}
    of_pixels: Weights = {}
    for constant, uses in _used(model).items():
        if constant.val.size >= MIN_SIZE and not keep & uses:
            (of_pixels if unfed & uses else weights)[constant.op.name] = constant.val
    return weights, of_pixels


def _used(model: Any) -> dict[Any, set[str]]:
    """The constants that are weights of layers, or tables that rows are looked up in, and the names of their users."""
    spec = model.get_spec()
    load = ct.converters.mil.frontend.milproto.load.load
    found: dict[Any, set[str]] = {}
    for operation in load(spec, spec.specificationVersion, model.weights_dir).functions["main"].operations:
        value = operation.inputs.get({"gather": "x"}.get(operation.op_type, "weight"))
        if operation.op_type in (*LAYERS, "gather") and value.op is not None and value.op.op_type == "const":
            found.setdefault(value, set()).add(mil.name_of(operation.name))
    return found


def _eight(model: Any, weights: Weights) -> Any:
    """Integers with a scale a channel, or a table where they would lose much."""
    if not weights:
        return model
    poor = {name: weight for name, weight in weights.items() if _error(weight) > MAX_ERROR}
    config = _compress.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=MIN_SIZE
    )
    model = _compress.linear_quantize_weights(model, _only({name: config for name in weights if name not in poor}))
    return _tables(model, poor, 8, grouped=False)


def _error(weight: NDArray[Any]) -> float:
    """How far a weight in int8 is from the weight, relative to its length."""
    wide = weight.astype(np.float32)
    codes, scales = to_integers(wide, 0)
    return float(np.linalg.norm(codes * scales - wide)) / max(float(np.linalg.norm(wide)), 1e-30)


def _six(model: Any, weights: Weights) -> Any:
    return _tables(model, weights, 6, grouped=model.get_spec().specificationVersion >= _GROUPS_SINCE)


def _four(model: Any, weights: Weights) -> Any:
    return _tables(model, weights, 4, grouped=True)


_MAKERS: dict[str, Callable[[Any, Weights], Any]] = {"w8a16": _eight, "w8a8": _eight, "w6a16": _six, "w4a16": _four}


def _tables(model: Any, weights: Weights, bits: int, *, grouped: bool) -> Any:
    """Round to tables: one for each weight, or one for each few output channels."""
    if not weights:
        return model
    return _compress.palettize_weights(
        model, _only({name: _table_config(weight, bits, grouped) for name, weight in weights.items()})
    )


def _table_config(weight: NDArray[Any], bits: int, grouped: bool) -> Any:
    def rounded(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        table, places = palette(values, bits)
        return table.astype(values.dtype), places.reshape(-1)

    sharing: dict[str, Any] = {"granularity": "per_tensor"}
    if grouped:
        sharing = {"granularity": "per_grouped_channel", "group_size": group_size(len(weight), CHANNELS)}
    return _compress.OpPalettizerConfig(mode="custom", lut_function=rounded, weight_threshold=MIN_SIZE, **sharing)


def _only(configs: Mapping[str, Any]) -> Any:
    """Leave alone what is not named."""
    return _compress.OptimizationConfig(op_name_configs=dict(configs))


def _round_activations(model: Any, ranges: dict[str, list[float]], keep: set[str]) -> Any:
    """Round what each layer takes to int8 and back, but pixels and what is kept."""
    taken = {name: value for name, value in _taken(model).items() if mil.name_of(name) not in keep}
    config = _compress.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8")
    statistics = {}
    for name, value in taken.items():
        low, high = ranges[mil.name_of(name)]
        statistics[value] = {"rmin": min(low, 0.0), "rmax": max(high, 0.0)}
    rounding = ct.converters.mil.mil.passes.pass_registry.PASS_REGISTRY[
        "compression::insert_prefix_quantize_dequantize_pair"
    ]
    rounding.config, rounding.activation_stats = _only(dict.fromkeys(taken, config)), statistics
    return ct.models.utils._apply_graph_pass(model, rounding, spec_version=SYSTEMS["iOS17"], skip_model_load=True)


def _taken(model: Any) -> dict[str, str]:
    """The name of the value that each layer takes, by the layer's; without those that see the pixels."""
    unfed = _sees_pixels(model)
    return {
        _name(operation): _argument(operation, "x")
        for operation in _operations(model)
        if operation.type in LAYERS and mil.name_of(_name(operation)) not in unfed
    }


def _sees_pixels(model: Any) -> set[str]:
    """Names of the layers that no other layer feeds, as the stem of an image tower; none of a text tower."""
    if not any(feature.type.HasField("imageType") for feature in model.get_spec().description.input):
        return set()
    fed: set[str] = set()
    found = set()
    for operation in _operations(model):
        is_fed = bool(fed & _arguments(operation))
        if operation.type in LAYERS and not is_fed:
            found.add(mil.name_of(_name(operation)))
        if operation.type in LAYERS or is_fed:
            fed.update(result.name for result in operation.outputs)
    return found


def _quantized(model: Any, *, activations: bool) -> list[str]:
    """Names of the layers whose weights are stored as integers, and, if wanted, whose activations are rounded too."""
    made_by = {result.name: operation.type for operation in _operations(model) for result in operation.outputs}
    found = []
    for operation in _operations(model):
        stored = made_by.get(_argument(operation, "weight"), "").startswith("constexpr_")
        rounded = not activations or made_by.get(_argument(operation, "x")) == "dequantize"
        if operation.type in LAYERS and stored and rounded:
            found.append(mil.name_of(_name(operation)))
    return sorted(found)


def _operations(model: Any) -> Iterable[Any]:
    """Of the program, in order; as protobuf has them."""
    (block,) = model.get_spec().mlProgram.functions["main"].block_specializations.values()
    return cast("Iterable[Any]", block.operations)


def _name(operation: Any) -> str:
    return str(operation.attributes["name"].immediateValue.tensor.strings.values[0])


def _argument(operation: Any, name: str) -> str:
    arguments = operation.inputs[name].arguments if name in operation.inputs else []
    return str(arguments[0].name) if arguments else ""


def _arguments(operation: Any) -> set[str]:
    return {argument.name for value in operation.inputs.values() for argument in value.arguments}


if __name__ == "__main__":
    serve(main)
