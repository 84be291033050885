"""The scales that a model has learned while it was trained with rounding, and the file that keeps them.

`scales.safetensors` holds, for each layer, `LAYER.weight_scale` float32 [O, G] and, where activations are rounded,
`LAYER.activation_scale` float32 [] and `LAYER.zero_point` int32 []. Its metadata have `about`, a JSON object of
`precision` and `symmetric`: one key, because safetensors writes several in no fixed order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from edgeclip.errors import CheckpointError, UsageError
from edgeclip.manifest import Precision, Target
from edgeclip.quantize.scheme import INTEGER

FILE = "scales.safetensors"


@dataclass(frozen=True, eq=False)
class Scales:
    """Of one layer: a weight w is kept as round(w / scale), an activation x as round(x / scale) + zero point."""

    weight_scale: NDArray[np.float32]
    """[O, G] above 0, for O output channels and G equal groups of each one's weights, in the order of [I, ...]."""
    activation_scale: float | None = None
    """Above 0; None where activations are not rounded."""
    zero_point: int | None = None
    """0 to 255 for uint8; 0 for symmetric int8."""
    bits: int = 8
    """Of weights: 8 (−127 to 127) or 4 (−7 to 7)."""


@dataclass(frozen=True, eq=False)
class Learned:
    """All scales of a model. Layers have the names of `Clip`'s modules: `image.stem.spatial.conv`."""

    precision: Precision
    symmetric: bool
    """Activations are int8 with zero point 0, not uint8."""
    layers: dict[str, Scales]

    def check(self, target: Target, precision: Precision) -> None:
        """
        Raises:
            UsageError: they are of another precision, or activations are not rounded as the target does it.
        """
        if precision != self.precision:
            raise UsageError(
                f"the checkpoint has learned scales for {self.precision}, not for {precision}",
                hint=f"--precision {self.precision}; for others take the checkpoint that it was fine-tuned from",
            )
        if target == "coreml":
            raise UsageError(
                "target coreml does not take learned scales yet",
                hint="other targets do; or take the checkpoint that it was fine-tuned from",
            )
        if target == "tensorrt" and not self.symmetric:
            raise UsageError(
                "the checkpoint's activations have zero points, target tensorrt has none",
                hint="fine-tune with quantize.symmetric=true, which every target takes",
            )

    def tower(self, tower: str) -> dict[str, Scales]:
        """Of one tower, under the names that its graph's nodes have: `stem.spatial.conv`."""
        prefix = f"{tower}."
        return {name.removeprefix(prefix): one for name, one in self.layers.items() if name.startswith(prefix)}

    def to_bytes(self) -> bytes:
        """The content of `scales.safetensors`."""
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {}
        for name, one in self.layers.items():
            tensors[f"{name}.weight_scale"] = np.ascontiguousarray(one.weight_scale, np.float32)
            if one.activation_scale is not None:
                tensors[f"{name}.activation_scale"] = np.array(one.activation_scale, np.float32)
                tensors[f"{name}.zero_point"] = np.array(one.zero_point, np.int32)
        about = {"precision": self.precision, "symmetric": self.symmetric}
        data: bytes = save(tensors, metadata={"about": json.dumps(about)})
        return data

    @staticmethod
    def from_bytes(data: bytes, where: str = FILE) -> Learned:
        """
        Raises:
            CheckpointError: it is damaged, or of no precision that we know.
        """
        from safetensors.numpy import load

        try:
            tensors, about = load(data), _about(data)
            precision, symmetric = about["precision"], about["symmetric"]
        except (SafetensorError, KeyError, ValueError, TypeError) as exc:
            raise CheckpointError(f"{where}: not a file of scales: {exc}", hint="get it again") from exc
        if precision not in INTEGER or not isinstance(symmetric, bool):
            raise CheckpointError(f"{where}: unknown precision {precision!r}", hint="pip install -U edgeclip")
        return Learned(precision, symmetric, _layers(tensors, weight_bits(precision), where))


def integers(weight: NDArray[Any], scales: Scales) -> NDArray[np.int8]:
    """A weight [O, I, ...] as int8 [O · G, weights of a group]: the rows that share a scale."""
    high = np.float32(2 ** (scales.bits - 1) - 1)
    rows = weight.reshape(scales.weight_scale.size, -1)
    steps = rows / scales.weight_scale.reshape(-1, 1)
    whole: NDArray[np.int8] = np.rint(steps.clip(-high, high)).astype(np.int8)
    return whole


def weight_bits(precision: str) -> int:
    """4 of `w4a16`, 6 of `w6a16`, 8 of `w8a8` and `w8a16`."""
    assert precision in get_args(Precision)
    return int(precision[1])


def _about(data: bytes) -> dict[str, Any]:
    """What `load` leaves out. The header has been checked by it."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return cast("dict[str, Any]", json.loads(header["__metadata__"]["about"]))


def _layers(tensors: dict[str, NDArray[Any]], bits: int, where: str) -> dict[str, Scales]:
    layers: dict[str, Scales] = {}
    for key, scale in sorted(tensors.items()):  # a file of tensors has no order
        name, _, kind = key.rpartition(".")
        if kind == "weight_scale":
            activation, point = tensors.get(f"{name}.activation_scale"), tensors.get(f"{name}.zero_point")
            _require_positive(key, scale, where)
            if activation is not None:
                _require_positive(f"{name}.activation_scale", activation, where)
            layers[name] = Scales(
                scale.astype(np.float32),
                None if activation is None else float(activation),
                None if point is None else int(point),
                bits,
            )
    return layers


def _require_positive(name: str, scale: NDArray[Any], where: str) -> None:
    if not bool((np.isfinite(scale) & (scale > 0)).all()):
        raise CheckpointError(f"{where}: {name} is not above 0 everywhere", hint="get it again")
