"""Weights and activations as 8-bit integers in an ONNX file: QuantizeLinear and DequantizeLinear around layers.

Engines fuse a layer and the conversions around it into one integer kernel. Which tensors get conversions decides both
speed and accuracy. Each choice here was measured, as cosine to fp32 on held-out images and captions of a trained
RepVGG tower and text transformer, and as time in ONNX Runtime:

- Ranges are the lowest and highest values seen. Percentiles (99.99) and KL divergence have the same mean cosine but a
  lower minimum (images 0.9936 and 0.9770 against 0.9973): what they clip is what some input is about.
- Products of two activations in attention stay in float. As integers they gain no time and lose accuracy.
- Only layers' inputs are quantized, and convolutions' outputs, without which ONNX Runtime has no integer kernel for
  them. Residual sums, GELU, softmax and LayerNorm stay in float: to quantize whatever can be is the library's default,
  and brings the text tower down to a mean cosine of 0.84. ONNX Runtime moves sums and pools between convolutions into
  integers by itself.
- The final projection stays in float. It is one row of work, and a fifth of the image tower's error (1 - cosine
  5.9e-4 with it, 4.7e-4 without).
- So does the convolution that makes a ViT's patches: a hundredth of the work, and it feeds every layer.
"""

from __future__ import annotations

from typing import Any

from edgeclip.errors import ExportError
from edgeclip.manifest import Tower
from edgeclip.quantize import extremes, graphs, layers, onnx_weights
from edgeclip.quantize.float_first import float_first
from edgeclip.quantize.graphs import Array
from edgeclip.quantize.made import Made


def quantize_onnx(
    model: bytes, tower: Tower, samples: Array, *, keep: frozenset[str] = frozenset(), symmetric: bool = False
) -> Made:
    """Quantize weights and activations (`w8a8`).

    Weights are int8 with one scale an output channel. Activations are uint8 with a zero point, and the token table is
    int8, as ONNX Runtime likes it; with `symmetric`, activations are int8 with zero point 0, biases and the first
    convolution stay in float, and so does the token table, as TensorRT demands it. The file runs in ONNX Runtime
    either way.

    Args:
        model: fp32, as `edgeclip.export` or `widen` makes it.
        samples: the tower's inputs: uint8 [N, S, S, 3] pixels or int32 [N, C] token ids.
        keep: names of layers that stay in float. Without `symmetric`, so do the convolutions that feed them, whose
            outputs would be rounded otherwise.

    Returns:
        `{tower}.onnx`, self-contained, the same bytes each time.

    Raises:
        UsageError: a name in `keep` is no layer's, or the samples are none or not what the graph takes.
        NonFiniteError: NaN or infinity in weights or activations.
        ExportError: not an ONNX model.
        TargetUnavailableError: onnxruntime is missing.
        ResourceError: no room for a temporary copy of the model.
    """
    parsed = graphs.parse(model)
    found = layers.layers_of(parsed.graph)
    layers.check_kept(keep, found)
    layers.check_finite_in(parsed.graph)
    if not symmetric:
        keep = keep | _feeding(parsed.graph, keep)
    chosen = _choose(found, keep, symmetric)
    measured = extremes.measure(model, samples)
    onnx_weights.settle(parsed.graph, chosen)
    if symmetric:
        float_first(parsed.graph)
    quantized = _insert(parsed, measured, chosen, symmetric) if chosen else parsed
    _free(quantized.graph, chosen, symmetric)
    if not symmetric:
        onnx_weights.store_table(quantized.graph)
    _tidy(quantized, parsed)
    return Made({f"{tower}.onnx": graphs.serialize(quantized)}, layers.computed_in_integers(quantized.graph))


def _choose(found: list[layers.LayerInfo], keep: frozenset[str], symmetric: bool) -> list[str]:
    """Names of the layers to quantize: all with weights but the final projection, the patches and those to keep."""
    convolutions = [layer.name for layer in found if layer.op == "Conv"]
    spared = {found[-1].name, *(convolutions[:1] if symmetric or len(convolutions) == 1 else ())}
    return [layer.name for layer in found if layer.weighted and layer.name not in keep | spared]


def _feeding(graph: Any, keep: frozenset[str]) -> set[str]:
    """The convolutions whose outputs some layers read, with no other layer in between."""
    made_by = {name: node for node in graph.node for name in node.output}
    waiting = [name for node in graph.node if node.name in keep for name in node.input]
    seen, found = set[str](), set[str]()
    while waiting:
        node = made_by.get(name := waiting.pop())
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "Conv":
            found.add(node.name)
        elif node.op_type not in layers.OPS:
            waiting += node.input
    return found


def _insert(parsed: Any, measured: extremes.Ranges, chosen: list[str], symmetric: bool) -> Any:
    """Have ONNX Runtime's quantizer insert the conversions; it works on a copy."""
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType

    typed = onnx.shape_inference.infer_shapes(parsed)
    onnx.helper.set_model_props(typed, {"onnx.infer": "onnxruntime.quant"})  # or it would do so itself, in a file
    options = {
        "ActivationSymmetric": symmetric,
        "WeightSymmetric": True,
        "QuantizeBias": not symmetric,
        "OpTypesToExcludeOutputQuantization": list(layers.OPS if symmetric else ("Gemm", "MatMul")),
    }
    activations = QuantType.QInt8 if symmetric else QuantType.QUInt8
    nodes = chosen if symmetric else chosen + _rectifiers(parsed.graph, chosen)
    types = list(extremes.OPS)
    try:
        quantizer = QDQQuantizer(
            typed, True, False, QuantType.QInt8, activations, measured, nodes, [], types, options
        )  # fmt: skip
        quantized = quantizer.quantize_model()
        quantizer.model.topological_sort()
    except (ValueError, KeyError, RuntimeError, AttributeError) as exc:
        raise ExportError(f"onnxruntime cannot quantize the graph: {type(exc).__name__}: {exc}") from exc
    return quantized


def _rectifiers(graph: Any, chosen: list[str]) -> list[str]:
    """The ReLUs behind the chosen convolutions: unsigned outputs do what they do, so that they disappear."""
    outputs = {n.output[0] for n in graph.node if n.op_type == "Conv" and n.name in set(chosen)}
    return [n.name for n in graph.node if n.op_type == "Relu" and n.input[0] in outputs]


def _free(graph: Any, chosen: list[str], symmetric: bool) -> None:
    """Let the layers that stay in float read what other layers read in integers before it was rounded.

    Not what an unsigned convolution made: its ReLU may have become part of the rounding.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type not in layers.OPS or node.name in chosen:
            continue
        for i, name in enumerate(node.input):
            original = _before_rounding(name, made_by)
            if original and (symmetric or original not in made_by or made_by[original].op_type != "Conv"):
                node.input[i] = original
    graphs.drop_unread(graph)


def _before_rounding(name: str, made_by: dict[str, Any]) -> str | None:
    """The value that a DequantizeLinear's output was quantized from; None where it is something else."""
    steps = []
    for op in ("DequantizeLinear", "QuantizeLinear"):
        node = made_by.get(name)
        if node is None or node.op_type != op:
            return None
        steps.append(node)
        name = node.input[0]
    return name


def _tidy(model: Any, original: Any) -> None:
    """Drop what the quantizer notes beside the graph."""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.producer_name = original.producer_name
    model.producer_version = original.producer_version
