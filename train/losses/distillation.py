"""What a student may take over from a teacher, each as a pure function of embeddings or logits.

Embeddings are float [B, D], L2-normalised; row i of the images belongs to row i of the texts. Every loss is a scalar,
at least 0, and 0 where the student equals the teacher, but for `interactive`, which is a contrastive loss. The teacher
gets no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeclip.train.losses.contrastive import contrastive


class TeacherBatch(NamedTuple):
    """What one teacher says of a batch."""

    image: Tensor
    """float [B, D'], L2-normalised."""
    text: Tensor
    """float [B, D'], L2-normalised."""
    scale: Tensor
    """exp(t) of the teacher, a scalar."""


class Projector(nn.Module):
    """From the student's space into a teacher's: a linear map, or nothing where the widths are equal."""

    def __init__(self, width: int, teacher_width: int) -> None:
        super().__init__()
        same = width == teacher_width
        self.linear = None if same else nn.Linear(width, teacher_width, bias=False)
        if self.linear is not None:
            nn.init.orthogonal_(self.linear.weight)  # cosines are those of before, where the teacher is the wider one

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] to [B, D'], L2-normalised."""
        return x if self.linear is None else F.normalize(self.linear(x), dim=-1)


def row_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over rows of KL(teacher ‖ student) of two [B, B'] logits, times temperature².

    Source: arXiv 1503.02531 §2.
    """
    ours = F.log_softmax(student / temperature, dim=-1)
    theirs = F.log_softmax(teacher.detach() / temperature, dim=-1)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def soft_targets(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Image to text and text to image: the mean of both directions' divergence of [B, B] logits.

    Source: arXiv 1503.02531 §2, on CLIP's logits.
    """
    from_image = row_divergence(student_logits, teacher_logits, temperature)
    from_text = row_divergence(student_logits.T, teacher_logits.T, temperature)
    return (from_image + from_text) / 2


def affinity(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    student_scale: Tensor,
    teacher_scale: Tensor,
) -> Tensor:
    """Affinity mimicking: which texts an image is near, and the reverse, each model at its own scale.

    The cross-entropy of the source less the teacher's entropy, which has no gradient. Widths may differ.

    Source: TinyCLIP, arXiv 2309.12314; CLIP-KD, arXiv 2307.12732, calls it contrastive relational distillation.
    """
    student_logits = student_scale * student_image @ student_text.T
    return soft_targets(student_logits, teacher_scale * teacher_image @ teacher_text.T)


def ensemble(
    student_image: Tensor, student_text: Tensor, student_scale: Tensor, teachers: Sequence[TeacherBatch]
) -> Tensor:
    """Several teachers: the mean of their `affinity`, each at its own scale. Source: MobileCLIP, arXiv 2311.17049."""
    parts = [affinity(student_image, student_text, t.image, t.text, student_scale, t.scale) for t in teachers]
    return torch.stack(parts).mean()


def feature_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the batch of the squared distance of [B, D].

    Source: CLIP-KD, arXiv 2307.12732, feature distillation.
    """
    return (student - teacher.detach()).square().sum(dim=-1).mean()


def feature_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the batch of 1 - cosine of [B, D], which need not be normalised."""
    return (1 - F.cosine_similarity(student, teacher.detach(), dim=-1)).mean()


def relational(student: Tensor, teacher: Tensor) -> Tensor:
    """How like each other the samples of one modality are: mean squared difference of cosines between rows.

    Rows are compared with other rows only, so that widths may differ and duplicates do no harm.

    Source: arXiv 1907.09682, with cosines; relations instead of points are the idea of arXiv 1904.05068.
    """
    count = len(student)
    gap = (student @ student.T - teacher.detach() @ teacher.detach().T).square()
    return (gap.sum() - gap.diagonal().sum()) / max(count * (count - 1), 1)


def interactive(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    scale: Tensor,
    *,
    positives: Tensor | None = None,
) -> Tensor:
    """Contrast the student's images with the teacher's texts, and its texts with the teacher's images.

    The student must have been projected into the teacher's space. Where it equals the teacher, this is the teacher's
    own contrastive loss.

    Args:
        scale: the student's exp(t).
        positives: as in `contrastive`.

    Source: CLIP-KD, arXiv 2307.12732, interactive contrastive learning.
    """
    by_image = contrastive(student_image, teacher_text.detach(), scale, positives=positives)
    by_text = contrastive(teacher_image.detach(), student_text, scale, positives=positives)
    return (by_image + by_text) / 2


def mean(terms: Sequence[Tensor]) -> Tensor:
    """Of scalars."""
    return cast("Tensor", sum(terms)) / len(terms)
