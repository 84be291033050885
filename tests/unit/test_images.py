"""Which files are read, which are refused, and what the refusal says."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from edgeclip.errors import ImageDecodeError, ImageTooLargeError
from edgeclip.manifest import Preprocess
from edgeclip.preprocess import preprocess


def spec_of(size: int = 4, **fields: Any) -> Preprocess:
    return Preprocess(size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), **fields)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(height: int = 60, width: int = 80) -> Image.Image:
    return Image.fromarray(noise(height, width))


# --- files


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "MPO"])
def test_format_is_read_from_a_path_and_from_bytes(kind: str, tmp_path: Path) -> None:
    data = encoded(picture(), kind)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for image in (data, path, str(path)):
        pixels = preprocess(image, spec_of(16))
        reference = preprocess(Image.open(io.BytesIO(data)), spec_of(16))
        assert np.array_equal(pixels, reference)


def test_phone_jpeg_with_two_images_gives_the_first_scaled() -> None:
    smooth = picture(6, 8).resize((800, 600), Image.Resampling.BICUBIC)
    data = encoded(smooth, "MPO", save_all=True, append_images=[Image.new("RGB", (800, 600))], quality=95)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    difference = preprocess(data, spec_of(32)).astype(int) - preprocess(smooth, spec_of(32))
    assert np.abs(difference).max() <= 4


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(picture(), "PNG"))
    assert np.array_equal(preprocess(tmp_path / "a.jpg", spec_of(16)), preprocess(picture(), spec_of(16)))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "SVG"),
        (b'<?xml version="1.0"?>\n<feed/>', "XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
        (encoded(picture(), "TIFF"), "TIFF"),
        (encoded(picture(), "EPS"), r"PostScript \(EPS\)"),
        (encoded(picture(), "PDF"), "PDF"),
        (b"8BPS\0\1", r"Photoshop \(PSD\)"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\x01\x02\x03", "unknown, starts with 01 02 03"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_content_is_named(data: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageDecodeError, match=rf"cat\.jpg'.*the content is {found}"):
        preprocess(path, spec_of())


def test_lfs_pointer_is_told_what_to_run() -> None:
    with pytest.raises(ImageDecodeError, match="run git lfs pull"):
        preprocess(b"version https://git-lfs.github.com/spec/v1\n", spec_of())


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_truncated_file_is_refused(kind: str, share: float) -> None:
    data = encoded(picture(), kind)
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(ImageDecodeError, match=r"(?i)<\d+ bytes>: .*truncated"):
        preprocess(data[: int(len(data) * share)], spec_of())
    assert ImageFile.LOAD_TRUNCATED_IMAGES is before


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_later_frames_are_never_decoded(kind: str) -> None:
    frames = [Image.fromarray(noise(60, 80 + i)[:, :80, 0]) for i in range(4)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    still = encoded(frames[0], kind)
    damaged = data[: len(data) // 2]  # in the third of four frames
    assert np.array_equal(preprocess(damaged, spec_of(16)), preprocess(still, spec_of(16)))


def test_missing_file() -> None:
    with pytest.raises(ImageDecodeError, match=r"'no/such\.jpg': no such file"):
        preprocess("no/such.jpg", spec_of())


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(ImageDecodeError, match=r"a directory, not an image \(list its files\)"):
        preprocess(tmp_path, spec_of())


def test_name_with_a_nul() -> None:
    with pytest.raises(ImageDecodeError, match=r"cannot be read: .*null"):
        preprocess("a\0b", spec_of())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageDecodeError, match="not a regular file"):
        preprocess(tmp_path / "pipe", spec_of())


# --- limits


def hollow_png(width: int, height: int) -> bytes:
    """A header that claims a size, with hardly any data behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8001, 8000), (13_000, 13_000), (20_000, 20_000), (2**31, 1)])
def test_header_alone_refuses_too_many_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLargeError, match=r"<\d+ bytes>: .*pixels.*limit"):
        preprocess(hollow_png(*size), spec_of())


def test_limit_of_pixels_is_the_callers() -> None:
    with pytest.raises(ImageTooLargeError, match=r"80x60 is 4800 pixels, the limit is 4799 .*raise max_pixels"):
        preprocess(picture(), spec_of(), max_pixels=4799)
    assert preprocess(picture(), spec_of(), max_pixels=4800).shape == (4, 4, 3)


def test_extreme_shapes_cost_no_memory() -> None:
    """Shortest side to 224 would make 1x65535 an image of 224 x 14,679,840: 9.9 GB."""
    code = """
        import resource
        import numpy as np
        from PIL import Image
        from edgeclip.manifest import Preprocess
        from edgeclip.preprocess import preprocess
        spec = Preprocess(size=224, mean=(0, 0, 0), std=(1, 1, 1))
        preprocess(np.zeros((9, 9, 3), np.uint8), spec)
        images = [Image.new(mode, size) for mode in ("RGB", "RGBA") for size in ((1, 65535), (65535, 1), (4000, 1))]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for image in images:
            preprocess(image, spec)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    if sys.platform != "linux":
        pytest.skip("ru_maxrss is in kB on Linux only")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) < 20_000
