"""Runs that differ in their seed make one row, with the interval that the seeds give."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from edgeclip.scores import score
from edgeclip.train import summary
from edgeclip.train.loop import start
from edgeclip.train.summary import gains, read_run, rows, spread, table
from tests import training


def run(folder: Path, name: str, seed: int, top1: float, *, lr: float = 1e-3) -> Path:
    """What a finished run leaves."""
    path = folder / name
    path.mkdir()
    recipe = {"name": name, "seed": seed, "output": str(folder), "optimizer": {"lr": lr}, "loop": {"batch_size": 256}}
    (path / "recipe.json").write_text(json.dumps(recipe))
    (path / "scores.json").write_bytes(msgspec.json.encode([score("wds_x", "top1", top1, 1000)]))
    lines = [{"step": step, "loss": 1.0, "step_s": 0.5} for step in (10, 20)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 20, "x": 1}]))
    return path


def test_the_interval_of_three_seeds_is_students() -> None:
    # mean 2, standard deviation 1, t(2) = 4.303: 4.303 / sqrt(3) = 2.484
    assert spread([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.484, 4.484), abs=1e-3)


def test_seeds_make_one_row_and_other_recipes_another(tmp_path: Path) -> None:
    student = [run(tmp_path, f"student-{i}", i, value) for i, value in enumerate((0.30, 0.32, 0.34))]
    control = [run(tmp_path, f"control-{i}", i, value, lr=2e-3) for i, value in enumerate((0.20, 0.23, 0.23))]
    single = run(tmp_path, "teacher", 0, 0.4, lr=3e-3)
    found = rows(read_run(path) for path in [*student, *control, single])
    assert [(row.name, len(row.runs)) for row in found] == [("student", 3), ("control", 3), ("teacher", 1)]
    lines = table(found).splitlines()
    assert lines[:3] == [
        "| run | seeds | steps | images | minutes |",
        "| --- | --- | --- | --- | --- |",
        "| student | 3 | 20 | 5,120 | 0.2 |",
    ]
    assert lines[6] == "| run | x top1 |" and lines[8] == "| student | 32.0 [27.0, 37.0] |"
    assert lines[10] == "| teacher | 40.0 [37.0, 43.1] |"
    assert "| student − control | 10.0 [7.5, 12.5] |" in gains(found)  # gaps 10, 9, 11: 4.303 / sqrt(3)


def test_what_one_run_did_not_measure_is_said(tmp_path: Path) -> None:
    one, two = (run(tmp_path, name, 0, 0.3, lr=lr) for name, lr in (("a", 1e-3), ("b", 2e-3)))
    (two / "scores.json").write_bytes(msgspec.json.encode([score("wds_y", "top1", 0.5, 10)]))
    assert "not measured" in table(rows([read_run(one), read_run(two)]))


def test_a_run_that_is_not_finished_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summary.main([str(tmp_path)]) == 4
    assert "not a finished run" in capsys.readouterr().err


def test_training_leaves_its_recipe(tmp_path: Path) -> None:
    with start(training.recipe(tmp_path)) as begun:
        begun.train()
        kept = json.loads((begun.folder / "recipe.json").read_bytes())
    assert kept["optimizer"]["lr"] == 3e-3 and kept["name"] == "toy"
