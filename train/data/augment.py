"""Augmentation of a whole batch at a time: each view is eight numbers, and one resampling makes all the crops."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeclip.manifest import Preprocess
from edgeclip.train.data.batch import Seeds
from edgeclip.train.data.seeds import uniform
from edgeclip.train.recipe import Augment

COLUMNS = ("centre_x", "centre_y", "width", "height", "mirror", "brightness", "contrast", "saturation")
"""A view. The crop is in parts of the image's side; `mirror` is -1 or 1; the last three are factors."""
_STREAM = 1
_LUMA = (0.299, 0.587, 0.114)


def draw(augment: Augment, seeds: Seeds) -> Tensor:
    """float32 [B, 8], a view for each seed: the columns are `COLUMNS`.

    Source: the crop is that of Szegedy et al., arXiv 1409.4842; a crop that does not fit is cut to the image.
    """
    u = uniform(seeds, len(COLUMNS), _STREAM)
    area = _between(u[:, 0], augment.scale)
    ratio = np.exp(_between(u[:, 1], (math.log(augment.ratio[0]), math.log(augment.ratio[1]))))
    width, height = np.minimum(np.sqrt(area * ratio), 1.0), np.minimum(np.sqrt(area / ratio), 1.0)
    centre_x = width / 2 + u[:, 2] * (1.0 - width)
    centre_y = height / 2 + u[:, 3] * (1.0 - height)
    mirror = np.where(u[:, 4] < augment.flip, -1.0, 1.0)
    strengths = (augment.brightness, augment.contrast, augment.saturation)
    jitter = [_between(u[:, 5 + i], (1.0 - x, 1.0 + x)) for i, x in enumerate(strengths)]
    views = np.stack([centre_x, centre_y, width, height, mirror, *jitter], axis=1)
    return torch.from_numpy(views.astype(np.float32))


def whole(count: int) -> Tensor:
    """float32 [count, 8]: views that show all of each image as it is, as a test does."""
    return torch.tensor([0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]).repeat(count, 1)


def apply(pixels: Tensor, views: Tensor, size: int) -> Tensor:
    """uint8 [B, H, W, 3] and `draw`'s views to float32 [B, 3, size, size] in [0, 255], channels last in memory."""
    image = pixels.permute(0, 3, 1, 2).to(torch.float32)  # [B, 3, H, W], channels last
    grid = F.affine_grid(_affine(views), [len(pixels), 3, size, size], align_corners=False)
    image = F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _jittered(image, views).contiguous(memory_format=torch.channels_last)


def normalise(image: Tensor, preprocess: Preprocess) -> Tensor:
    """float32 [B, 3, S, S] in [0, 255] to what the tower takes."""
    mean = torch.tensor(preprocess.mean, device=image.device)[:, None, None] * 255.0
    std = torch.tensor(preprocess.std, device=image.device)[:, None, None] * 255.0
    return (image - mean) / std


def _between(
    u: np.ndarray[tuple[int, ...], np.dtype[np.float64]], bounds: tuple[float, float]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return bounds[0] + u * (bounds[1] - bounds[0])


def _affine(views: Tensor) -> Tensor:
    """[B, 2, 3]: output coordinates in [-1, 1] to those of the input, as `affine_grid` takes them."""
    centre_x, centre_y, width, height, mirror = views[:, :5].unbind(1)
    zero = torch.zeros_like(width)
    rows = [
        torch.stack([width * mirror, zero, 2.0 * centre_x - 1.0], dim=1),
        torch.stack([zero, height, 2.0 * centre_y - 1.0], dim=1),
    ]
    return torch.stack(rows, dim=1)


def _jittered(image: Tensor, views: Tensor) -> Tensor:
    """Brightness, contrast about the mean grey, and saturation about each pixel's grey, in this order."""
    if bool((views[:, 5:] == 1.0).all()):
        return image
    brightness, contrast, saturation = views[:, 5:, None, None, None].unbind(1)
    luma = torch.tensor(_LUMA, device=image.device)[:, None, None]
    image = (image * brightness).clamp(0.0, 255.0)
    mean = (image * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    image = torch.lerp(mean, image, contrast).clamp(0.0, 255.0)
    grey = (image * luma).sum(1, keepdim=True)
    return torch.lerp(grey, image, saturation).clamp(0.0, 255.0)
