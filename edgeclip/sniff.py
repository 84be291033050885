"""What a file is, by its first bytes: names tell nothing, and an image library tells only what it can read."""

from __future__ import annotations

READABLE = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
}
"""Formats that are decoded, under Pillow's names. WebP is not here: its mark is not at the start."""

_OTHER = {
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
    b"MM\x00+": "TIFF",
    b"8BPS": "Photoshop (PSD)",
    b"%!PS": "PostScript (EPS)",
    b"\xc5\xd0\xd3\xc6": "PostScript (EPS)",
    b"%PDF": "PDF",
    b"SIMPLE  =": "FITS",
    b"\x00\x00\x01\x00": "icon (ICO)",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"version https://git-lfs": "a Git LFS pointer, not the image itself",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
}

_MARKUP = {b"<svg": "SVG", b"<html": "HTML", b"<!doctype html": "HTML"}

_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"
)


def readable(data: bytes) -> str | None:
    """Pillow's name of the format, or None when it is not one of JPEG, PNG, WebP, BMP and GIF."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return _by_start(data, READABLE)


def describe(data: bytes) -> str:
    """A few words for a message: what these bytes seem to be."""
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "ISO media (MP4 or alike)")
    return readable(data) or _by_start(data, _OTHER) or _markup(data) or f"unknown, starts with {data[:8].hex(' ')}"


def _by_start(data: bytes, table: dict[bytes, str]) -> str | None:
    return next((name for mark, name in table.items() if data.startswith(mark)), None)


def _markup(data: bytes) -> str | None:
    """SVG and HTML may open with a byte order mark, blanks, comments and an XML declaration."""
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head.startswith(b"<"):
        return None
    return next((name for mark, name in _MARKUP.items() if mark in head), "XML" if head.startswith(b"<?xml") else None)
