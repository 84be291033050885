"""Embedding of test sets in PyTorch, on the way to scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeclip.errors import UsageError
from edgeclip.train.checkpoints import save_checkpoint
from edgeclip.train.data.text import Texts, open_tokenizer
from edgeclip.train.evaluate import Evaluator, embed_texts, evaluate_checkpoint, evaluating
from edgeclip.train.models.clip import Clip
from tests import tiny, training


def toy(folder: Path) -> tuple[Clip, Texts]:
    torch.manual_seed(0)
    config = training.toy_config()
    return Clip(config), Texts(open_tokenizer(tiny.tokenizer_file(folder).read_bytes(), config.text, "tokenizer.json"))


def test_evaluation_ends_in_the_mode_it_began_in(tmp_path: Path) -> None:
    clip, texts = toy(tmp_path)
    with evaluating(clip):
        assert not clip.training
        embedded = embed_texts(clip, texts, ["a dog", "the dog"])
    assert clip.training and not embedded.requires_grad
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(2))


def test_an_unknown_set_lists_those_that_are_there(tmp_path: Path) -> None:
    training.test_set(tmp_path / "sets" / "colours")
    clip, texts = toy(tmp_path)
    with pytest.raises(UsageError, match=r"no test set 'colors' in .*known: colours"):
        Evaluator(tmp_path / "sets", training.preprocess(), texts, ("colors",))(clip)


def test_a_checkpoint_is_scored(tmp_path: Path) -> None:
    training.test_set(tmp_path / "sets" / "colours")
    clip, _ = toy(tmp_path)
    save_checkpoint(clip, tmp_path / "model", training.preprocess(), tmp_path / "tokenizer.json")
    (found,) = evaluate_checkpoint(tmp_path / "model", tmp_path / "sets")
    assert (found.data, found.metric, found.n) == ("colours", "top1", 12)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0 and math.isfinite(found.value)


def test_a_retrieval_set_is_scored_both_ways(tmp_path: Path) -> None:
    folder = training.test_set(tmp_path / "sets" / "captions", count=8)
    members = {f"{i}.jpg": training.picture((30 * i, 9, 9), np.random.default_rng(i)) for i in range(4)}
    members |= {f"{i}.txt": f"the {i}\nand {i}\n".encode() for i in range(4)}
    training.shard(folder / "test" / "0.tar", dict(sorted(members.items())))
    (folder / "dataset_type.txt").write_text("retrieval")
    clip, texts = toy(tmp_path)
    found = Evaluator(tmp_path / "sets", training.preprocess(), texts)(clip)
    ways = ("image_to_text", "text_to_image")
    assert [s.metric for s in found] == [f"{way}_r{rank}" for way in ways for rank in (1, 5, 10)]
    assert found[2].value == 1.0 and found[2].n == 4
