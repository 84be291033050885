"""How fast this machine multiplies matrices of 8-bit integers, and how many such products a tower takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeclip.backends.ov_library import ov
from edgeclip.bundle import Bundle
from edgeclip.manifest import Artifact

LAYERS = ("MatMul", "Convolution")
REPEATS = 8
"""Products of one call, so that all but the first find their matrices where the last one left them."""
_STEP = 0.02


@dataclass(frozen=True, order=True)
class Product:
    """[m, k] times [k, n]."""

    m: int
    k: int
    n: int

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.k * self.n

    def __str__(self) -> str:
        return f"{self.m} × {self.k} × {self.n}"


def products(bundle: Bundle, artifact: Artifact, batch: int) -> Counter[Product]:
    """The matrix products of an OpenVINO artifact at a batch, and how often each occurs.

    A convolution counts as the product of its windows and its weights, a product of activations as one a head.
    """
    files = bundle.files(artifact)
    weights = next(data for name, data in files.items() if name.endswith(".bin"))
    model = ov.Core().read_model(bytes(files[artifact.file]).decode(), ov.Tensor(np.frombuffer(weights, np.uint8)))
    return count(model, batch)


def count(model: Any, batch: int) -> Counter[Product]:
    """The matrix products of an OpenVINO model at a batch."""
    shape = model.inputs[0].partial_shape
    model.reshape({0: [batch, *(axis.get_length() for axis in list(shape)[1:])]})
    found: Counter[Product] = Counter()
    for node in model.get_ordered_ops():
        if node.get_type_name() in LAYERS:
            product, times = _product(node)
            found[product] += times
    return found


def _product(node: Any) -> tuple[Product, int]:
    rows, weight = (list(node.input_value(i).get_shape()) for i in (0, 1))
    out = list(node.get_output_shape(0))
    if node.get_type_name() == "Convolution":
        return Product(out[0] * int(np.prod(out[2:])), int(np.prod(weight[1:])), out[1]), 1
    inner = rows[-2] if node.get_attributes()["transpose_a"] else rows[-1]
    if len(weight) == 2:
        return Product(int(np.prod(out[:-1])), inner, out[-1]), 1
    return Product(out[-2], inner, out[-1]), int(np.prod(out[:-2]))


def operations(found: Counter[Product]) -> int:
    """Of all products together."""
    return sum(product.operations * times for product, times in found.items())


def calls(product: Product, threads: int) -> dict[str, Callable[[], object]]:
    """By library, a call that computes one product `REPEATS` times."""
    return {"openvino": _by_openvino(product, threads), "torch._int_mm": _by_torch(product, threads)}


def _by_openvino(product: Product, threads: int) -> Callable[[], object]:
    """uint8 times int8, rounded to uint8 again, as of a layer between two others."""
    rng = np.random.default_rng(0)
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = ov.Core().compile_model(layer(product), "CPU", options).create_infer_request()
    inputs = ov.Tensor(rng.integers(0, 256, (product.m, product.k)).astype(np.uint8))
    return _repeated(lambda: request.infer({0: inputs}, share_inputs=True, share_outputs=True))


def layer(product: Product) -> Any:
    """An OpenVINO model of one layer, from uint8 [m, k] to float32 [m, n] of 256 values."""
    make, rng = ov.opset13, np.random.default_rng(0)
    rows = make.parameter([-1, product.k], np.uint8)
    levels = rng.integers(-127, 128, (product.n, product.k)).astype(np.int8)
    weight = make.multiply(make.convert(make.constant(levels), "f32"), _number(_STEP))
    x = _rounded(make.multiply(make.convert(rows, "f32"), _number(_STEP)), 255 * _STEP)
    return ov.Model([_rounded(make.matmul(x, weight, False, True), 100.0)], [rows], "product")


def _rounded(x: Any, highest: float) -> Any:
    ends = [_number(0.0), _number(highest)]
    return ov.opset13.fake_quantize(x, *ends, *ends, 256)


def _number(value: float) -> Any:
    return ov.opset13.constant(np.float32(value))


def _by_torch(product: Product, threads: int) -> Callable[[], object]:
    """int8 times int8 to int32."""
    import torch

    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    rows, columns = (
        torch.from_numpy(rng.integers(-127, 128, shape).astype(np.int8))
        for shape in ((product.m, product.k), (product.k, product.n))
    )
    return _repeated(lambda: torch._int_mm(rows, columns))


def _repeated(call: Callable[[], object]) -> Callable[[], object]:
    def repeated() -> None:
        for _ in range(REPEATS):
            call()

    return repeated


def largest(found: Counter[Product], share: float = 0.05) -> list[Product]:
    """The products that each take at least a share of a tower's operations."""
    total = operations(found)
    return sorted(product for product, times in found.items() if product.operations * times >= share * total)
