"""`edgeclip train` and `distill` as they are used."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from edgeclip.bundle import Bundle
from tests import training
from tests.cli import TIME_LIMIT_S, document, edgeclip, environment, patched, without


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


def test_a_model_that_was_trained_knows_the_colours(tmp_path: Path) -> None:
    training.test_set(tmp_path / "sets" / "colours", count=80)
    recipe = training.recipe_file(tmp_path, loop__steps=60, evaluate__folder=str(tmp_path / "sets"), evaluate__every=30)
    done = edgeclip("train", recipe)
    assert done.returncode == 0, done.stderr
    assert "Evaluation" in done.stdout and "95 % interval" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "runs/toy/metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["colours/top1"] for line in lines if "colours/top1" in line}
    assert scores.keys() == {30, 60} and scores[60] > 0.9


def teacher(folder: Path) -> str:
    """A trained toy model."""
    done = edgeclip("train", training.recipe_file(folder, loop__steps=20, loop__micro_batch=8), "--json")
    assert done.returncode == 0, done.stderr
    return str(document(done)["checkpoint"])


def test_a_student_learns_from_a_teacher_that_runs(tmp_path: Path) -> None:
    taught = teacher(tmp_path / "teacher")
    weights = {"affinity": 1.0, "feature": 1.0, "interactive": 0.5}
    recipe = training.recipe_file(
        tmp_path / "student", loop__steps=30, distill__teacher=[taught], distill__weights=weights, loop__ema=0.5
    )
    done = edgeclip("distill", recipe)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "student/runs/toy/metrics.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    assert {"contrastive", *weights} <= first.keys()
    total = first["contrastive"] + sum(weight * first[name] for name, weight in weights.items())
    assert first["loss"] == pytest.approx(total, rel=1e-5)
    assert all(last[name] < first[name] for name in ("affinity", "feature"))


def test_two_processes_train_the_model_of_one(tmp_path: Path) -> None:
    alone, together = (training.recipe_file(tmp_path / name, augment__contrast=0.3) for name in ("alone", "together"))
    assert edgeclip("train", alone).returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, "-m", "edgeclip", "train", str(together), "--json"]
    ranks = [
        subprocess.Popen(
            command,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **where),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=TIME_LIMIT_S) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], printed
    assert json.loads(printed[0][0])["steps"] == 6 and printed[1][0] == ""
    one, two = (load_file(p.parent / "runs/toy/checkpoint/model.safetensors") for p in (alone, together))
    for name, value in one.items():
        if not name.endswith("key.bias"):  # no loss depends on it: its gradient is rounding, which Adam makes large
            assert float((two[name] - value).abs().max()) < 1e-4, name


def test_the_smoke_recipe_goes_from_real_shards_to_a_bundle(tmp_path: Path, data_dir: Path) -> None:
    done = edgeclip(
        "train",
        "smoke",
        "data.limit=128",
        "loop.batch_size=64",
        f"output={tmp_path}",
        f"evaluate.folder={data_dir / 'eval'}",
        "evaluate.sets=['wds_flickr8k', 'wds_pacs_photo']",
        "evaluate.limit=50",
        "--json",
        env=environment(EDGECLIP_DATA=str(data_dir)),
    )
    assert done.returncode == 0, done.stderr
    shown = document(done)
    assert [score["metric"] for score in shown["scores"]][-1] == "top1" and len(shown["scores"]) == 7
    exported = edgeclip("export", shown["checkpoint"], "--target", "onnx", "-o", tmp_path / "smoke.edgeclip")
    assert exported.returncode == 0, exported.stderr
