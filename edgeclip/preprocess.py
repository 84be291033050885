"""Preprocessing: one image becomes uint8 [S, S, 3], exactly as the model was trained.

Scaling, mean and standard deviation are inside the exported graph; here pixels are only decoded, resized and cropped.
The resized image is never made in full: the crop is taken as a box of the source, and only that box is resampled.

Source: the recipe (short side to S by bicubic, centre crop) is arXiv 2103.00020's; the rounding is that of
torchvision's `Resize` and `CenterCrop`, or of transformers' crop, as `Preprocess.crop` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as PilImage
from PIL.Image import Resampling, Transpose

from edgeclip.errors import InputShapeError
from edgeclip.images import MAX_PIXELS, Image, decoding, name_of, open_image, orientation_of, to_rgb
from edgeclip.manifest import Preprocess

__all__ = ["MAX_PIXELS", "Image", "preprocess", "preprocess_batch"]

Pixels = NDArray[np.uint8]
Size: TypeAlias = tuple[int, int]
Box: TypeAlias = tuple[float, float, float, float]

_DRAFT_MARGIN = 2
"""A scaled JPEG decode must leave so many times the sides that the resize makes, which hides its coarser filter."""
_FILTERS = {"bicubic": (Resampling.BICUBIC, 2.0), "bilinear": (Resampling.BILINEAR, 1.0)}
"""Pillow's filter and its support, in output pixels when shrinking, in source pixels when enlarging."""
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored pixels upright."""


def preprocess(
    image: Image,
    spec: Preprocess,
    *,
    scaled_decoding: bool = True,
    max_pixels: int = MAX_PIXELS,
    source: str | None = None,
) -> Pixels:
    """Decode, resize and crop one image.

    Args:
        image: Path, encoded bytes, PIL image or array; see `edgeclip.images.Image`.
        spec: How the model's training images were made.
        scaled_decoding: Let a large JPEG be decoded at 1/2, 1/4 or 1/8, several times faster. The pixels differ a
            little from a full decode (at most 3/255 on photographs). For paths and bytes only: it would change a
            caller's PIL image.
        max_pixels: The limit on width times height, checked before decoding.
        source: What messages call the image; its path or kind by default.

    Returns:
        uint8 [S, S, 3], C-contiguous, owned by the caller.

    Raises:
        ImageDecodeError: unreadable, damaged, truncated or of another format.
        ImageTooLargeError: more than `max_pixels`.
        InputShapeError: not an image, or an array of another shape, dtype or range.
        ResourceError: out of memory.
    """
    name = source or name_of(image)
    with decoding(name):
        return decode(image, spec, name, scaled_decoding=scaled_decoding, max_pixels=max_pixels).resized(spec, name)


@dataclass(frozen=True)
class Decoded:
    """An image whose pixels are there, and what of it is kept."""

    image: PilImage
    box: Box
    """In its pixels."""
    orientation: int

    def resized(self, spec: Preprocess, source: str) -> Pixels:
        """uint8 [S, S, 3]."""
        return _resample(self.image, self.box, self.orientation, spec, source)


def decode(
    image: Image, spec: Preprocess, source: str, *, scaled_decoding: bool = True, max_pixels: int = MAX_PIXELS
) -> Decoded:
    """The first half of `preprocess`; errors other than ours are the decoder's own."""
    opened = open_image(image, source, max_pixels=max_pixels)
    size, may_draft = opened.size, scaled_decoding and not isinstance(image, PilImage)
    shrunk = _draft(opened, resized_size(size, spec)) if may_draft else (1.0, 1.0)
    opened.load()
    orientation = orientation_of(opened) if spec.exif == "apply" else 1
    box = source_box(size, spec, orientation)
    box = (box[0] * shrunk[0], box[1] * shrunk[1], box[2] * shrunk[0], box[3] * shrunk[1])
    return Decoded(opened, box, orientation)


def preprocess_batch(
    images: Sequence[Image],
    spec: Preprocess,
    *,
    scaled_decoding: bool = True,
    max_pixels: int = MAX_PIXELS,
    out: Pixels | None = None,
) -> Pixels:
    """Preprocess several images into one array, in order.

    Args:
        out: uint8 [B, S, S, 3] to fill and return; allocated when None.

    Returns:
        uint8 [B, S, S, 3].

    Raises:
        InputError: as `preprocess`, for the first image that fails, naming its index. `out` may be partly filled then.
    """
    shape = (len(images), spec.size, spec.size, 3)
    pixels = np.empty(shape, np.uint8) if out is None else out
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise InputShapeError(f"out: {pixels.dtype} {list(pixels.shape)}, expected uint8 {list(shape)}")

    for index, image in enumerate(images):
        name = f"image {index}: {name_of(image)}"
        pixels[index] = preprocess(image, spec, scaled_decoding=scaled_decoding, max_pixels=max_pixels, source=name)
    return pixels


def resized_size(size: Size, spec: Preprocess) -> Size:
    """(width, height) after the resize and before the crop. The long side is cut off, not rounded."""
    if spec.resize == "squash":
        return spec.size, spec.size
    width, height = size
    if width <= height:
        return spec.size, int(spec.size * height / width)
    return int(spec.size * width / height), spec.size


def crop_offset(length: int, spec: Preprocess) -> int:
    """Where the centre crop begins on a resized side. `round` is half to even, as Python's own."""
    excess = length - spec.size
    return excess // 2 if spec.crop == "floor" else round(excess / 2)


def source_box(size: Size, spec: Preprocess, orientation: int = 1) -> Box:
    """The part of the stored image, (left, top, right, bottom) in its pixels, that becomes the S x S output."""
    turned = orientation >= 5
    upright = (size[1], size[0]) if turned else size
    resized = resized_size(upright, spec)
    (left, right), (top, bottom) = (_span(u, r, spec) for u, r in zip(upright, resized, strict=True))
    if orientation in (2, 3, 6, 7):
        left, right = upright[0] - right, upright[0] - left
    if orientation in (3, 4, 7, 8):
        top, bottom = upright[1] - bottom, upright[1] - top
    return (top, left, bottom, right) if turned else (left, top, right, bottom)


def _span(length: int, resized: int, spec: Preprocess) -> tuple[float, float]:
    """Begin and end of the crop on one side, in pixels before the resize."""
    begin = crop_offset(resized, spec)
    return begin * length / resized, min((begin + spec.size) * length / resized, float(length))


def _draft(image: PilImage, target: Size) -> tuple[float, float]:
    """Ask a JPEG decoder for a smaller image. Returns the factor from stored to decoded coordinates, per axis.

    The decoded size is rounded up, so that its last pixel may be partly padding; the factor is exact.
    """
    width, height = image.size
    drafted = image.draft("RGB", (_DRAFT_MARGIN * target[0], _DRAFT_MARGIN * target[1]))
    if drafted is None:
        return 1.0, 1.0
    _, (_, _, right, bottom) = drafted
    return right / width, bottom / height


def _resample(image: PilImage, box: Box, orientation: int, spec: Preprocess, source: str) -> Pixels:
    """Convert and resize the box only, then turn the small result upright: a large image is never turned."""
    resample, support = _FILTERS[spec.interpolation]
    part, box = _narrow(image, box, support * max(1.0, _scale(box, spec)))
    rgb = to_rgb(part, source, background=spec.background)
    passes = (_resize_rows, _resize_columns) if orientation < 5 else (_resize_columns, _resize_rows)
    small = rgb
    for one_pass in passes:
        small = one_pass(small, box, spec.size, resample)
    if orientation in _UPRIGHT:
        small = small.transpose(_UPRIGHT[orientation])
    return np.array(small)


def _resize_rows(image: PilImage, box: Box, size: int, resample: Resampling) -> PilImage:
    """Resize each row to `size` pixels.

    In one call for both axes, Pillow would choose which goes first, by its version and the image's shape. Between the
    two, values are clipped to [0, 255], so that the order shows at sharp edges. The models were trained on rows first.
    """
    return image.resize((size, image.height), resample, box=(box[0], 0, box[2], image.height))


def _resize_columns(image: PilImage, box: Box, size: int, resample: Resampling) -> PilImage:
    return image.resize((image.width, size), resample, box=(0, box[1], image.width, box[3]))


def _scale(box: Box, spec: Preprocess) -> float:
    return max(box[2] - box[0], box[3] - box[1]) / spec.size


def _narrow(image: PilImage, box: Box, support: float) -> tuple[PilImage, Box]:
    """Cut away what the filter cannot reach, where that is most of the image.

    Saves the conversion of it, and keeps coordinates small: Pillow holds a box in single precision.
    """
    margin = support + 2.0
    left, top = max(0, int(box[0] - margin)), max(0, int(box[1] - margin))
    right, bottom = min(image.width, int(box[2] + margin) + 1), min(image.height, int(box[3] + margin) + 1)
    if 2 * (right - left) * (bottom - top) > image.width * image.height:
        return image, box
    part = image.crop((left, top, right, bottom))
    return part, (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
