"""What layers' inputs have in common, against what the layers make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeclip.quantize import correction, extremes, hessians
from edgeclip.quantize.layers import output_axis
from edgeclip.quantize.onnx_weights import quantize_onnx_weights
from tests import towers

Floats = NDArray[np.floating]


@pytest.mark.parametrize("kind", towers.KINDS)
def test_a_matrix_tells_the_squares_of_what_a_layer_makes(kind: towers.Kind) -> None:
    """The sum of squares of Wx over all x is the trace of W·XᵀX·Wᵀ."""
    model = towers.export(kind)
    graph = onnx.load_model_from_string(model).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = {n.name: n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in weights}
    samples = towers.samples(kind, 11)
    found = dict(hessians.measure(model, list(nodes), samples))
    assert set(found) == {name for name, node in nodes.items() if hessians.unfolds(node)}
    assert found
    for name, matrix in found.items():
        node = nodes[name]
        weight = weights[node.input[1]]
        rows = np.moveaxis(weight, output_axis(node, weight.ndim), 0).reshape(-1, len(matrix)).astype(np.float64)
        made = outputs(model, node, samples)
        assert np.trace(rows @ matrix @ rows.T) == pytest.approx(np.square(made).sum(), rel=1e-3), name


def outputs(model: bytes, node: onnx.NodeProto, samples: NDArray[Any]) -> Floats:
    """What the layer makes without its bias, where it is of the input."""
    parsed = onnx.load_model_from_string(model)
    [layer] = [n for n in parsed.graph.node if n.name == node.name]
    del layer.input[2:]
    del parsed.graph.output[:]
    parsed.graph.output.append(onnx.ValueInfoProto(name=layer.output[0]))
    session = extremes.open_session(parsed.SerializeToString(), 1)
    found = session.run(None, {session.get_inputs()[0].name: samples})[0].astype(np.float64)
    if samples.ndim == 2 and found.shape[:2] == samples.shape:
        found = found[np.arange(samples.shape[1]) <= samples.argmax(axis=1)[:, None]]
    return np.asarray(found)


@pytest.mark.parametrize("kind", towers.KINDS)
def test_corrected_weights_lose_less(kind: towers.Kind) -> None:
    model, seen, unseen = towers.export(kind), towers.samples(kind, 64), towers.samples(kind, 32, seed=9)
    exact = towers.run(model, unseen)
    [plain] = quantize_onnx_weights(model).files.values()
    [corrected] = quantize_onnx_weights(model, samples=seen).files.values()
    assert len(corrected) == len(plain)
    assert lost(exact, towers.run(corrected, unseen)) < 0.8 * lost(exact, towers.run(plain, unseen))


def test_only_the_first_samples_are_used() -> None:
    model, seen = towers.export("text"), towers.samples("text", correction.SAMPLES + 5)
    assert quantize_onnx_weights(model, samples=seen) == quantize_onnx_weights(
        model, samples=seen[: correction.SAMPLES]
    )


def lost(exact: Floats, rounded: Floats) -> float:
    """1 − mean cosine."""
    return float(1 - (exact.astype(np.float64) * rounded).sum(axis=1).mean())
