"""Distillation losses: their values on cases that can be computed by hand, their minima, and the distiller."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeclip.errors import UsageError
from edgeclip.train.distill import TERMS, Distiller, TeacherBatch
from edgeclip.train.losses import distillation as losses
from edgeclip.train.losses.contrastive import contrastive
from edgeclip.train.models import Clip, ClipConfig, TextConfig, VitConfig

ONE = torch.tensor(1.0)
EYE = torch.eye(2)
SWAPPED = torch.tensor([[0.0, 1.0], [1.0, 0.0]])


def unit(rows: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def student(width: int = 8) -> Clip:
    text = TextConfig(width=16, layers=1, heads=1, context_length=4, vocab_size=9, mlp_width=16, activation="gelu")
    image = VitConfig(width=16, layers=1, heads=1, patch=8, mlp_width=16, activation="gelu")
    return Clip(ClipConfig(name="tiny", embed_dim=width, image_size=8, image=image, text=text))


def teacher(width: int = 8, seed: int = 5, scale: float = 20.0) -> TeacherBatch:
    return TeacherBatch(unit(6, width, seed), unit(6, width, seed + 1), torch.tensor(scale))


def on_two(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, TeacherBatch], Tensor]:
    return lambda image, t: loss(image, t.image)


LOSSES: dict[str, Callable[[Tensor, TeacherBatch], Tensor]] = {
    "feature_l2": on_two(losses.feature_l2),
    "feature_cosine": on_two(losses.feature_cosine),
    "relational": on_two(losses.relational),
    "affinity": lambda image, t: losses.affinity(image, t.text, t.image, t.text, t.scale, t.scale),
    "ensemble": lambda image, t: losses.ensemble(image, t.text, t.scale, [t, t]),
    "soft_targets": lambda image, t: losses.soft_targets(9 * image @ t.text.T, 9 * t.image @ t.text.T, 2.0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_zero_and_smallest_where_student_equals_teacher(name: str) -> None:
    t = teacher()
    image = t.image.clone().requires_grad_()
    value = LOSSES[name](image, t)
    torch.autograd.backward(value)
    assert value.item() == pytest.approx(0.0, abs=1e-5)
    assert image.grad is not None and image.grad.abs().max() < 1e-5


@pytest.mark.parametrize("name", LOSSES)
def test_positive_elsewhere(name: str) -> None:
    assert LOSSES[name](unit(6, 8, 11), teacher()).item() > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_gets_no_gradient(name: str) -> None:
    t = TeacherBatch(*(tensor.requires_grad_() for tensor in teacher()))
    torch.autograd.backward(LOSSES[name](unit(6, 8, 11).requires_grad_(), t))
    assert t.image.grad is None


def test_soft_targets_of_two_by_two() -> None:
    """Teacher [½, ½] in each row and column, student [¾, ¼]: KL = ½ log(½/¾) + ½ log(½/¼) = ½ log(4/3)."""
    logits = math.log(3) * EYE
    assert losses.soft_targets(logits, torch.zeros(2, 2)).item() == pytest.approx(0.5 * math.log(4 / 3))


def test_temperature_softens_both_and_scales_by_its_square() -> None:
    logits = 4 * math.log(3) * EYE
    expected = 16 * 0.5 * math.log(4 / 3)
    assert losses.soft_targets(logits, torch.zeros(2, 2), 4.0).item() == pytest.approx(expected)


def test_soft_targets_look_at_columns_too() -> None:
    """Rows agree (softmax ignores what a row has in common), columns do not."""
    logits = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert losses.soft_targets(logits, torch.zeros(2, 2)).item() > 0.05


def test_affinity_uses_each_model_s_own_scale() -> None:
    """Student [¾, ¼] at scale log 3 on the identity, teacher [9/10, 1/10] at scale log 9."""
    value = losses.affinity(EYE, EYE, EYE, EYE, torch.tensor(3.0).log(), torch.tensor(9.0).log())
    expected = 0.9 * math.log(0.9 / 0.75) + 0.1 * math.log(0.1 / 0.25)
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_affinity_needs_no_equal_widths() -> None:
    t = teacher(width=5)
    assert losses.affinity(unit(6, 8, 1), unit(6, 8, 2), t.image, t.text, t.scale, t.scale).item() > 0


def test_ensemble_is_the_mean_over_teachers() -> None:
    image, text, teachers = unit(6, 8, 1), unit(6, 8, 2), [teacher(scale=5.0), teacher(width=3, seed=9, scale=50.0)]
    single = [losses.affinity(image, text, t.image, t.text, 10 * ONE, t.scale) for t in teachers]
    value = losses.ensemble(image, text, 10 * ONE, teachers)
    torch.testing.assert_close(value, (single[0] + single[1]) / 2)


def test_features_by_hand() -> None:
    """Orthogonal unit vectors: squared distance 2, cosine 0."""
    assert losses.feature_l2(EYE, SWAPPED).item() == 2.0
    assert losses.feature_cosine(EYE, 5 * SWAPPED).item() == 1.0


def test_relations_by_hand() -> None:
    """The student's two rows are orthogonal, the teacher's equal: (0 - 1)² off the diagonal."""
    assert losses.relational(EYE, torch.tensor([[1.0], [1.0]])).item() == 1.0


def test_relations_of_one_row_are_none() -> None:
    assert losses.relational(EYE[:1], EYE[:1]).item() == 0.0


def test_interactive_is_the_teacher_s_contrastive_loss_where_both_are_equal() -> None:
    t = teacher()
    value = losses.interactive(t.image, t.text, t.image, t.text, t.scale)
    torch.testing.assert_close(value, contrastive(t.image, t.text, t.scale))


def test_interactive_by_hand() -> None:
    """Everything points the wrong way at scale log 3: each cross-entropy is -log ¼."""
    value = losses.interactive(SWAPPED, SWAPPED, EYE, EYE, torch.tensor(3.0).log())
    assert value.item() == pytest.approx(math.log(4))


def test_interactive_counts_positives() -> None:
    everything = torch.ones(2, 2, dtype=torch.bool)
    value = losses.interactive(EYE, EYE, EYE, EYE, torch.tensor(3.0).log(), positives=everything)
    assert value.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_projector_of_equal_widths_has_no_weights() -> None:
    assert list(losses.Projector(8, 8).parameters()) == []


def test_projector_into_a_wider_space_keeps_cosines_at_first() -> None:
    x = unit(6, 8, 1)
    mapped = losses.Projector(8, 20)(x)
    assert mapped.shape == (6, 20)
    torch.testing.assert_close(mapped @ mapped.T, x @ x.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("term", sorted(TERMS))
def test_every_term_teaches_a_student_of_another_width(term: str) -> None:
    distiller = Distiller(student(), [5, 12], {term: 1.0})
    image, text = unit(6, 8, 1).requires_grad_(), unit(6, 8, 2).requires_grad_()
    terms = distiller.loss(image, text, 10 * ONE, [teacher(5), teacher(12, seed=8)])
    torch.autograd.backward(terms[term])
    assert set(terms) == {term}
    for embedding in (image, text):
        assert embedding.grad is not None and embedding.grad.abs().sum() > 0


@pytest.mark.parametrize("term", sorted(set(TERMS) - {"interactive"}))
def test_every_term_is_zero_for_a_perfect_student(term: str) -> None:
    t = teacher()
    value = Distiller(student(), [8], {term: 1.0}).loss(t.image, t.text, t.scale, [t])[term]
    assert value.item() == pytest.approx(0.0, abs=1e-5)


def test_terms_are_not_weighted() -> None:
    batch = (unit(6, 8, 1), unit(6, 8, 2), 10 * ONE, [teacher()])
    light, heavy = (Distiller(student(), [8], {"affinity": weight}).loss(*batch) for weight in (1.0, 9.0))
    assert light["affinity"].item() == heavy["affinity"].item() > 0


def test_projectors_are_trained() -> None:
    distiller = Distiller(student(), [5, 8], {"feature": 1.0, "affinity": 1.0})
    assert [tuple(p.shape) for p in distiller.parameters()] == [(5, 8)]


def test_terms_in_the_student_s_space_need_no_projectors() -> None:
    assert list(Distiller(student(), [5], {"affinity": 1.0, "relational": 2.0, "feature": 0.0}).parameters()) == []


def test_half_precision_teachers_are_normalised_in_float32() -> None:
    t = teacher()
    stored = TeacherBatch((3 * t.image).half(), (3 * t.text).half(), t.scale)
    value = Distiller(student(), [8], {"feature": 1.0}).loss(t.image, t.text, t.scale, [stored])["feature"]
    assert value.dtype == torch.float32
    assert value.item() < 1e-5


@pytest.mark.parametrize(
    ("weights", "dims", "message"),
    [
        ({"affinty": 1.0}, [8], r"unknown term 'affinty'.*known: affinity"),
        ({"affinity": -1.0}, [8], "affinity is -1.0"),
        ({"affinity": 0.0}, [8], "no term has a weight above 0"),
        ({"affinity": 1.0}, [], "distillation needs a teacher"),
    ],
)
def test_what_cannot_teach_is_refused(weights: dict[str, float], dims: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Distiller(student(), dims, weights)
