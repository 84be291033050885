"""Convolutions with weights in 4 bits, which NNCF makes of matrices alone. Of the child process only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.ov_library import ov
from edgeclip.quantize import ir_graph
from edgeclip.quantize.correction import unfold
from edgeclip.quantize.groups import group_size
from edgeclip.quantize.ir_rounding import correct_rounding, pack, round_to_int4
from edgeclip.quantize.sums import round_windows


def compress_convolutions(model: Any, keep: Iterable[str], group: int, samples: NDArray[Any] | None) -> None:
    """Store the weights of convolutions in 4 bits, one by one in graph order.

    One that sees the pixels is left to NNCF, which stores it in 8 bits: in a convolutional tower its rounding to 4 bits
    cost five times as much as that of all others together, and it holds few of the weights.

    Given: float32 [O, I, H, W]. Result: int4 [O, G, g] times scale [O, G, 1], reshaped to [O, I, H, W].

    Args:
        keep: names of layers that are left as they are.
        group: weights that share a scale, at most.
        samples: inputs of the model, on which the rounding is corrected, each convolution seeing what the ones before
            it have become.
    """
    kept, unfed = set(keep), ir_graph.sees_input(model)
    for node in ir_graph.layers(model):
        weight = node.input_value(1).get_node()
        if node.get_type_name() == "MatMul" or weight.get_type_name() != "Constant":
            continue
        if ir_graph.name_of(node) in kept or node.get_friendly_name() in unfed:
            continue
        rows = np.asarray(weight.data, np.float32).reshape(weight.get_output_shape(0)[0], -1)
        size = group_size(rows.shape[1], group)
        if samples is None or not _can_unfold(node):
            levels, scales = round_to_int4(rows, size)
        else:
            levels, scales = correct_rounding(rows, size, _hessian(model, node, samples))
        node.input(1).replace_source_output(_stored(weight, levels, scales))


def kernels(model: Any) -> dict[str, NDArray[np.float32]]:
    """The weights of convolutions, by the names of their nodes."""
    found = {}
    for node in ir_graph.layers(model):
        values = ir_graph.values_of(node.input_value(1).get_node()) if node.get_type_name() == "Convolution" else None
        if values is not None:
            found[node.get_friendly_name()] = np.array(values, np.float32)
    return found


def keep_sums(model: Any, exact: dict[str, NDArray[np.float32]]) -> None:
    """Round convolutions that NNCF has stored in 8 bits anew, so that windows keep their sums; scales stay.

    Given and result: int8 [O, I, H, W] → Convert → Multiply by scale [O, 1, 1, 1] → … → Convolution.

    Args:
        exact: `kernels` of the model as it was.
    """
    for node in ir_graph.layers(model):
        scaled = ir_graph.behind(node.input_value(1).get_node(), "Multiply")
        if scaled is None or node.get_friendly_name() not in exact:
            continue
        convert, scales = scaled.input_value(0).get_node(), ir_graph.values_of(scaled.input_value(1).get_node())
        stored = convert.input_value(0).get_node() if convert.get_type_name() == "Convert" else None
        if stored is None or scales is None or stored.get_element_type() != ov.Type.i8:
            continue
        anew = ov.opset13.constant(round_windows(exact[node.get_friendly_name()] / scales.astype(np.float64), low=-128))
        anew.set_friendly_name(stored.get_friendly_name())
        convert.input(0).replace_source_output(anew.output(0))


def _stored(weight: Any, levels: NDArray[np.int8], scales: NDArray[np.float16]) -> Any:
    """The output of a subgraph that makes the weight from its levels and scales."""
    make = ov.opset13
    shape = ov.Shape([*scales.shape, levels.shape[1] // scales.shape[1]])
    integers = make.constant(ov.Tensor(pack(levels), shape, ov.Type.i4), shared_memory=False)
    integers.set_friendly_name(weight.get_friendly_name())
    scaled = make.multiply(make.convert(integers, "f16"), make.constant(scales[..., None]))
    whole = make.reshape(scaled, make.constant(np.array(weight.get_output_shape(0), np.int64)), False)
    return make.convert(whole, "f32").output(0)


def _can_unfold(node: Any) -> bool:
    """Whether `unfold` knows the convolution's kind."""
    options = node.get_attributes()
    plain = node.get_type_name() == "Convolution" and options["auto_pad"].lower() == "explicit"
    return plain and len(options["strides"]) == 2 and set(options["dilations"]) == {1}


def _hessian(model: Any, node: Any, samples: NDArray[Any]) -> NDArray[np.float64]:
    """Xᵀ·X of a convolution's unfolded inputs; one sample at a time, for they are many times the picture's size."""
    until = ov.Model([node.input_value(0)], model.get_parameters(), "until")
    request = ov.Core().compile_model(until, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    shape, options = node.input_value(1).get_shape(), node.get_attributes()
    length = int(np.prod(shape[1:]))
    total = np.zeros((length, length))
    for sample in samples:
        images = request.infer({0: sample[None]}, share_inputs=False, share_outputs=False)[0]
        rows = unfold(images, shape[2:], options["strides"], options["pads_begin"], options["pads_end"])
        total += rows.T @ rows
    return total
