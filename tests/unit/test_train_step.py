"""A step's gradients do not depend on how its batch is cut: into micro-batches, or over processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeclip.train.distributed import World
from edgeclip.train.models.clip import Clip
from edgeclip.train.step import read_once, statistics_kept
from tests import training
from tests.cli import environment
from tests.unit.train_rank import BATCH, WEIGHTS, gradients

ALONE = World(0, 1, torch.device("cpu"))
ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT_S = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("step")
    training.tables(path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Tensor]:
    """What one process makes of the whole batch at once."""
    return gradients(folder, ALONE)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal to 1e-5 of the largest element: sums in another order differ by that much."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = float((found[name] - value).abs().max())
        assert difference <= 1e-5 * max(1.0, float(value.abs().max())), f"{name} differs by {difference}"


def test_every_loss_and_every_parameter_takes_part(whole: dict[str, Tensor]) -> None:
    assert {name for name in whole if name.startswith("loss.")} == {
        f"loss.{name}" for name in ("contrastive", "loss", *WEIGHTS)
    }
    assert all(value.abs().sum() > 0 for name, value in whole.items() if ".key.bias" not in name)
    assert "logit_scale" in whole and any(name.startswith("distiller.") for name in whole)


@pytest.mark.parametrize("micro_batch", [12, 8, 7, 1])
def test_micro_batches_give_the_gradients_of_the_whole_batch(
    folder: Path, whole: dict[str, Tensor], micro_batch: int
) -> None:
    assert BATCH % 7
    assert_same(gradients(folder, ALONE, micro_batch), whole)


def test_sources_that_are_not_contrasted_change_the_gradients(folder: Path, whole: dict[str, Tensor]) -> None:
    mixed = gradients(folder, ALONE, contrast="batch")
    assert mixed["loss.contrastive"] > whole["loss.contrastive"] + 0.1


def test_two_processes_give_the_gradients_of_one_with_the_whole_batch(folder: Path, whole: dict[str, Tensor]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "USE_LIBUV": "0"}
    command = [sys.executable, "-m", "tests.unit.train_rank", str(folder)]
    ranks = [
        subprocess.Popen(
            command, env=environment(RANK=str(rank), **shared), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=TIME_LIMIT_S)
        assert rank.returncode == 0, errors
    for rank in range(2):
        assert_same(load_file(folder / f"rank-{rank}.safetensors"), whole)


def test_a_pass_that_comes_again_leaves_running_statistics_alone() -> None:
    layer = nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    with statistics_kept(layer):
        first = layer(x)
    assert layer.num_batches_tracked == 0 and torch.equal(layer.running_mean, torch.zeros(3))
    torch.testing.assert_close(layer(x), first)
    assert layer.num_batches_tracked == 1 and not torch.equal(layer.running_mean, torch.zeros(3))


def test_each_distinct_text_is_encoded_once_and_no_longer_than_it_is() -> None:
    torch.manual_seed(0)
    clip = Clip(training.toy_config())
    shapes: list[tuple[int, ...]] = []
    clip.text.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    ids = torch.full((6, 16), 524, dtype=torch.int32)  # all but the ends of texts are 524, the highest id
    for row, length in enumerate((3, 12, 7, 3, 8, 15)):
        ids[row, :length] = torch.arange(length, dtype=torch.int32) + 30 * length
    weights = torch.randn(6, 8)
    found, plain = read_once(clip, ids), clip.encode_text(ids)
    torch.testing.assert_close(found, plain)
    assert shapes == [(2, 8), (3, 16), (6, 16)]
    parameters = [p for p in clip.text.parameters() if p is not clip.text.position_embedding]
    ours = torch.autograd.grad((found * weights).sum(), parameters)
    theirs = torch.autograd.grad((plain * weights).sum(), parameters)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
