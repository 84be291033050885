"""Stored teachers: what is stored is what the teacher says of the very views that a student sees."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeclip.errors import DataError, NonFiniteError, ResourceError, UsageError
from edgeclip.train.checkpoints import save_checkpoint
from edgeclip.train.data import Batch, open_shards
from edgeclip.train.data.cached import load_cached
from edgeclip.train.data.loader import CachedLoader, Views
from edgeclip.train.data.text import Texts, open_tokenizer
from edgeclip.train.distributed import World
from edgeclip.train.models import Clip
from edgeclip.train.recipe import Recipe
from edgeclip.train.reinforce import open_store, reinforce
from edgeclip.train.store import Store
from edgeclip.train.teachers import open_teacher
from tests import cli, training

CPU = torch.device("cpu")
VARIANTS = 3


def teacher(folder: Path, *, broken: bool = False) -> Path:
    """A toy checkpoint with its tokenizer."""
    torch.manual_seed(3)
    clip = Clip(training.toy_config())
    if broken:
        torch.nn.init.constant_(clip.image.projection.weight, 1e38)
    return save_checkpoint(clip, folder / "teacher", training.preprocess(), folder / "tokenizer.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reinforce")
    training.tables(path)
    teacher(path)
    return path


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Recipe:
    return training.recipe(folder, augment={"brightness": 0.3, "contrast": 0.3, "saturation": 0.3})


@pytest.fixture(scope="module")
def store(folder: Path, recipe: Recipe) -> Store:
    return reinforce(folder / "teacher", recipe, folder / "store", variants=VARIANTS, seed=7)


def batches(folder: Path, recipe: Recipe, store: Store, count: int = 12) -> list[Batch]:
    """What a student is given over two epochs."""
    tokenizer = open_tokenizer((folder / "tokenizer.json").read_bytes(), training.toy_config().text, "tokenizer.json")
    data = load_cached(open_shards(recipe.data.sources, recipe.data.root), recipe.data.size, max_bad=0.0)
    loader = CachedLoader(data, Views(recipe, Texts(tokenizer), [store]))
    return list(itertools.islice(loader.batches(0), count))


def difference(stored: Tensor, computed: Tensor) -> float:
    return float((stored - computed).abs().max())


def test_every_sample_is_stored(store: Store) -> None:
    assert (len(store), store.variants, store.dim, store.seed) == (96, VARIANTS, 8, 7)


def test_what_is_stored_is_what_the_teacher_says_of_the_student_s_views(
    folder: Path, recipe: Recipe, store: Store
) -> None:
    running = open_teacher(folder / "teacher", recipe, CPU)
    for batch in batches(folder, recipe, store):
        said, (stored,) = running(batch), batch.teachers
        assert difference(stored["image"], said.image) < 1e-3  # float16
        assert difference(stored["text"], said.text) < 1e-3


def test_another_view_would_be_told_apart(folder: Path, recipe: Recipe, store: Store) -> None:
    running = open_teacher(folder / "teacher", recipe, CPU)
    (batch,) = batches(folder, recipe, store, count=1)
    turned = Batch(**{**vars(batch), "views": batch.views.roll(1, 0)})
    assert difference(batch.teachers[0]["image"], running(turned).image) > 0.01


def test_a_student_sees_every_variant(folder: Path, recipe: Recipe, store: Store) -> None:
    seen = {tuple(view) for batch in batches(folder, recipe, store, 60) for view in batch.views.tolist()}
    assert 0.9 * 96 * VARIANTS < len(seen) <= 96 * VARIANTS


def test_the_scale_is_the_teacher_s(store: Store) -> None:
    assert store.scale == pytest.approx(1 / 0.07)


def test_the_store_opens_again(folder: Path, recipe: Recipe, store: Store) -> None:
    again = open_store(folder / "store", fingerprint=recipe.view_digest)
    keys = ["colours-000/0-0000", "colours-001/1-0004"]
    found, expected = (one.lookup(keys, np.array([0, 2])) for one in (again, store))
    assert torch.equal(found["image"], expected["image"]) and torch.equal(found["text"], expected["text"])


def test_a_sample_that_is_not_stored_is_named(store: Store) -> None:
    with pytest.raises(DataError, match=r"colours-9/1: no embeddings of this sample are stored .*all the data"):
        store.lookup(["colours-000/0-0000", "colours-9/1"], np.array([0, 0]))


@pytest.mark.parametrize("change", [{"augment": {"flip": 0.1}}, {"data__templates": ["one {}"]}, {"data__size": 24}])
def test_a_recipe_with_other_views_is_refused(folder: Path, store: Store, change: dict[str, Any]) -> None:
    other = training.recipe(folder, **change)
    with pytest.raises(UsageError, match=r"store: its views are not this recipe's \(keep \[augment\]"):
        open_store(folder / "store", fingerprint=other.view_digest)


def test_an_interrupted_call_goes_on(folder: Path, recipe: Recipe, tmp_path: Path) -> None:
    def interrupted(shard: str, count: int) -> None:
        if shard.endswith("001"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reinforce(folder / "teacher", recipe, tmp_path / "s", variants=2, progress=interrupted)
    (first,) = (tmp_path / "s").glob("*.safetensors")
    written = first.stat().st_mtime_ns
    assert len(reinforce(folder / "teacher", recipe, tmp_path / "s", variants=2)) == 96
    assert first.stat().st_mtime_ns == written


def test_processes_share_the_shards(folder: Path, recipe: Recipe, tmp_path: Path) -> None:
    sizes = [
        len(reinforce(folder / "teacher", recipe, tmp_path / "s", variants=1, world=World(rank, 2, CPU)))
        for rank in (0, 1)
    ]
    assert sizes == [48, 96]


def test_another_seed_does_not_mix_in(folder: Path, recipe: Recipe, store: Store) -> None:
    with pytest.raises(UsageError, match=r"holds a store of another seed, variants \(name another folder\)"):
        reinforce(folder / "teacher", recipe, folder / "store", variants=VARIANTS + 1, seed=8)


def test_a_folder_of_something_else_is_left_alone(folder: Path, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="not empty, and no store"):
        reinforce(folder / "teacher", recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_torn_file_is_named(folder: Path, recipe: Recipe, tmp_path: Path) -> None:
    reinforce(folder / "teacher", recipe, tmp_path / "s", variants=1)
    file = sorted((tmp_path / "s").glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"colours-000-\w+\.safetensors: damaged: .*delete it and run"):
        open_store(tmp_path / "s", fingerprint=recipe.view_digest)


def test_no_store_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"store\.json: No such file .*edgeclip reinforce makes it"):
        open_store(tmp_path, fingerprint="")


def test_a_full_disk_leaves_no_half_file(
    folder: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="cannot be written: No space left on device"):
        reinforce(folder / "teacher", recipe, tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == []


def test_a_teacher_that_overflows_is_refused(tmp_path: Path) -> None:
    recipe = training.recipe(tmp_path)
    with pytest.raises(NonFiniteError, match="the teacher's embeddings hold NaN or infinity"):
        reinforce(teacher(tmp_path, broken=True), recipe, tmp_path / "s")


def test_from_the_command_line_to_a_distilled_student(tmp_path: Path) -> None:
    file = training.recipe_file(tmp_path)
    done = cli.edgeclip("reinforce", file, "--teacher", teacher(tmp_path), "-o", tmp_path / "s", "--json")
    assert done.returncode == 0, done.stderr
    document = cli.document(done)
    assert (document["samples"], document["variants"], document["dim"]) == (96, 4, 8)
    stored = f'distill.stored=["{tmp_path / "s"}"]'
    done = cli.edgeclip("distill", file, stored, "distill.weights.affinity=1.0", "loop.steps=3", "--json")
    assert done.returncode == 0, done.stderr
    assert cli.document(done)["last"]["affinity"] > 0
