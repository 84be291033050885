"""Small labelled data in the true formats: CLIP_benchmark's test sets of every kind, and what a hub's cache makes of one."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from tests import training

NAMES = list(training.COLOURS)


def retrieval(folder: Path, count: int = 24, captions: int = 2) -> Path:
    """Images with captions."""
    rng = np.random.default_rng(1)
    members: dict[str, bytes] = {}
    for i in range(count):
        name = NAMES[i % 4]
        members[f"{i:03d}.png"] = training.picture(training.COLOURS[name], rng, form="PNG")
        members[f"{i:03d}.txt"] = "\n".join(f"{name} thing number {i} seen {k} times" for k in range(captions)).encode()
    _shards(folder / "test", members)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return folder


def multilabel(folder: Path, count: int = 24) -> Path:
    """Images of which one or two classes are said to apply."""
    rng = np.random.default_rng(2)
    members: dict[str, bytes] = {}
    for i in range(count):
        marks = np.zeros(4, np.uint8)
        marks[[i % 4, (i * i) % 4]] = 1
        out = io.BytesIO()
        np.save(out, marks)
        members[f"{i:03d}.jpg"] = training.picture(training.COLOURS[NAMES[i % 4]], rng)
        members[f"{i:03d}.npy"] = out.getvalue()
    _shards(folder / "test", members)
    (folder / "dataset_type.txt").write_text("multilabel")
    _described(folder)
    return folder


def many_classes(folder: Path, classes: int = 8, count: int = 96) -> Path:
    """A test set of pictures in more colours, not all classes equally often."""
    rng = np.random.default_rng(6)
    colours = rng.integers(0, 255, (classes, 3))
    members: dict[str, bytes] = {}
    for i in range(count):
        label = int(classes * (i / count) ** 1.5)
        members[f"{i:03d}.webp"] = training.picture(tuple(colours[label]), rng, form="WEBP")
        members[f"{i:03d}.cls"] = str(label).encode()
    _shards(folder / "test", members)
    (folder / "classnames.txt").write_text("\n".join(f"colour {i}" for i in range(classes)))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} thing.\nall {c}\n")
    return folder


def with_training(folder: Path, count: int = 40) -> Path:
    """A test set with a training split."""
    training.test_set(folder)
    members: dict[str, bytes] = {}
    rng = np.random.default_rng(3)
    for i in range(count):
        members[f"{i:03d}.jpg"] = training.picture(training.COLOURS[NAMES[i % 4]], rng)
        members[f"{i:03d}.cls"] = str(i % 4).encode()
    _shards(folder / "train", members)
    return folder


def class_folders(folder: Path, each: int = 4, seed: int = 4) -> Path:
    """A folder of pictures for each colour."""
    rng = np.random.default_rng(seed)
    for name, colour in training.COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(each):
            (folder / name / f"{i}.jpg").write_bytes(training.picture(colour, rng))
    return folder


def table(path: Path, head: str, rows: list[str]) -> Path:
    """A CSV beside pictures `0.png`, …, one for each row, in the colours by turns. `{}` in a row is its picture."""
    rng = np.random.default_rng(5)
    path.parent.mkdir(parents=True, exist_ok=True)
    for i in range(len(rows)):
        (path.parent / f"{i}.png").write_bytes(training.picture(training.COLOURS[NAMES[i % 4]], rng, form="PNG"))
    path.write_text("\n".join([head, *(row.replace("{}", f"{i}.png") for i, row in enumerate(rows))]) + "\n")
    return path


def hub_cache(
    home: Path, repository: str, folder: Path, *, commit: str = "0123456789abcdef0123456789abcdef01234567"
) -> Path:
    """What huggingface_hub leaves on disk after it got a data set: blobs, a snapshot of links to them, and a ref."""
    root = home / "hub" / f"datasets--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    (root / "blobs").mkdir()
    for i, file in enumerate(sorted(one for one in folder.rglob("*") if one.is_file())):
        link = root / "snapshots" / commit / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = root / "blobs" / f"{i:040x}"
        blob.write_bytes(file.read_bytes())
        link.symlink_to(os.path.relpath(blob, link.parent))
    return home


def _shards(folder: Path, members: dict[str, bytes], shards: int = 2) -> None:
    """Two of them: the samples of the second follow those of the first."""
    folder.mkdir(parents=True)
    keys = list(dict.fromkeys(name.partition(".")[0] for name in members))
    for k in range(shards):
        part = set(keys[k * len(keys) // shards : (k + 1) * len(keys) // shards])
        training.shard(folder / f"{k}.tar", {n: data for n, data in members.items() if n.partition(".")[0] in part})
    (folder / "nshards.txt").write_text(f"{shards}\n")


def _described(folder: Path) -> None:
    (folder / "classnames.txt").write_text("\n".join(NAMES))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} thing.\nall {c}\n")
