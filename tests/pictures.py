"""Pictures on disk in every layout that calibration and evaluation read."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

import edgeclip
from edgeclip.bundle import Bundle
from edgeclip.tokenizer import Tokenizer
from tests import training

SIDE = training.SIDE


@cache
def tokenizer() -> Tokenizer:
    """The built-in model's."""
    bundle = Bundle.open(Path(edgeclip.__file__).parent / "assets" / "built-in.edgeclip")
    spec = bundle.manifest.tokenizer
    assert spec is not None
    return Tokenizer(bundle.read(spec.file), spec)


def encoded(seed: int) -> bytes:
    """A PNG of noise, 18 x 20 pixels, another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 18, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def flat(level: int) -> bytes:
    """A PNG of one grey."""
    out = io.BytesIO()
    Image.new("RGB", (20, 20), (level, level, level)).save(out, "PNG")
    return out.getvalue()


def folder(path: Path, count: int, *, first: int = 0) -> Path:
    """Photographs `0000.png`, …"""
    path.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        (path / f"{i:04d}.png").write_bytes(encoded(i))
    return path


def class_folders(path: Path, names: tuple[str, ...] = ("red_fox", "cat"), each: int = 10) -> Path:
    """A folder of pictures for each class."""
    for i, name in enumerate(names):
        folder(path / name, each, first=each * i)
    return path


def tar(path: Path, count: int, *, first: int = 0) -> Path:
    """A shard of pictures, by turns with captions, with names, and with a text."""
    members: dict[str, bytes] = {}
    for i in range(first, first + count):
        members[f"{i:04d}.png"] = encoded(i)
        if i % 3 == 2:
            members[f"{i:04d}.txt"] = f"text {i}\n\nagain {i}\n".encode()
        else:
            said = {"captions": [f"caption {i}"]} if i % 3 else {"label": i, "names": [f"name {i}", f"other {i}"]}
            members[f"{i:04d}.json"] = json.dumps(said).encode()
    return training.shard(path, members)


def table(path: Path, count: int, captions: int = 2) -> Path:
    """A CSV or TSV of pictures in the folder beside it, `captions` rows for each."""
    folder(path.parent / "pictures", count)
    separator = "\t" if path.suffix == ".tsv" else ","
    rows = [separator.join(["Title", "FilePath", "licence"])]
    rows += [
        separator.join([f"caption {k} of {i}", f"pictures/{i:04d}.png", "x"])
        for k in range(captions)
        for i in range(count)
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    return path
