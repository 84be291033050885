"""The contrastive loss against cases that were computed by hand, and its parts against the whole."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeclip.train.losses.contrastive import contrastive, same


def embeddings(count: int = 6, dim: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return F.normalize(torch.randn(count, dim), dim=-1), F.normalize(torch.randn(count, dim), dim=-1)


def test_two_orthogonal_pairs_by_hand() -> None:
    eye = torch.eye(2)
    # logits [[2, 0], [0, 2]]: each row's loss is -log(e^2 / (e^2 + 1))
    expected = math.log(1 + math.exp(-2))
    assert contrastive(eye, eye, torch.tensor(2.0)).item() == pytest.approx(expected, abs=1e-6)


def test_it_is_pytorchs_cross_entropy_both_ways() -> None:
    image, text = embeddings()
    logits = 10.0 * image @ text.T
    target = torch.arange(6)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive(image, text, torch.tensor(10.0)), expected)


def test_positives_share_the_target_by_hand() -> None:
    image = text = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # All logits are equal; both are targets with 1/2: the loss is log 2, its least for such embeddings.
    loss = contrastive(image, text, torch.tensor(5.0), positives=torch.ones(2, 2, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_positives_of_the_diagonal_alone_change_nothing() -> None:
    image, text = embeddings()
    scale = torch.tensor(7.0)
    positives = same(torch.arange(6))
    torch.testing.assert_close(contrastive(image, text, scale, positives=positives), contrastive(image, text, scale))


def test_pairs_of_the_same_are_not_pushed_apart() -> None:
    keys = torch.tensor([3, 3, 9])
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    text = image.detach().clone()
    with_keys = contrastive(image, text, torch.tensor(10.0), positives=same(keys))
    assert with_keys < contrastive(image, text, torch.tensor(10.0)) + 1e-6
    (gradient,) = torch.autograd.grad(with_keys, image)
    torch.testing.assert_close(gradient[0], gradient[1])


def test_the_rows_of_all_ranks_sum_up_to_the_whole() -> None:
    image, text = embeddings()
    scale, positives = torch.tensor(9.0), same(torch.tensor([1, 2, 1, 3, 4, 2]))
    parts = [contrastive(image, text, scale, positives=positives, rows=slice(i, i + 2)) for i in (0, 2, 4)]
    whole = contrastive(image, text, scale, positives=positives)
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_sources_that_are_not_compared_are_as_if_they_were_alone() -> None:
    image, text = embeddings(10)
    scale, sources = torch.tensor(9.0), torch.tensor([0, 1, 0, 1, 1, 0, 1, 1, 0, 1])
    positives = same(torch.tensor([1, 1, 2, 3, 3, 2, 4, 5, 6, 5]))
    together = contrastive(image, text, scale, positives=positives, compared=same(sources))
    alone = [
        len(rows) * contrastive(image[rows], text[rows], scale, positives=positives[rows][:, rows])
        for rows in ((sources == number).nonzero().squeeze(1) for number in (0, 1))
    ]
    torch.testing.assert_close(together, torch.stack(alone).sum() / 10)
