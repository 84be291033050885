"""Decoding: a path, bytes, a PIL image or an array becomes a PIL image in RGB.

Rules that hold for every source:

- JPEG, PNG, WebP, BMP and GIF are read, told apart by content. Nothing else is tried, so no rarely used decoder
  (nor an external program) ever sees untrusted bytes.
- The size is taken from the header and checked before a pixel is decoded.
- Of an animation, the first frame.
- Colour profiles (ICC) are ignored, as in the published CLIP pipelines: the numbers in the file are taken as sRGB.
- A PIL image that the caller passes is read, never changed.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from PIL.Image import DecompressionBombError, DecompressionBombWarning, fromarray, new
from PIL.Image import Image as PilImage
from PIL.Image import open as open_encoded

from edgeclip import sniff
from edgeclip.errors import (
    EdgeClipError,
    ImageDecodeError,
    ImageTooLargeError,
    InputShapeError,
    ResourceError,
)

Image: TypeAlias = "str | os.PathLike[str] | bytes | PilImage | NDArray[Any]"
"""What may be given as one image: a path, an encoded file's bytes, a PIL image, or an array.

Arrays: uint8, or float32 / float64 in [0, 1]; [H, W], [H, W, 1 | 3 | 4], or [1 | 3, H, W] where that cannot be meant
as [H, W, channels].
"""

MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 1 << 29
_ORIENTATION = 0x0112
_RGB_MODES = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_DEEP_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
_ARRAY_RULE = (
    "an array must be uint8 in [0, 255] or float32 / float64 in [0, 1], "
    "of shape [H, W], [H, W, 1 | 3 | 4] or [1 | 3, H, W]"
)


@contextmanager
def decoding(source: str) -> Iterator[None]:
    """Map whatever a decoder raises to the error tree, naming `source`.

    Raises:
        ImageDecodeError, ImageTooLargeError, ResourceError: as their names say.
    """
    try:
        yield
    except EdgeClipError:
        raise
    except MemoryError as exc:
        raise ResourceError(f"{source}: out of memory while decoding") from exc
    except (DecompressionBombError, DecompressionBombWarning) as exc:
        raise ImageTooLargeError(f"{source}: {exc}", hint="scale it down first") from exc
    except Exception as exc:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, …
        raise ImageDecodeError(f"{source}: {_damage(exc)}") from exc


def _damage(exc: Exception) -> str:
    text = " ".join(str(exc).split()) or type(exc).__name__
    return text if "truncated" in text.lower() else f"damaged or truncated image: {text}"


def name_of(image: Image) -> str:
    """How messages call an image."""
    if isinstance(image, str | os.PathLike):
        return repr(os.fspath(image))
    if isinstance(image, bytes):
        return f"<{len(image)} bytes>"
    if isinstance(image, np.ndarray):
        return f"<{image.dtype} array of shape {list(image.shape)}>"
    if isinstance(image, PilImage):
        return f"<PIL image, mode {image.mode}, {image.width}x{image.height}>"
    return f"<{type(image).__name__}>"


def open_image(image: Image, source: str, *, max_pixels: int = MAX_PIXELS) -> PilImage:
    """Open without decoding where the kind of source allows it; the result may be the caller's own PIL image.

    Raises:
        ImageDecodeError: a file that cannot be read, or is none of the five formats.
        ImageTooLargeError: more than `max_pixels`.
        InputShapeError: not a kind of image that is understood.
    """
    opened = _open(image, source)
    width, height = opened.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{source}: {width}x{height} is {width * height} pixels, the limit is {max_pixels}",
            hint="scale it down first, or raise max_pixels",
        )
    if width < 1 or height < 1:
        error = InputShapeError if opened is image else ImageDecodeError
        raise error(f"{source}: {width}x{height} has no pixels")
    return opened


def _open(image: Image, source: str) -> PilImage:
    if isinstance(image, str | os.PathLike):
        return _open_bytes(_read(image, source), source)
    if isinstance(image, bytes):
        return _open_bytes(image, source)
    if isinstance(image, PilImage):
        return image
    if isinstance(image, np.ndarray):
        return _from_array(image, source)
    raise InputShapeError(
        f"{source}: an image must be a path, bytes, a PIL image or a numpy array, not {type(image).__name__}"
    )


def _read(path: str | os.PathLike[str], source: str) -> bytes:
    """The whole file: what is then sniffed is what is then decoded. Never blocks on a pipe or a device."""
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageDecodeError(f"{source}: a directory, not an image", hint="list its files")
        if not stat.S_ISREG(status.st_mode):
            raise ImageDecodeError(f"{source}: not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageTooLargeError(f"{source}: a file of {status.st_size} bytes, the limit is {MAX_FILE_BYTES}")
        return Path(path).read_bytes()
    except FileNotFoundError as exc:
        raise ImageDecodeError(f"{source}: no such file") from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise ImageDecodeError(f"{source}: cannot be read: {exc}") from exc


def _open_bytes(data: bytes, source: str) -> PilImage:
    kind = sniff.readable(data)
    if kind is None:
        found = sniff.describe(data)
        raise ImageDecodeError(
            f"{source}: not an image that can be decoded, the content is {found}",
            hint="run git lfs pull" if "LFS" in found else "JPEG, PNG, WebP, BMP and GIF are read",
        )
    if kind == "WEBP":
        import PIL.WebPImagePlugin  # noqa: F401  Pillow would load all its plugins in search of it
    try:
        return open_encoded(io.BytesIO(data), formats=[kind])
    except UnidentifiedImageError as exc:
        raise ImageDecodeError(f"{source}: {kind} with a damaged or truncated header") from exc


def _from_array(array: NDArray[Any], source: str) -> PilImage:
    pixels = _channels_last(array, source)
    if pixels.size == 0:
        raise InputShapeError(f"{source}: has no pixels")
    if pixels.dtype != np.uint8:
        pixels = _to_bytes(pixels, source)
    return fromarray(np.ascontiguousarray(pixels))


def _channels_last(array: NDArray[Any], source: str) -> NDArray[Any]:
    """[H, W] or [H, W, C]. Where both readings fit, the last axis is the channels."""
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        return array
    if array.ndim == 3 and array.shape[-1] == 1:
        return array.reshape(array.shape[:2])
    if array.ndim == 3 and array.shape[0] == 3:
        return array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[0] == 1:
        return array.reshape(array.shape[1:])
    if array.ndim == 2:
        return array
    raise InputShapeError(f"{source}: shape {list(array.shape)} is not an image's", hint=_ARRAY_RULE)


def _to_bytes(pixels: NDArray[Any], source: str) -> NDArray[np.uint8]:
    if pixels.dtype not in (np.float32, np.float64):
        raise InputShapeError(f"{source}: dtype {pixels.dtype} is not an image's", hint=_ARRAY_RULE)
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0.0 and high <= 1.0):  # false for NaN too
        raise InputShapeError(f"{source}: float values span [{low:g}, {high:g}]", hint=_ARRAY_RULE)
    scaled: NDArray[np.uint8] = np.rint(pixels * 255.0).astype(np.uint8)
    return scaled


def orientation_of(image: PilImage) -> int:
    """The EXIF orientation of a decoded image, in 1 … 8; 1 where there is none, or none that can be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as many kinds as there are ways to damage the tags
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def to_rgb(image: PilImage, source: str, *, background: tuple[int, int, int]) -> PilImage:
    """Convert a decoded image of any mode; the argument itself is returned where it is RGB already.

    Transparent pixels are laid over `background`. 16-bit greys are scaled by 1/257. Mode "I" must hold 16-bit values.

    Raises:
        InputShapeError: a mode without an agreed range ("F", "LAB"), or "I" outside [0, 65535].
    """
    if image.mode in _DEEP_MODES:
        return fromarray(_scale_16(image, source)).convert("RGB")
    if image.mode in _ALPHA_MODES or (image.mode in _RGB_MODES and image.has_transparency_data):
        return _over(image, background)
    if image.mode not in _RGB_MODES:
        raise InputShapeError(
            f"{source}: PIL mode {image.mode!r} has no agreed range of values",
            hint="convert to RGB, or pass a float array in [0, 1]",
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale_16(image: PilImage, source: str) -> NDArray[np.uint8]:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputShapeError(
            f"{source}: PIL mode {image.mode!r} with values in [{values.min()}, {values.max()}], expected [0, 65535]"
        )
    scaled: NDArray[np.uint8] = ((values + 128) // 257).astype(np.uint8)
    return scaled


def _over(image: PilImage, background: tuple[int, int, int]) -> PilImage:
    """Blend before any resampling, so that colours under full transparency leave no trace."""
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    canvas = new("RGB", rgba.size, background)
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return canvas
