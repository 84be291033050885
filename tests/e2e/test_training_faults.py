"""Training that is killed, runs out of disk, or diverges: what is left, and how it goes on."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests import training
from tests.cli import edgeclip, patched


def weights(folder: Path) -> Path:
    return folder / "runs" / "toy" / "checkpoint" / "model.safetensors"


def steps_logged(folder: Path) -> list[int]:
    lines = (folder / "runs" / "toy" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    done = edgeclip("train", recipe(folder))
    assert done.returncode == 0, done.stderr
    return folder


def recipe(folder: Path) -> Path:
    """Eight steps over more than an epoch, with averaged weights and colour jitter."""
    return training.recipe_file(folder, loop__steps=8, loop__ema=0.9, augment__brightness=0.4)


def assert_resumes(folder: Path, straight: Path) -> None:
    done = edgeclip("train", folder / "toy.toml", "--resume")
    assert done.returncode == 0, done.stderr
    expected = load_file(weights(straight))
    for name, value in load_file(weights(folder)).items():
        assert float((value - expected[name]).abs().max()) <= 1e-6, name
    assert steps_logged(folder) == list(range(1, 9))


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, straight: Path) -> None:
    killed = patched(training.at_step(5, "os.kill(os.getpid(), signal.SIGKILL)"), "train", recipe(tmp_path))
    assert killed.returncode == -signal.SIGKILL
    assert not weights(tmp_path).exists()
    assert_resumes(tmp_path, straight)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_FSIZE")
def test_a_full_disk_exits_6_and_the_last_state_survives(tmp_path: Path, straight: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))"
    full = patched(training.at_step(3, limit), "train", recipe(tmp_path))
    assert full.returncode == 6, full.stderr
    assert "the disk or a quota is full; the last whole state is step-00000002" in full.stderr
    assert_resumes(tmp_path, straight)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_FSIZE")
def test_a_disk_that_is_full_at_the_end_leaves_no_half_checkpoint(tmp_path: Path, straight: Path) -> None:
    code = """
import resource
from edgeclip.train import loop
save = loop.save_checkpoint
def full(*args, **options):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
    return save(*args, **options)
loop.save_checkpoint = full
"""
    done = patched(code, "train", recipe(tmp_path))
    assert done.returncode == 6, done.stderr
    assert "checkpoint: cannot be written: " in done.stderr and not weights(tmp_path).parent.exists()
    assert_resumes(tmp_path, straight)


def test_a_loss_that_is_no_number_exits_1_and_keeps_the_last_state(tmp_path: Path) -> None:
    fault = "run.clip.text.projection.weight.data.fill_(float('nan'))"
    done = patched(training.at_step(4, fault), "train", recipe(tmp_path))
    assert done.returncode == 1
    assert "step 5: the loss is nan" in done.stderr and "states are intact" in done.stderr
    assert sorted(os.listdir(tmp_path / "runs/toy/states"))[-1] == "step-00000004.safetensors"  # noqa: PTH208
    assert not weights(tmp_path).exists()


def test_a_run_is_not_begun_over_another(straight: Path) -> None:
    done = edgeclip("train", straight / "toy.toml")
    assert done.returncode == 2 and "a run is there already" in done.stderr and "--resume" in done.stderr


def test_a_run_is_not_resumed_with_another_recipe(straight: Path) -> None:
    done = edgeclip("train", straight / "toy.toml", "--resume", "optimizer.lr=0.5")
    assert done.returncode == 2 and "began with optimizer.lr = 0.003, not 0.5" in done.stderr


def test_resuming_a_finished_run_changes_nothing(straight: Path) -> None:
    before = weights(straight).stat().st_mtime_ns
    done = edgeclip("train", straight / "toy.toml", "--resume", "loop.log_every=5")
    assert done.returncode == 0, done.stderr
    assert weights(straight).stat().st_mtime_ns == before
