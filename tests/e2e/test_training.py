"""`edgeclip train` and `distill` as they are used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeclip.bundle import Bundle
from tests import training
from tests.cli import document, edgeclip, patched, without


def test_a_recipe_trains_and_its_checkpoint_exports(tmp_path: Path) -> None:
    recipe = training.recipe_file(tmp_path, loop__steps=30)
    done = edgeclip("train", recipe, "--json")
    assert done.returncode == 0, done.stderr
    shown = document(done)
    assert shown["steps"] == 30
    lines = [json.loads(line) for line in (tmp_path / "runs/toy/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    bundle = tmp_path / "toy.edgeclip"
    exported = edgeclip("export", shown["checkpoint"], "--target", "onnx", "-o", bundle)
    assert exported.returncode == 0, exported.stderr
    assert len(Bundle.open(bundle).manifest.artifacts) == 2


def test_a_misspelt_key_exits_2_and_says_what_was_meant(tmp_path: Path) -> None:
    done = edgeclip("train", training.recipe_file(tmp_path), "loop.batchsize=8")
    assert done.returncode == 2
    assert "toy.toml [loop]: unknown key 'batchsize'" in done.stderr and "did you mean 'batch_size'?" in done.stderr


def test_distill_needs_the_table(tmp_path: Path) -> None:
    done = edgeclip("distill", training.recipe_file(tmp_path))
    assert done.returncode == 2 and "has no [distill] table" in done.stderr


@pytest.mark.parametrize("command", ["train", "distill"])
def test_help_needs_no_torch(command: str) -> None:
    done = patched(without("torch"), command, "--help")
    assert done.returncode == 0 and "KEY=VALUE" in done.stdout
