"""A teacher's stored embeddings: `store.json`, and for each shard of the data one safetensors file.

A shard's file holds, for its N samples with K views each: `image` float16 [N, K, D], `text` float16 [M, D] of the M
texts that occur, `text_of` int32 [N, K], and the samples' keys in its metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from edgeclip.errors import DataError, ResourceError, UsageError
from edgeclip.train.data.batch import Indices

ABOUT = "store.json"
FORMAT_VERSION = 1
_KEYS = "keys"


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`store.json`."""

    format_version: int = FORMAT_VERSION
    teacher: str
    """Name of its architecture."""
    teacher_sha256: str
    dim: Annotated[int, Meta(ge=1)]
    """Width of its embeddings."""
    scale: Annotated[float, Meta(gt=0)]
    """exp(t) of the teacher."""
    seed: Annotated[int, Meta(ge=0)]
    variants: Annotated[int, Meta(ge=1)]
    """Views of each sample."""
    fingerprint: str
    """Of what decides the views that a seed gives: `Recipe.view_digest`."""


@dataclass(frozen=True)
class Part:
    """The embeddings of one shard."""

    keys: Sequence[str]
    image: Tensor
    """float16 [N, K, D], L2-normalised."""
    text: Tensor
    """float16 [M, D], L2-normalised."""
    text_of: Tensor
    """int32 [N, K]: which of the texts belongs to a view."""


class Store:
    """A store that is read. See `edgeclip.train.data.batch.TeacherStore`."""

    def __init__(self, about: About, parts: Sequence[Part]) -> None:
        self.about = about
        self.seed, self.variants, self.dim, self.scale = about.seed, about.variants, about.dim, about.scale
        self._parts = parts
        self._places = {key: (p, row) for p, part in enumerate(parts) for row, key in enumerate(part.keys)}

    def __len__(self) -> int:
        """Samples."""
        return len(self._places)

    def lookup(self, keys: Sequence[str], variants: Indices) -> Mapping[str, Tensor]:
        """`image` and `text`, float32 [B, D], of each sample's view.

        Raises:
            DataError: a sample is not in the store.
        """
        try:
            places = torch.tensor([self._places[key] for key in keys]).view(-1, 2)
        except KeyError as exc:
            raise DataError(
                f"{exc.args[0]}: no embeddings of this sample are stored", hint="run edgeclip reinforce on all the data"
            ) from exc
        views = torch.from_numpy(variants)
        image, text = torch.empty(len(keys), self.dim), torch.empty(len(keys), self.dim)
        for p in sorted(set(places[:, 0].tolist())):
            part, rows = self._parts[p], (places[:, 0] == p).nonzero().squeeze(1)
            samples, which = places[rows, 1], views[rows]
            image[rows] = part.image[samples, which].float()
            text[rows] = part.text[part.text_of[samples, which].long()].float()
        return {"image": image, "text": text}


def open_store(folder: Path, *, fingerprint: str) -> Store:
    """Open what `reinforce` wrote. The embeddings stay on the disk until they are read.

    Args:
        fingerprint: `view_digest` of the recipe that will use it.

    Raises:
        DataError: there is none, it is damaged, or of another version.
        UsageError: its views are not those of the recipe.
    """
    about = read_about(folder)
    if about.fingerprint != fingerprint:
        raise UsageError(
            f"{folder.name}: its views are not this recipe's",
            hint="keep [augment] and data.size, captions and templates as they were, or run edgeclip reinforce again",
        )
    parts = [read_part(file, about) for file in sorted(folder.glob("*.safetensors"))]
    if not parts:
        raise DataError(f"{folder.name}: holds no embeddings", hint="run edgeclip reinforce again")
    return Store(about, parts)


def read_about(folder: Path) -> About:
    """`store.json`.

    Raises:
        DataError: it is missing, damaged or of another version.
    """
    file = folder / ABOUT
    try:
        about = msgspec.json.decode(file.read_bytes(), type=About)
    except OSError as exc:
        raise DataError(f"{file}: {exc.strerror or exc}", hint="edgeclip reinforce makes it") from exc
    except msgspec.MsgspecError as exc:
        raise DataError(f"{file}: {exc}", hint="run edgeclip reinforce again") from exc
    if about.format_version != FORMAT_VERSION:
        raise DataError(f"{file}: format version {about.format_version}, this edgeclip reads {FORMAT_VERSION}")
    return about


def claim(folder: Path, about: About) -> None:
    """Make a store, or go on with one.

    Raises:
        UsageError: the folder holds another store, or something else.
        ResourceError: it cannot be written.
    """
    if (folder / ABOUT).is_file():
        found = read_about(folder)
        other = [name for name in about.__struct_fields__ if getattr(found, name) != getattr(about, name)]
        if other:
            raise UsageError(f"{folder}: holds a store of another {', '.join(other)}", hint="name another folder")
        return
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UsageError(f"{folder}: not empty, and no store", hint="name another folder")
    write(folder / ABOUT, msgspec.json.format(msgspec.json.encode(about), indent=1) + b"\n")


def shard_file(folder: Path, shard: str) -> Path:
    """Where a shard's embeddings lie; its name may be a command or hold any character."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", shard)[-80:]
    return folder / f"{readable}-{hashlib.sha256(shard.encode()).hexdigest()[:8]}.safetensors"


def write_part(file: Path, part: Part) -> None:
    """Write a shard's embeddings; half of a file is never visible.

    Raises:
        ResourceError: the disk is full.
    """
    tensors = {"image": part.image, "text": part.text, "text_of": part.text_of}
    write(file, save(tensors, {_KEYS: json.dumps(list(part.keys))}))


def read_part(file: Path, about: About) -> Part:
    """Map a shard's embeddings.

    Raises:
        DataError: it is damaged, or does not belong to the store.
    """
    try:
        with safe_open(file, "pt") as stored:
            keys = json.loads((stored.metadata() or {})[_KEYS])
            image, text, text_of = (stored.get_tensor(name) for name in ("image", "text", "text_of"))
    except (SafetensorError, OSError, KeyError, ValueError) as exc:
        raise DataError(f"{file.name}: damaged: {exc}", hint="delete it and run edgeclip reinforce again") from exc
    shapes = [(len(keys), about.variants, about.dim), (len(text), about.dim), (len(keys), about.variants)]
    if [tuple(tensor.shape) for tensor in (image, text, text_of)] != shapes:
        raise DataError(
            f"{file.name}: does not belong to this store", hint="delete it and run edgeclip reinforce again"
        )
    return Part(keys, image, text, text_of)


def write(file: Path, data: bytes) -> None:
    """Replace a file as a whole."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as temporary:
            try:
                temporary.write(data)
                temporary.flush()
                os.fsync(temporary.fileno())
                os.replace(temporary.name, file)  # noqa: PTH105 - a name, not a Path
            except BaseException:
                Path(temporary.name).unlink(missing_ok=True)
                raise
    except OSError as exc:
        raise ResourceError(f"{file}: cannot be written: {exc.strerror or exc}", hint="free some space") from exc
