"""The distiller: from a batch's embeddings and what teachers say of it, the terms of the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from edgeclip.errors import UsageError
from edgeclip.train.losses import distillation as losses
from edgeclip.train.losses.distillation import Projector, TeacherBatch, mean
from edgeclip.train.losses.matryoshka import nested
from edgeclip.train.models.clip import Clip

__all__ = ["TERMS", "Distiller", "TeacherBatch"]


@dataclass(frozen=True)
class _Case:
    """The student beside one teacher. All embeddings float32, L2-normalised."""

    image: Tensor
    text: Tensor
    scale: Tensor
    mapped_image: Tensor
    """The student's, in the teacher's space."""
    mapped_text: Tensor
    teacher: TeacherBatch
    temperature: float
    positives: Tensor | None


def _affinity(case: _Case) -> Tensor:
    teacher = case.teacher
    return losses.affinity(case.image, case.text, teacher.image, teacher.text, case.scale, teacher.scale)


def _feature(case: _Case) -> Tensor:
    image = losses.feature_l2(case.mapped_image, case.teacher.image)
    return (image + losses.feature_l2(case.mapped_text, case.teacher.text)) / 2


def _cosine(case: _Case) -> Tensor:
    image = losses.feature_cosine(case.mapped_image, case.teacher.image)
    return (image + losses.feature_cosine(case.mapped_text, case.teacher.text)) / 2


def _interactive(case: _Case) -> Tensor:
    teacher = case.teacher
    mapped = (case.mapped_image, case.mapped_text)
    return losses.interactive(*mapped, teacher.image, teacher.text, case.scale, positives=case.positives)


def _relational(case: _Case) -> Tensor:
    image = losses.relational(case.image, case.teacher.image)
    return (image + losses.relational(case.text, case.teacher.text)) / 2


def _soft(case: _Case) -> Tensor:
    ours = case.scale * case.image @ case.text.T
    theirs = case.teacher.scale * case.teacher.image @ case.teacher.text.T
    return losses.soft_targets(ours, theirs, case.temperature)


TERMS: dict[str, Callable[[_Case], Tensor]] = {
    "affinity": _affinity,
    "cosine": _cosine,
    "ensemble": _affinity,  # the mean over teachers is what makes it one
    "feature": _feature,
    "interactive": _interactive,
    "relational": _relational,
    "soft": _soft,
}
"""Name -> the term for one teacher. A loss is the mean over teachers."""
_MAPPED = {"cosine", "feature", "interactive"}
"""Terms that compare the student with the teacher in the teacher's space."""


class Distiller(nn.Module):
    """The terms of a distillation loss. Its parameters, the projectors, are trained with the student."""

    def __init__(
        self,
        student: Clip,
        teacher_dims: Sequence[int],
        weights: Mapping[str, float],
        *,
        temperature: float = 1.0,
        widths: Sequence[int] = (),
    ) -> None:
        """
        Args:
            teacher_dims: width of each teacher's joint space, in the order of `loss`'s teachers.
            weights: of the terms; those of 0 are not computed. Keys are of `TERMS`.
            temperature: of the term `soft`.
            widths: at which the student's first coordinates learn what all of them do, in the terms that compare
                cosines with cosines; the others compare the whole with the teacher's whole.

        Raises:
            UsageError: an unknown term, a negative weight, no teacher or no term.
        """
        super().__init__()
        self.weights = _checked(weights)
        self.temperature = temperature
        self.widths = tuple(widths)
        if not teacher_dims:
            raise UsageError("distillation needs a teacher", hint="name one in [distill] teacher or stored")
        needed = bool(_MAPPED & self.weights.keys())
        width = student.config.embed_dim
        self.projectors = nn.ModuleList(Projector(width, dim) if needed else nn.Identity() for dim in teacher_dims)

    def loss(
        self,
        student_image: Tensor,
        student_text: Tensor,
        student_scale: Tensor,
        teacher: Sequence[TeacherBatch],
        *,
        positives: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms whose weight is above 0, not yet weighted: their sum by `weights` is the distillation loss.

        Args:
            student_image, student_text: float [B, D], L2-normalised, the whole batch that is contrasted.
            student_scale: exp(t) of the student.
            teacher: one for each of `teacher_dims`; of any float dtype, normalised here.
            positives: bool [B, B], pairs that share their caption, for the term `interactive`.
        """
        student = (student_image.float(), student_text.float(), student_scale)
        whole = [
            self._case(student, projector, batch, positives)
            for projector, batch in zip(self.projectors, teacher, strict=True)
        ]
        every = [*whole, *(part for case in whole for part in self._parts(case))]
        cases = {name: whole if name in _MAPPED else every for name in self.weights}
        return {name: mean([TERMS[name](case) for case in cases[name]]) for name in self.weights}

    def _parts(self, case: _Case) -> list[_Case]:
        """The case with the student's first coordinates alone, at each width."""
        images, texts = (nested(rows, self.widths)[1:] for rows in (case.image, case.text))
        return [dataclasses.replace(case, image=i, text=t) for i, t in zip(images, texts, strict=True)]

    def _case(
        self,
        student: tuple[Tensor, Tensor, Tensor],
        projector: nn.Module,
        teacher: TeacherBatch,
        positives: Tensor | None,
    ) -> _Case:
        image, text, scale = student
        theirs = TeacherBatch(
            F.normalize(teacher.image.detach().float(), dim=-1),
            F.normalize(teacher.text.detach().float(), dim=-1),
            teacher.scale.detach(),
        )
        return _Case(image, text, scale, projector(image), projector(text), theirs, self.temperature, positives)


def _checked(weights: Mapping[str, float]) -> dict[str, float]:
    """The terms that count."""
    for name, weight in weights.items():
        if name not in TERMS:
            raise UsageError(f"[distill.weights]: unknown term {name!r}", hint=f"known: {', '.join(sorted(TERMS))}")
        if weight < 0:
            raise UsageError(f"[distill.weights]: {name} is {weight}", hint="weights are 0 or more")
    used = {name: weight for name, weight in weights.items() if weight > 0}
    if not used:
        raise UsageError("[distill.weights]: no term has a weight above 0", hint=f"one of: {', '.join(sorted(TERMS))}")
    return used
