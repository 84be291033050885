"""A tower that computes with the rounding of an integer precision while it stays trainable.

`attach` gives its layers quantizers; their weights keep their names and values, `detach` takes the quantizers away.
What is deployed is the folded convolution: fold batch normalisation first.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeclip.errors import UsageError
from edgeclip.manifest import Precision
from edgeclip.quantize.rounding import ActivationQuantizer, WeightQuantizer
from edgeclip.quantize.scales import Learned, Scales, weight_bits

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Scheme:
    """What is rounded, and how."""

    precision: Precision
    """`w8a8`, `w8a16` or `w4a16`."""
    group: int = 0
    """Weights of a row that share a scale, at most; 0: all."""
    symmetric: bool = False
    """Activations of w8a8 are int8 with zero point 0, not uint8."""


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight, and input where it has a quantizer, are rounded."""

    weight_quantizer: WeightQuantizer
    activation_quantizer: ActivationQuantizer | None

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        x = x if self.activation_quantizer is None else self.activation_quantizer(x)
        return F.linear(x, self.weight_quantizer(self.weight), self.bias)


class QuantizedConv2d(nn.Conv2d):
    """A convolution whose weight, and input where it has a quantizer, are rounded."""

    weight_quantizer: WeightQuantizer
    activation_quantizer: ActivationQuantizer | None

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, H, W] to [B, O, H', W']."""
        x = x if self.activation_quantizer is None else self.activation_quantizer(x)
        y: Tensor = self._conv_forward(x, self.weight_quantizer(self.weight), self.bias)
        return y


_KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: QuantizedLinear, nn.Conv2d: QuantizedConv2d}
_PLAIN = {ours: plain for plain, ours in _KINDS.items()}
_PARTS = ("weight_quantizer", "activation_quantizer")


def attach(model: Model, scheme: Scheme, keep: frozenset[str] = frozenset()) -> Model:
    """Give every convolution and linear layer quantizers, in place; weight scales start where they err least.

    Args:
        keep: layers that stay as they are, by the names of their modules.

    Raises:
        UsageError: `keep` names no such layer; there is batch normalisation; quantizers are attached already.
    """
    layers = {name: module for name, module in model.named_modules() if type(module) in _KINDS}
    _check(model, layers, keep)
    for name, layer in layers.items():
        if name not in keep:
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            _quantize(layer, scheme)
    return model


@torch.no_grad()
def round_weights(model: Model) -> Model:
    """Put what the weights are rounded to in their place. To round them again changes nothing."""
    for layer in quantized_layers(model).values():
        layer.weight.copy_(layer.weight_quantizer(layer.weight))
    return model


def detach(model: Model) -> Model:
    """Take all quantizers away, in place. Weights are left as they are."""
    for layer in list(quantized_layers(model).values()):
        for part in _PARTS:
            delattr(layer, part)
        layer.__class__ = _PLAIN[type(layer)]  # type: ignore[assignment]
    return model


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear | QuantizedConv2d]:
    """Those that `attach` gave quantizers, by name."""
    return {n: module for n, module in model.named_modules() if isinstance(module, QuantizedLinear | QuantizedConv2d)}


def activation_quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """By the name of their layer; none where activations are not rounded."""
    layers = quantized_layers(model).items()
    return {name: layer.activation_quantizer for name, layer in layers if layer.activation_quantizer is not None}


@contextmanager
def observe(model: nn.Module) -> Iterator[None]:
    """Within it, forward passes measure the ranges of activations, which decide their scales at its end.

    Raises:
        UsageError: at its end, where a layer has seen nothing.
    """
    quantizers = activation_quantizers(model)
    for quantizer in quantizers.values():
        quantizer.observing = True
    with torch.no_grad():
        yield
    unseen = [name for name, quantizer in quantizers.items() if not quantizer.settle()]
    if unseen:
        raise UsageError(f"no activations of {unseen[0]} were observed", hint="run every layer, or keep this one")


def freeze(model: nn.Module) -> None:
    """Train scales no further."""
    for layer in quantized_layers(model).values():
        layer.weight_quantizer.log_scale.requires_grad_(False)
    for quantizer in activation_quantizers(model).values():
        quantizer.log_scale.requires_grad_(False)


def learned_scales(model: nn.Module) -> dict[str, Scales]:
    """The scales as they are now, by layer.

    Raises:
        UsageError: a layer's activations have not been observed.
    """
    return {name: _scales(name, layer) for name, layer in quantized_layers(model).items()}


def learned(model: nn.Module, scheme: Scheme) -> Learned:
    """The same, with what the scheme says of them."""
    return Learned(scheme.precision, scheme.symmetric, learned_scales(model))


def _quantize(layer: nn.Linear | nn.Conv2d, scheme: Scheme) -> None:
    """Another class for the same object, so that it stays where it is, under its name, with its weights."""
    layer.weight_quantizer = WeightQuantizer(layer.weight, weight_bits(scheme.precision), scheme.group)
    rounds = scheme.precision == "w8a8"
    quantizer = ActivationQuantizer(symmetric=scheme.symmetric).to(layer.weight.device) if rounds else None
    layer.register_module("activation_quantizer", quantizer)
    layer.__class__ = _KINDS[type(layer)]  # type: ignore[assignment]


def _check(model: nn.Module, layers: dict[str, nn.Module], keep: frozenset[str]) -> None:
    for name in sorted(keep - layers.keys()):
        close = difflib.get_close_matches(name, layers, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"as {next(iter(layers), 'none')!r}"
        raise UsageError(f"keep: no layer is named {name!r}", hint=hint)
    if quantized_layers(model):
        raise UsageError("the model has quantizers already", hint="detach() them first")
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise UsageError("batch normalisation cannot be quantized", hint="call fold_batchnorm() first")


@torch.no_grad()
def _scales(name: str, layer: QuantizedLinear | QuantizedConv2d) -> Scales:
    weight, activation = layer.weight_quantizer, layer.activation_quantizer
    scale = weight.scale.cpu().numpy()
    if activation is None:
        return Scales(scale, bits=weight.bits)
    if not bool(activation.log_scale.isfinite()):
        raise UsageError(f"no activations of {name} were observed", hint="run some within observe()")
    return Scales(scale, float(activation.log_scale.exp()), int(activation.zero_point), weight.bits)
