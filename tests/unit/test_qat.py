"""Training with rounding: what a run begins with, keeps, writes and refuses."""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeclip.errors import CheckpointError, UsageError
from edgeclip.quantize.fakequant import activation_quantizers, attach, detach, quantized_layers
from edgeclip.train import qat
from edgeclip.train.checkpoints import build, read_checkpoint, save_checkpoint
from edgeclip.train.checkpoints.half import halve
from edgeclip.train.loop import start
from edgeclip.train.models import Clip
from edgeclip.train.models.folding import fold_in_place
from edgeclip.train.recipe import Quantize
from tests import training
from tests.qat import CONFIG, LAYERS, STEM, recipe, trained


def test_a_run_begins_with_the_folded_model(tmp_path: Path) -> None:
    with start(recipe(tmp_path)) as run:
        plain = detach(copy.deepcopy(run.clip))
        pixels = torch.randn(4, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(plain.encode_image(pixels), trained().encode_image(pixels), rtol=1e-4, atol=1e-5)
        assert run.clip.config.folded and len(quantized_layers(run.clip)) == LAYERS


def test_ranges_of_activations_are_observed_before_the_first_step(tmp_path: Path) -> None:
    with start(recipe(tmp_path, "w8a8")) as run:
        scales = [float(one.log_scale.detach()) for one in activation_quantizers(run.clip).values()]
    assert len(scales) == LAYERS and np.isfinite(scales).all() and len(set(scales)) > 10


def test_the_teacher_is_the_model_before(tmp_path: Path) -> None:
    with start(recipe(tmp_path)) as run:
        assert run.parts.teachers is not None
        (teacher,) = run.parts.teachers.running
        expected = build(read_checkpoint(tmp_path / "before")).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in teacher.clip.state_dict().items())


def test_a_teacher_that_is_named_is_taken(tmp_path: Path) -> None:
    assert recipe(tmp_path, distill__teacher=["other"]).teachers == ("other",)


def test_kept_layers_have_no_scales(tmp_path: Path) -> None:
    with start(recipe(tmp_path, quantize__keep=[STEM, "text.projection"])) as run:
        scales = read_checkpoint(run.train()).scales
    assert scales is not None and len(scales.layers) == LAYERS - 2
    assert STEM not in scales.layers and "projection" not in scales.tower("text")


def test_scales_move_until_they_are_frozen(tmp_path: Path) -> None:
    seen: list[list[float]] = []
    with start(recipe(tmp_path, loop__steps=6, quantize__freeze_after=0.5)) as run:
        run.train(
            lambda step, values: seen.append(run.clip.get_parameter(f"{STEM}.weight_quantizer.log_scale").tolist())
        )
    moved = [one != other for one, other in pairwise(seen)]
    assert moved == [True, True, False, False, False]


@pytest.mark.parametrize("precision", ["w8a8", "w4a16"])
def test_the_checkpoint_carries_what_the_model_was_scored_with(tmp_path: Path, precision: str) -> None:
    with start(recipe(tmp_path, precision, loop__ema=0.5)) as run:
        read = read_checkpoint(run.train())
        trained_scales = qat.split(run.trained(), Quantize(precision=precision))[1]  # type: ignore[arg-type]
    assert read.scales is not None and read.scales.precision == precision and read.config.folded
    assert read.scales.to_bytes() == trained_scales.to_bytes()
    assert not [name for name in read.state_dict if "quantizer" in name]


def test_the_checkpoint_computes_what_was_trained(tmp_path: Path) -> None:
    pixels = torch.randn(4, 3, 16, 16)
    with start(recipe(tmp_path)) as run:
        read = read_checkpoint(run.train())
        with torch.no_grad():
            expected = run.trained().eval().encode_image(pixels)
            got = build(read).encode_image(pixels)
            unrounded = detach(copy.deepcopy(run.trained())).encode_image(pixels)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert (unrounded - expected).abs().max() > 1e-3, "rounding makes no difference"


@pytest.mark.parametrize("precision", ["w8a8", "w4a16"])
def test_a_run_that_goes_on_ends_as_one_that_was_never_interrupted(tmp_path: Path, precision: str) -> None:
    changes = {"loop__ema": 0.9, "quantize__freeze_after": 0.6}
    with start(recipe(tmp_path / "straight", precision, **changes)) as run:
        expected = read_checkpoint(run.train())
    again = recipe(tmp_path / "cut", precision, **changes)
    with start(again) as run, pytest.raises(KeyboardInterrupt):
        run.train(stop_at(3))
    with start(again, resume=True) as run:
        assert run.step == 2
        got = read_checkpoint(run.train())
    assert all(torch.equal(got.state_dict[name], value) for name, value in expected.state_dict.items())
    assert got.scales is not None and expected.scales is not None
    assert got.scales.to_bytes() == expected.scales.to_bytes()


def stop_at(last: int) -> Any:
    def on_step(step: int, values: Any) -> None:
        if step == last:
            raise KeyboardInterrupt

    return on_step


def test_a_checkpoint_with_scales_can_be_halved(tmp_path: Path) -> None:
    with start(recipe(tmp_path)) as run:
        source = run.train()
    read, half = read_checkpoint(source), read_checkpoint(halve(source, tmp_path / "half"))
    assert half.scales is not None and read.scales is not None
    assert half.scales.to_bytes() == read.scales.to_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "scales.safetensors: No such file or directory"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"), "not the scales that edgeclip.json describes"),
    ],
)
def test_scales_of_another_model_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    with start(recipe(tmp_path, loop__steps=1)) as run:
        folder = run.train()
    damage(folder / "scales.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_checkpoint(folder)


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    clip = fold_in_place(trained())
    clip.config = msgspec.structs.replace(CONFIG, folded=True)
    _, scales = qat.split(attach(clip, qat.scheme(Quantize(precision="w4a16"))), Quantize(precision="w4a16"))
    scales.layers["image.nothing"] = scales.layers.pop(STEM)
    save_checkpoint(
        qat.split(clip, Quantize(precision="w4a16"))[0], tmp_path / "c", training.preprocess(), scales=scales
    )
    with pytest.raises(CheckpointError, match="its scales do not fit image.nothing"):
        read_checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("quantize__precission", "w8a8", "toy.toml [quantize]: unknown key 'precission' (did you mean 'precision'?)"),
        ("quantize__precision", "w4a4", "Invalid enum value 'w4a4' - at `quantize.precision`"),
        ("quantize__freeze_after", 1.5, "Expected a number <= 1.0 - at `quantize.freeze_after`"),
        ("quantize__observe_batches", 0, "Expected an integer >= 1 - at `quantize.observe_batches`"),
        ("loop__recalibrate", 3, "[quantize] folds batch normalisation: nothing is left for `loop.recalibrate`"),
        ("model__init_from", "", "[quantize] fine-tunes a trained model: give `model.init_from`"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    changes = {"quantize__precision": "w8a8", "model__init_from": "x", key: value}
    with pytest.raises(UsageError, match=re.escape(message)):
        training.recipe(tmp_path, **changes)


def test_a_layer_that_cannot_be_kept_is_named(tmp_path: Path) -> None:
    message = "keep: no layer is named 'image.stem.conv' (did you mean 'image.stem.spatial.conv'?)"
    with (
        pytest.raises(UsageError, match=re.escape(message)),
        start(recipe(tmp_path, quantize__keep=["image.stem.conv"])),
    ):
        pass


def test_the_architecture_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    (tmp_path / "toy.json").write_bytes(msgspec.json.encode(training.toy_config()))
    with pytest.raises(UsageError, match="init_from is a toy, not a toy .set model.architecture"), start(made):
        pass


def test_plain_training_does_not_go_on_from_a_folded_model(tmp_path: Path) -> None:
    with start(recipe(tmp_path)) as run:
        folded = run.train()
    plain = training.recipe(tmp_path / "next", model__init_from=str(folded))
    (tmp_path / "next" / "toy.json").write_bytes(msgspec.json.encode(CONFIG))
    with pytest.raises(UsageError, match="its batch normalisation is folded away .only .quantize."), start(plain):
        pass


def test_training_with_rounding_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    with start(recipe(tmp_path)) as run:
        folded = run.train()
    changed = recipe(tmp_path / "next")
    model = msgspec.structs.replace(changed.model, init_from=str(folded))
    with start(msgspec.structs.replace(changed, model=model)) as run:
        first = run.train()
    assert read_checkpoint(first).scales is not None


def embeddings(clip: Clip, pixels: Tensor) -> Tensor:
    return F.normalize(clip.encode_image(pixels), dim=-1)


def pictures(count: int, rng: torch.Generator) -> Tensor:
    """Smooth ones in all colours: plain noise looks the same to a model."""
    return 1.5 * F.interpolate(torch.randn(count, 3, 4, 4, generator=rng), training.SIDE, mode="bilinear")


def test_training_with_rounding_wins_back_half_of_what_rounding_loses() -> None:
    """Of the cosine to the model before, on images that were not trained on."""
    teacher, student = trained().requires_grad_(False), qat.prepare(trained(), CONFIG, Quantize(precision="w4a16"))
    rng = torch.Generator().manual_seed(1)
    unseen = pictures(64, rng)

    def loss(pixels: Tensor) -> Tensor:
        return 1 - (embeddings(student, pixels) * embeddings(teacher, pixels)).sum(-1).mean()

    before = loss(unseen).item()
    optimizer = torch.optim.Adam(student.image.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=60)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(loss(pictures(32, rng)))
        optimizer.step()
        schedule.step()
    assert before > 0.01
    assert loss(unseen).item() < 0.5 * before
