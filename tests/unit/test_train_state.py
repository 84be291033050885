"""States: whole or not at all, the newest whole one is found, and everything is put back."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeclip.errors import CheckpointError, ResourceError
from edgeclip.train.state import Facts, collect, newest_state, restore, write_state


def write(folder: Path, *steps: int, keep: int = 5) -> None:
    for step in steps:
        write_state(folder, Facts(step=step, recipe={"name": "x"}), {"a": torch.full((3,), float(step))}, keep=keep)


def test_the_newest_is_found_and_old_ones_go(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4, keep=2)
    state = newest_state(tmp_path)
    assert state is not None and state.facts.step == 4 and state.tensors["a"].tolist() == [4.0] * 3
    assert len(list(tmp_path.iterdir())) == 4


def test_there_may_be_none(tmp_path: Path) -> None:
    assert newest_state(tmp_path / "nothing") is None


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "flipped":
        data[-1] ^= 1
    elif kind == "cut":
        del data[-1:]
    path.write_bytes(bytes(data))
    if kind == "gone":
        path.unlink()


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("kind", ["flipped", "cut", "gone"])
def test_a_torn_one_is_passed_over(tmp_path: Path, suffix: str, kind: str) -> None:
    write(tmp_path, 1, 2)
    damage(tmp_path / f"step-00000002.{suffix}", kind)
    state = newest_state(tmp_path)
    assert state is not None and state.facts.step == 1


def test_nothing_but_torn_ones_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, 1)
    damage(tmp_path / "step-00000001.safetensors", "cut")
    with pytest.raises(CheckpointError, match="none of 1 states is whole"):
        newest_state(tmp_path)


@pytest.mark.parametrize("broken", ["step-00000002.safetensors", "step-00000002.json"])
def test_a_full_disk_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    write(tmp_path, 1)
    real_open = Path.open

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        return Full(path, "w") if path.name == f".{broken}.tmp" else real_open(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(ResourceError, match=r"the disk or a quota is full; the last whole state is step-00000001"):
        write(tmp_path, 2)
    state = newest_state(tmp_path)
    assert state is not None and state.facts.step == 1
    assert not list(tmp_path.glob(".*"))


def model() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    return net, torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        net(torch.randn(2, 3, 6, 6)).square().sum().backward()
        optimizer.step()


def test_a_restored_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    net, optimizer = model()
    steps(net, optimizer, 2)
    write_state(tmp_path, Facts(step=2, recipe={}), collect({"net": net}, optimizer), keep=1)
    steps(net, optimizer, 3)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    again, other = model()
    state = newest_state(tmp_path)
    assert state is not None
    restore(state, {"net": again}, other)
    steps(again, other, 3)
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
