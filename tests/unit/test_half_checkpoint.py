"""A checkpoint in half the space."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgeclip.errors import CheckpointError
from edgeclip.train.checkpoints import build, half, read_checkpoint, save_checkpoint
from edgeclip.train.models.clip import Clip
from tests import tiny, training


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    clip = Clip(training.toy_config())
    return save_checkpoint(clip, tmp_path / "full", training.preprocess(), tiny.tokenizer_file(tmp_path))


def test_it_is_half_as_large_and_reads_back(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "half"
    assert half.main([str(saved), str(target)]) == 0 and capsys.readouterr().out == f"{target}\n"
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (target, saved)]
    assert sizes[0] < 0.6 * sizes[1]
    again, full = read_checkpoint(target), read_checkpoint(saved)
    assert again.tokenizer is not None and again.config == full.config
    for name, tensor in build(again).state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, full.state_dict[name], rtol=1e-3, atol=1e-6)


def test_what_half_precision_cannot_hold_is_named_and_nothing_is_written(saved: Path, tmp_path: Path) -> None:
    clip = build(read_checkpoint(saved))
    with torch.no_grad():
        clip.text.projection.weight[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"text\.projection\.weight: beyond what float16 holds"):
        save_checkpoint(clip, tmp_path / "half", training.preprocess(), half=True)
    assert not (tmp_path / "half").exists()


def test_wrong_arguments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert half.main([str(tmp_path)]) == 2
    assert "give a checkpoint and the folder to write" in capsys.readouterr().err
