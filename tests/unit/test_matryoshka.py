"""Embeddings whose first coordinates are embeddings of their own: losses, recipes, checkpoints, bundles."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeclip.errors import CheckpointError, UsageError
from edgeclip.export.source import open_source
from edgeclip.train.checkpoints import read_checkpoint, save_checkpoint
from edgeclip.train.checkpoints.half import halve
from edgeclip.train.distill import Distiller, TeacherBatch
from edgeclip.train.loop import start
from edgeclip.train.losses.contrastive import contrastive
from edgeclip.train.losses.matryoshka import nested
from edgeclip.train.models import Clip
from edgeclip.train.objective import Objective
from tests import tiny, training

SCALE = torch.tensor(10.0)
KEYS = torch.arange(6)


def unit(seed: int) -> Tensor:
    return F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def first(rows: Tensor, width: int) -> Tensor:
    return F.normalize(rows[:, :width], dim=-1)


def objective(folder: Path, **changes: Any) -> Objective:
    return Objective(training.recipe(folder, **changes))


def losses(made: Objective) -> dict[str, Tensor]:
    found: dict[str, Tensor] = made(unit(1), unit(2), SCALE, KEYS, KEYS, [], slice(0, 6))
    return found


def test_parts_are_the_first_coordinates_normalised_again() -> None:
    whole, small, large = nested(unit(1), [2, 5])
    assert torch.equal(whole, unit(1)) and (small.shape, large.shape) == ((6, 2), (6, 5))
    torch.testing.assert_close(small.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(small * unit(1)[:, :2].norm(dim=1, keepdim=True), unit(1)[:, :2])


def test_the_loss_is_the_mean_over_widths(tmp_path: Path) -> None:
    parts = [contrastive(first(unit(1), width), first(unit(2), width), SCALE) for width in (2, 4, 8)]
    found = losses(objective(tmp_path, model__matryoshka=[2, 4]))
    torch.testing.assert_close(found["contrastive"], torch.stack(parts).mean())
    assert not torch.allclose(found["contrastive"], losses(objective(tmp_path / "plain"))["contrastive"])


def test_cosines_are_taught_at_every_width_and_features_as_a_whole() -> None:
    clip = Clip(training.toy_config())
    teacher = TeacherBatch(unit(3), unit(4), SCALE)
    weights = {"affinity": 1.0, "relational": 1.0, "feature": 1.0, "cosine": 1.0}
    of_all = Distiller(clip, [8], weights, widths=[2, 4]).loss(unit(1), unit(2), SCALE, [teacher])
    whole = Distiller(clip, [8], weights).loss(unit(1), unit(2), SCALE, [teacher])
    alone = Distiller(clip, [8], {"affinity": 1.0, "relational": 1.0})
    at_each = [alone.loss(first(unit(1), width), first(unit(2), width), SCALE, [teacher]) for width in (2, 4, 8)]
    for name in ("feature", "cosine"):
        torch.testing.assert_close(of_all[name], whole[name])
    for name in ("affinity", "relational"):
        torch.testing.assert_close(of_all[name], torch.stack([one[name] for one in at_each]).mean())


def test_the_first_coordinates_of_a_teacher_that_is_equal_still_have_to_learn() -> None:
    """The teacher is not cut: a student's first coordinates learn from all of a teacher's."""
    teacher = TeacherBatch(unit(1), unit(2), SCALE)
    distiller = Distiller(Clip(training.toy_config()), [8], {"affinity": 1.0}, widths=[2])
    assert distiller.loss(unit(1), unit(2), SCALE, [teacher])["affinity"] > 0.01


def test_a_run_trains_the_first_coordinates(tmp_path: Path) -> None:
    """More than training without it does, on pictures that were trained on."""

    def loss(**changes: Any) -> float:
        made = training.recipe(tmp_path / str(len(changes)), loop__steps=150, **changes)
        with start(made) as run:
            batch = next(iter(run.parts.loader.batches(0)))
            run.train()
            with torch.no_grad():
                image, text = run._compute._encode(batch, training.SIDE)
        positives = batch.caption_keys[:, None] == batch.caption_keys[None, :]
        return float(contrastive(first(image, 2), first(text, 2), SCALE, positives=positives))

    assert loss(model__matryoshka=[2, 4]) < 0.9 * loss()


def trained(folder: Path) -> Path:
    with start(training.recipe(folder, loop__steps=1, model__matryoshka=[2, 4])) as run:
        return run.train()


def test_widths_go_from_the_recipe_into_the_checkpoint_and_the_bundle(tmp_path: Path) -> None:
    saved = trained(tmp_path)
    assert read_checkpoint(saved).matryoshka == (2, 4)
    assert open_source(saved).model.matryoshka == (2, 4)
    assert read_checkpoint(halve(saved, tmp_path / "half")).matryoshka == (2, 4)


def test_a_checkpoint_of_before_has_none(tmp_path: Path) -> None:
    saved = trained(tmp_path)
    file = saved / "edgeclip.json"
    description = json.loads(file.read_bytes())
    del description["matryoshka"]
    file.write_text(json.dumps(description))
    assert read_checkpoint(saved).matryoshka == () == open_source(saved).model.matryoshka


@pytest.mark.parametrize("widths", [[4, 2], [2, 2], [8], [2, 9], [0]])
def test_a_checkpoint_with_widths_that_it_cannot_have_is_refused(tmp_path: Path, widths: list[int]) -> None:
    saved = save_checkpoint(
        Clip(training.toy_config()), tmp_path / "c", training.preprocess(), tiny.tokenizer_file(tmp_path)
    )
    file = saved / "edgeclip.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), "matryoshka": widths}))
    with pytest.raises(CheckpointError, match=re.escape(f"matryoshka must ascend below 8, got {widths}")):
        read_checkpoint(saved)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([4, 2], "matryoshka must ascend, got [4, 2]"),
        ([2, 2], "matryoshka must ascend, got [2, 2]"),
        ([0], "Expected an integer >= 1 - at `model.matryoshka[0]`"),
    ],
)
def test_a_recipe_with_widths_that_make_no_sense_is_refused(tmp_path: Path, widths: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        training.recipe(tmp_path, model__matryoshka=widths)


def test_more_coordinates_than_there_are_is_refused(tmp_path: Path) -> None:
    made = training.recipe(tmp_path, model__matryoshka=[4, 8])
    with (
        pytest.raises(UsageError, match=r"model\.matryoshka: 8 of the 8 coordinates of toy .all together"),
        start(made),
    ):
        pass


def test_a_run_does_not_go_on_with_other_widths(tmp_path: Path) -> None:
    trained(tmp_path)
    other = training.recipe(tmp_path, loop__steps=1, model__matryoshka=[2])
    with (
        pytest.raises(UsageError, match=r"began with model\.matryoshka = \[2, 4\], not \[2\]"),
        start(other, resume=True),
    ):
        pass
