"""What each kind of input becomes, and what each unusable one is told."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from edgeclip.errors import ImageDecodeError, InputShapeError
from edgeclip.manifest import Preprocess
from edgeclip.preprocess import preprocess, preprocess_batch

BACKGROUND = (10, 20, 30)


def spec_of(size: int = 4, **fields: Any) -> Preprocess:
    return Preprocess(size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), background=BACKGROUND, **fields)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(height: int = 60, width: int = 80) -> Image.Image:
    return Image.fromarray(noise(height, width))


def pixel(image: Any, **fields: Any) -> tuple[int, ...]:
    """The colour that a uniform 4x4 image has after preprocessing."""
    pixels = preprocess(image, spec_of(**fields))
    assert (pixels == pixels[0, 0]).all()
    return tuple(pixels[0, 0].tolist())


# --- result


def test_result_is_a_contiguous_writable_square() -> None:
    pixels = preprocess(picture(), spec_of(16))
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize(("crop", "first"), [("round", 2), ("floor", 1)])
def test_half_a_pixel_of_crop_goes_where_the_manifest_says(crop: str, first: int) -> None:
    ramp = np.repeat(np.arange(7, dtype=np.uint8)[None, :, None], 4, axis=0)  # 7 wide, 4 kept: offset 1.5
    pixels = preprocess(np.repeat(ramp, 3, axis=2), spec_of(4, crop=crop))
    assert pixels[0, :, 0].tolist() == [first, first + 1, first + 2, first + 3]


def test_squash_keeps_the_whole_image() -> None:
    halves = np.zeros((8, 64, 3), np.uint8)
    halves[:, 32:] = 255
    pixels = preprocess(halves, spec_of(8, resize="squash", interpolation="bilinear"))
    assert pixels[0, [0, -1], 0].tolist() == [0, 255]


# --- colour modes


PALETTE = Image.new("P", (4, 4), 1)
PALETTE.putpalette([0, 0, 0, 7, 8, 9])
CLEAR_PALETTE = PALETTE.copy()
CLEAR_PALETTE.info["transparency"] = 1


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("L", (4, 4), 100), (100, 100, 100)),
        (Image.new("LA", (4, 4), (100, 0)), BACKGROUND),
        (Image.new("LA", (4, 4), (100, 255)), (100, 100, 100)),
        (PALETTE, (7, 8, 9)),
        (CLEAR_PALETTE, BACKGROUND),
        (Image.new("RGB", (4, 4), (1, 2, 3)), (1, 2, 3)),
        (Image.new("RGBA", (4, 4), (200, 0, 0, 0)), BACKGROUND),
        (Image.new("RGBA", (4, 4), (210, 0, 130, 51)), (50, 16, 50)),
        (Image.new("RGBa", (4, 4), (0, 0, 0, 0)), BACKGROUND),
        (Image.new("CMYK", (4, 4), (255, 0, 0, 0)), (0, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 255)), (0, 0, 0)),
        (Image.new("YCbCr", (4, 4), (100, 128, 128)), (100, 100, 100)),
        (Image.new("HSV", (4, 4), (0, 0, 77)), (77, 77, 77)),
        (Image.fromarray(np.full((4, 4), 25_700, np.uint16)), (100, 100, 100)),
        (Image.fromarray(np.full((4, 4), 65_535, np.uint16)), (255, 255, 255)),
        (Image.new("I", (4, 4), 25_700), (100, 100, 100)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_mode_has_its_golden_pixel(image: Image.Image, expected: tuple[int, int, int]) -> None:
    assert pixel(image) == expected


def test_grey_of_16_bits_from_a_file_is_scaled_not_clipped() -> None:
    assert pixel(encoded(Image.fromarray(np.full((4, 4), 25_700, np.uint16)), "PNG")) == (100, 100, 100)


def test_colour_key_of_a_png_is_transparent() -> None:
    data = encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert pixel(data) == BACKGROUND


def test_cmyk_jpeg_is_converted() -> None:
    pixels = preprocess(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95), spec_of(16))
    assert np.abs(pixels.astype(int) - (0, 255, 255)).max() <= 2


def test_colour_under_full_transparency_leaves_no_trace() -> None:
    rgba = noise(40, 40, 4)
    rgba[..., 3] = np.where(np.arange(40) % 2, 255, 0)
    plain = rgba.copy()
    plain[rgba[..., 3] == 0, :3] = 0
    assert np.array_equal(preprocess(rgba, spec_of(8)), preprocess(plain, spec_of(8)))


def test_float_mode_is_refused() -> None:
    with pytest.raises(InputShapeError, match=r"PIL mode 'F' has no agreed range .*convert to RGB"):
        preprocess(Image.new("F", (4, 4)), spec_of())


def test_integer_mode_above_16_bits_is_refused() -> None:
    with pytest.raises(InputShapeError, match=r"mode 'I' with values in \[70000, 70000\], expected \[0, 65535\]"):
        preprocess(Image.new("I", (4, 4), 70_000), spec_of())


def test_broken_colour_profile_is_ignored() -> None:
    plain, profiled = encoded(picture(), "PNG"), encoded(picture(), "PNG", icc_profile=b"no profile at all")
    assert np.array_equal(preprocess(profiled, spec_of(16)), preprocess(plain, spec_of(16)))


# --- EXIF


STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def oriented(upright: Image.Image, orientation: int, kind: str, **options: Any) -> bytes:
    """A file that is stored turned, and says so."""
    turn = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(upright if turn is None else upright.transpose(turn), kind, exif=exif, **options)


@pytest.mark.parametrize("size", [(83, 57), (57, 83), (16, 200)])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_gives_the_upright_pixels(orientation: int, size: tuple[int, int]) -> None:
    upright = picture(*size)
    data = oriented(upright, orientation, "PNG")
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))), np.asarray(upright))
    difference = preprocess(data, spec_of(16)).astype(int) - preprocess(upright, spec_of(16))
    assert np.abs(difference).max() <= 1  # a mirrored sum may round the other way


@pytest.mark.parametrize("orientation", STORED)
def test_orientation_holds_with_scaled_decoding(orientation: int) -> None:
    smooth = picture(6, 8).resize((645, 483), Image.Resampling.BICUBIC)
    data = oriented(smooth, orientation, "JPEG", quality=95)
    difference = preprocess(data, spec_of(32)).astype(int) - preprocess(smooth, spec_of(32))
    assert np.abs(difference).max() <= 4


def test_orientation_is_left_alone_where_the_manifest_says_so() -> None:
    data = oriented(picture(), 3, "PNG")
    stored = Image.open(io.BytesIO(data))
    stored.load()
    bare = Image.fromarray(np.asarray(stored))
    assert np.array_equal(preprocess(data, spec_of(16, exif="ignore")), preprocess(bare, spec_of(16)))


def test_only_the_small_result_is_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    turned: list[tuple[int, int]] = []
    transpose = Image.Image.transpose

    def spy(self: Image.Image, method: Image.Transpose) -> Image.Image:
        turned.append(self.size)
        return transpose(self, method)

    data = oriented(picture(300, 400), 6, "JPEG")
    monkeypatch.setattr(Image.Image, "transpose", spy)
    preprocess(data, spec_of(16))
    assert turned == [(16, 16)]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow warns while opening, and goes on
def test_corrupt_exif_is_ignored() -> None:
    damaged = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff\xff\xff")
    assert np.array_equal(preprocess(damaged, spec_of(16)), preprocess(encoded(picture(), "JPEG"), spec_of(16)))


# --- PIL images and arrays


@pytest.mark.parametrize("orientation", [1, 6])
def test_callers_image_is_not_modified(orientation: int) -> None:
    data = oriented(picture(480, 640), orientation, "JPEG")
    image, untouched = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
    preprocess(image, spec_of(16))
    untouched.load()
    assert (image.size, image.mode, image.info) == (untouched.size, untouched.mode, untouched.info)
    assert image.tobytes() == untouched.tobytes()


def test_callers_frame_is_used_and_kept() -> None:
    frames = [Image.new("L", (4, 4), value) for value in (10, 20, 30)]
    image = Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    image.seek(1)
    assert pixel(image) == (20, 20, 20)
    assert image.tell() == 1


RGB = noise(6, 9)


@pytest.mark.parametrize(
    ("array", "same_as"),
    [
        (RGB.transpose(2, 0, 1), RGB),
        (np.ascontiguousarray(RGB[::-1])[::-1], RGB),
        (RGB.astype(np.float32) / 255, RGB),
        (RGB.astype(np.float64).transpose(2, 0, 1) / 255, RGB),
        (RGB[..., 0], np.repeat(RGB[..., :1], 3, axis=2)),
        (RGB[..., :1], np.repeat(RGB[..., :1], 3, axis=2)),
        (RGB[None, :, :, 0], np.repeat(RGB[..., :1], 3, axis=2)),
        (np.dstack([RGB, np.full((6, 9), 255, np.uint8)]), RGB),
    ],
    ids=["CHW", "negative stride", "float HWC", "float CHW", "HW", "HW1", "1HW", "HW4"],
)
def test_array_layouts_agree(array: np.ndarray, same_as: np.ndarray) -> None:
    assert np.array_equal(preprocess(array, spec_of(6)), preprocess(same_as, spec_of(6)))


def test_read_only_array_is_accepted_and_an_array_is_not_written() -> None:
    array = RGB.copy()
    array.flags.writeable = False
    preprocess(array, spec_of(6))
    assert np.array_equal(array, RGB)


def test_last_axis_wins_where_both_layouts_fit() -> None:
    row = np.array([[[9, 8, 7]]], np.uint8)
    assert pixel(row) == (9, 8, 7)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((4, 4, 3), 1.5, np.float32), r"float values span \[1.5, 1.5\]"),
        (np.full((4, 4, 3), -0.1), r"float values span \[-0.1, -0.1\]"),
        (np.full((4, 4, 3), np.nan, np.float32), r"float values span \[nan, nan\]"),
        (np.zeros((4, 4, 3), np.int64), "dtype int64 is not an image's"),
        (np.zeros((4, 4, 3), np.float16), "dtype float16 is not an image's"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \[4, 4, 2\] is not an image's"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"shape \[1, 4, 4, 3\] is not an image's"),
        (np.zeros(4, np.uint8), r"shape \[4\] is not an image's"),
    ],
)
def test_other_arrays_are_told_the_rule(array: np.ndarray, said: str) -> None:
    with pytest.raises(InputShapeError, match=rf"{said} \(an array must be uint8 in \[0, 255\] or float32"):
        preprocess(array, spec_of())


@pytest.mark.parametrize("empty", [np.zeros((0, 4, 3), np.uint8), Image.new("RGB", (0, 4))])
def test_no_pixels(empty: Any) -> None:
    with pytest.raises(InputShapeError, match="has no pixels"):
        preprocess(empty, spec_of())


@pytest.mark.parametrize(("thing", "kind"), [(None, "NoneType"), (3, "int"), ([RGB], "list")])
def test_other_types_are_refused(thing: Any, kind: str) -> None:
    with pytest.raises(InputShapeError, match=f"a path, bytes, a PIL image or a numpy array, not {kind}"):
        preprocess(thing, spec_of())


def test_source_names_the_image() -> None:
    with pytest.raises(ImageDecodeError, match=r"^row 7: not an image"):
        preprocess(b"abc", spec_of(), source="row 7")


# --- batches


def test_batch_fills_the_callers_array_in_order() -> None:
    images = [picture(), encoded(picture(9, 8), "PNG"), RGB]
    out = np.zeros((3, 8, 8, 3), np.uint8)
    assert preprocess_batch(images, spec_of(8), out=out) is out
    assert all(np.array_equal(row, preprocess(image, spec_of(8))) for row, image in zip(out, images, strict=True))


def test_empty_batch() -> None:
    assert preprocess_batch([], spec_of(8)).shape == (0, 8, 8, 3)


def test_batch_names_the_index_of_a_bad_image() -> None:
    with pytest.raises(ImageDecodeError, match=r"^image 1: <3 bytes>: not an image"):
        preprocess_batch([picture(), b"abc"], spec_of())


def test_out_must_fit() -> None:
    with pytest.raises(InputShapeError, match=r"out: uint8 \[2, 4, 4, 3\], expected uint8 \[1, 4, 4, 3\]"):
        preprocess_batch([RGB], spec_of(), out=np.zeros((2, 4, 4, 3), np.uint8))
