"""What tests of training share: a toy model, toy data, and recipes for both."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from edgeclip.manifest import Preprocess
from edgeclip.train.models.config import ClipConfig, TextConfig, VitConfig
from edgeclip.train.recipe import Recipe, decode
from tests import tiny

SIDE = 16
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "white": (240, 240, 240)}
AT_STEP = """
import os, signal
from edgeclip.train.loop import Run
advance = Run.advance
def faulty(run, batch):
    if run.step == {step}:
        {fault}
    return advance(run, batch)
Run.advance = faulty
"""


def toy_config() -> ClipConfig:
    """A ViT of 16 pixels with 12 thousand parameters."""
    size: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "mlp_width": 32, "activation": "gelu"}
    return ClipConfig(
        name="toy",
        embed_dim=8,
        image_size=SIDE,
        image=VitConfig(patch=8, **size),
        text=TextConfig(context_length=16, vocab_size=tiny.VOCAB_SIZE, **size),
    )


def picture(colour: tuple[int, int, int], rng: np.random.Generator, *, form: str = "JPEG") -> bytes:
    """An encoded image of one colour with noise, 20 x 24 pixels."""
    noise = rng.integers(-25, 25, (24, 20, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of these files."""
    with tarfile.open(path, "w:gz" if path.name.endswith(".gz") else "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def colour_members(count: int, seed: int = 0) -> dict[str, bytes]:
    """Samples in the colours, by turns; half of them with captions, half with class names."""
    rng = np.random.default_rng(seed)
    members: dict[str, bytes] = {}
    for i in range(count):
        name = list(COLOURS)[i % len(COLOURS)]
        text = {"names": [name]} if i % 8 < 4 else {"captions": [f"the {name} thing {i}", f"a {name} sheet {i}"]}
        members[f"{seed}-{i:04d}.jpg"] = picture(COLOURS[name], rng)
        members[f"{seed}-{i:04d}.json"] = json.dumps(text).encode()
    return members


def colours(folder: Path, count: int = 96, shards: int = 2) -> Path:
    """A folder of shards `colours-000.tar`, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(shards):
        shard(folder / f"colours-{i:03d}.tar", colour_members(count // shards, seed=i))
    return folder


def tables(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of the toy model on `colours`, as plain tables; `changes` by dotted keys with `__` for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    colours(folder / "data")
    (folder / "toy.json").write_bytes(msgspec.json.encode(toy_config()))
    plain: dict[str, Any] = {
        "name": "toy",
        "output": str(folder / "runs"),
        "model": {"architecture": str(folder / "toy.json"), "tokenizer": str(tiny.tokenizer_file(folder))},
        "data": {
            "root": str(folder / "data"),
            "size": 20,
            "sources": [{"kind": "shards", "urls": ["colours-{000..001}.tar"]}],
        },
        "optimizer": {"lr": 3e-3, "warmup": 2},
        "loop": {"batch_size": 16, "steps": 6, "device": "cpu", "log_every": 1, "save_every": 2},
    }
    for key, value in changes.items():
        table, _, name = key.rpartition("__")
        target = plain
        for part in table.split("__") if table else ():
            target = target.setdefault(part, {})
        target[name] = value
    return plain


def recipe(folder: Path, **changes: Any) -> Recipe:
    """The recipe decoded."""
    return decode(tables(folder, **changes), "toy.toml", base=folder)


def recipe_file(folder: Path, **changes: Any) -> Path:
    """The recipe as TOML."""
    path = folder / "toy.toml"
    path.write_text(to_toml(tables(folder, **changes)))
    return path


def to_toml(plain: dict[str, Any], prefix: str = "") -> str:
    """Enough TOML for recipes: JSON's scalars and lists are TOML's."""
    flat = {k: v for k, v in plain.items() if not isinstance(v, dict) and not _tables(v)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in flat.items()]
    for key, value in plain.items():
        if isinstance(value, dict):
            lines += [f"[{prefix}{key}]", to_toml(value, f"{prefix}{key}.")]
        for item in value if _tables(value) else ():
            lines += [f"[[{prefix}{key}]]", to_toml(item, f"{prefix}{key}.")]
    return "\n".join(lines) + "\n"


def _tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def decode_again(folder: Path, extra: dict[str, Any]) -> Recipe:
    """The recipe whose files `tables` has written already; safe for several processes at once."""
    plain = {
        "name": "toy",
        "model": {"architecture": str(folder / "toy.json")},
        "data": {"sources": [{"kind": "shards", "urls": ["x.tar"]}]},
        "loop": {"steps": 1},
    }
    return decode({**plain, **extra}, "toy.toml", base=folder)


def preprocess() -> Preprocess:
    """The toy model's."""
    return Preprocess(size=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def test_set(folder: Path, count: int = 12) -> Path:
    """A test set of pictures in four colours."""
    (folder / "test").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = list(COLOURS)
    members: dict[str, bytes] = {}
    for i in range(count):
        members[f"{i:03d}.jpg"] = picture(COLOURS[names[i % 4]], rng)
        members[f"{i:03d}.cls"] = str(i % 4).encode()
    shard(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("\n".join(names))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} thing.\nall {c}\n")
    return folder


def at_step(step: int, fault: str) -> str:
    """Code that makes a fault happen when so many steps are done."""
    return AT_STEP.format(step=step, fault=fault)
