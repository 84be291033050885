"""Convolutions with batch normalisation, which training needs and inference does not."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Model = TypeVar("Model", bound=nn.Module)


class Foldable(nn.Module):
    """A module that can be made simpler once its running statistics no longer change."""

    def fold(self) -> None:
        """Put the running statistics into weights, in place; a second call does nothing."""
        raise NotImplementedError


class ConvNorm(Foldable):
    """A convolution without bias, then batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H / stride, W / stride]."""
        return cast("Tensor", self.norm(self.conv(x)))

    def fold(self) -> None:
        """Put the running statistics into the convolution's weights."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode, with every batch normalisation folded into the convolution before it.

    Parallel branches become one convolution. The result computes the same with fewer operators; a module without any
    is copied as it is.
    """
    return fold_in_place(copy.deepcopy(module).eval())


def fold_in_place(module: Model) -> Model:
    """The module itself, which has to be in evaluation mode."""
    for child in list(module.modules()):
        if isinstance(child, Foldable):
            child.fold()
    return module
