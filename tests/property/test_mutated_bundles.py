"""Random damage to a bundle: an error of ours, or exactly what was written."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeclip.bundle import Bundle
from edgeclip.errors import EdgeClipError
from edgeclip.manifest import Manifest
from tests import bundles

MUTANTS = 500
NIGHTLY_MUTANTS = 10_000

Mutation = Callable[[random.Random, bytearray], None]


def flip_bit(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    length = min(rng.choice([1, 2, 4, 8, 64]), len(data) - at)
    data[at : at + length] = rng.choice([b"\0" * length, b"\xff" * length, rng.randbytes(length)])


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def remove(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice([1, 4, 100])]


def insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice([1, 4, 100]))


def move(rng: random.Random, data: bytearray) -> None:
    """Copy a run of bytes elsewhere, as a lost or doubled disk block does."""
    source, target = rng.randrange(len(data)), rng.randrange(len(data))
    length = min(rng.choice([4, 46, 512]), len(data) - max(source, target))
    data[target : target + length] = data[source : source + length]


def structure(rng: random.Random, data: bytearray) -> None:
    """Overwrite in the zip's directory and end record, or in the manifest, where a random place seldom is."""
    start = rng.choice([data.rfind(b"PK\x05\x06"), data.find(b"PK\x01\x02"), data.find(b'"files"'), 0])
    at = min(max(start, 0) + rng.randrange(60), len(data) - 1)
    data[at] = rng.choice([0, 1, 255, rng.randrange(256)])


MUTATIONS: list[Mutation] = [flip_bit, overwrite, cut, remove, insert, move, structure, structure]


def outcome(path: Path, manifest: Manifest, files: dict[str, bytes]) -> str:
    """What opening and reading all of it led to."""
    try:
        bundle = Bundle.open(path)
        for artifact in bundle.artifacts():
            bundle.files(artifact)
        read = bundles.contents(bundle)
    except EdgeClipError as error:
        assert str(path) in str(error) or "graph" in str(error)
        return "refused"
    assert bundle.manifest == manifest
    assert read == files
    return "same"


def mutate_files(tmp_path: Path, count: int) -> None:
    original = bundles.write(tmp_path / "m.edgeclip")
    content = original.path.read_bytes()
    rng = random.Random(count)
    outcomes = []
    for _ in range(count):
        data = bytearray(content)
        for _ in range(rng.choice([1, 1, 1, 3])):
            if data:
                rng.choice(MUTATIONS)(rng, data)
        original.path.write_bytes(data)
        outcomes.append(outcome(original.path, original.manifest, bundles.files()))
    assert outcomes.count("refused") > count / 2


def mutate_directories(tmp_path: Path, count: int) -> None:
    """As files; the manifest is left alone, because only its digest, which the caller must know, protects it there."""
    original = bundles.write_directory(tmp_path / "m")
    manifest = original.manifest
    rng = random.Random(count)
    for _ in range(count):
        name = rng.choice(sorted(bundles.files()))
        data = bytearray((tmp_path / "m" / name).read_bytes())
        rng.choice(MUTATIONS)(rng, data)
        (tmp_path / "m" / name).write_bytes(data)
        outcome(tmp_path / "m", manifest, bundles.files())
        (tmp_path / "m" / name).write_bytes(bundles.files()[name])
    Bundle.open(tmp_path / "m").verify_files()


def test_mutated_files_are_refused_or_the_same(tmp_path: Path) -> None:
    mutate_files(tmp_path, MUTANTS)


def test_mutated_directories_are_refused_or_the_same(tmp_path: Path) -> None:
    mutate_directories(tmp_path, MUTANTS // 2)


@pytest.mark.nightly
def test_mutated_files_are_refused_or_the_same_in_number(tmp_path: Path) -> None:
    mutate_files(tmp_path, NIGHTLY_MUTANTS)


@pytest.mark.nightly
def test_mutated_directories_are_refused_or_the_same_in_number(tmp_path: Path) -> None:
    mutate_directories(tmp_path, NIGHTLY_MUTANTS // 2)


def test_any_change_of_a_directorys_manifest_is_refused_where_its_digest_is_known(tmp_path: Path) -> None:
    original = bundles.write_directory(tmp_path / "m")
    manifest = tmp_path / "m" / "manifest.json"
    content = manifest.read_bytes()
    rng = random.Random(0)
    for _ in range(200):
        data = bytearray(content)
        rng.choice(MUTATIONS)(rng, data)
        if data != content:
            manifest.write_bytes(data)
            with pytest.raises(EdgeClipError):
                Bundle.open(tmp_path / "m", expect_digest=original.digest)
    shutil.rmtree(tmp_path / "m")
