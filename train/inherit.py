"""Starting a student with a teacher's weights: some of its layers, and of those the channels that weigh most.

Source: weight inheritance as in TinyCLIP, arXiv 2309.12314, with channels chosen by magnitude as in arXiv 1608.08710.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from edgeclip.errors import UsageError
from edgeclip.train.axes import PREFIX, axes_of, heads_of
from edgeclip.train.models.clip import Clip
from edgeclip.train.models.config import ClipConfig, RepVggConfig, ResNetConfig, VitConfig

Width = Literal["magnitude", "prefix"]
Heads = tuple[int, int]
"""How many the teacher has, and the student."""
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


def inherit(teacher: Clip, config: ClipConfig, *, width: Width = "magnitude") -> Clip:
    """A model of `config` with weights of a teacher that is nowhere smaller. The teacher is not changed.

    Of its layers every so manieth is taken, the first always; of channels, heads and neurons those whose weights have
    the largest norm, or the first ones. Weights that belong to one set of channels keep the same of them.

    Args:
        width: how channels are chosen.

    Raises:
        UsageError: the kinds differ, or the student is larger somewhere, or has another vocabulary or grid.
    """
    _check_kinds(teacher.config, config)
    student = Clip(config)
    cut = _Cut(teacher, student, width)
    student.load_state_dict({name: cut(name, tensor) for name, tensor in student.state_dict().items()})
    return student


def pick_depths(teacher: int, student: int) -> list[int]:
    """Which of `teacher` layers a stack of `student` layers takes: evenly spread, from the first to the last."""
    if student == 1:
        return [0]
    return [round(i * (teacher - 1) / (student - 1)) for i in range(student)]


class _Cut:
    """Cuts a student's tensors out of the teacher's."""

    def __init__(self, teacher: Clip, student: Clip, width: Width) -> None:
        self._width = width
        self._state: dict[str, Tensor] = teacher.state_dict()
        self._axes, self._own_axes = axes_of(teacher.config), axes_of(student.config)
        self._heads, self._own_heads = heads_of(teacher.config), heads_of(student.config)
        self._sources = _sources(teacher, student)
        self._scores = self._scored()
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The teacher's values for one of the student's tensors."""
        source = self._sources[name]
        cut = self._state[source].detach()
        if source not in self._axes:
            return cut.clone()
        if cut.dim() != tensor.dim():
            raise UsageError(f"{name}: the teacher's {source} has another shape")
        for dim, axis in enumerate(self._axes[source]):
            own = self._own_axes[name][dim]
            heads = (self._heads.get(axis or "", 1), self._own_heads.get(own or "", 1))
            cut = cut.index_select(dim, self._indices(name, axis, cut.shape[dim], tensor.shape[dim], heads))
        return cut.contiguous()

    def _indices(self, name: str, axis: str | None, size: int, wanted: int, heads: Heads) -> Tensor:
        """Which entries of an axis are kept, rising."""
        if axis is None and size != wanted:
            hint = "prune the teacher's vocabulary first" if "token_embedding" in name else "change the student"
            raise UsageError(f"{name}: {wanted} entries, the teacher has {size} that cannot be chosen from", hint=hint)
        if wanted > size:
            raise UsageError(f"{name}: {wanted} channels, the teacher has {size}", hint="make the student smaller")
        if axis is None or axis == PREFIX:
            return torch.arange(wanted)
        if axis not in self._kept:
            self._kept[axis] = self._chosen(name, axis, wanted, heads)
        if len(self._kept[axis]) != wanted:
            raise UsageError(f"{name}: {wanted} channels, where what it is added to keeps {len(self._kept[axis])}")
        return self._kept[axis]

    def _chosen(self, name: str, axis: str, wanted: int, heads: Heads) -> Tensor:
        score = self._scores[axis]
        theirs, own = heads
        each, kept = len(score) // theirs, wanted // own
        if own > theirs or kept > each:
            raise UsageError(
                f"{name}: {own} heads of {kept}, the teacher has {theirs} of {each}", hint="make the student smaller"
            )
        table = score.view(theirs, each)
        rows = self._top(table.sum(dim=1), own)
        columns = [self._top(table[row], kept) for row in rows.tolist()]
        return torch.cat([row * each + column for row, column in zip(rows.tolist(), columns, strict=True)])

    def _top(self, score: Tensor, count: int) -> Tensor:
        if self._width == "prefix":
            return torch.arange(count)
        return score.argsort(descending=True, stable=True)[:count].sort().values

    def _scored(self) -> dict[str, Tensor]:
        """Axis -> the squared norm, in float64, of all that each entry is multiplied with."""
        scores: dict[str, Tensor] = {}
        for source in set(self._sources.values()):
            weights = self._state[source].double().square()
            for dim, axis in enumerate(() if source.endswith(_STATISTICS) else self._axes.get(source, ())):
                if axis is not None:
                    total = (
                        weights.sum(dim=[d for d in range(weights.dim()) if d != dim]) if weights.dim() > 1 else weights
                    )
                    scores[axis] = scores.get(axis, 0.0) + total
        return scores


def _sources(teacher: Clip, student: Clip) -> dict[str, str]:
    """Each of the student's tensors -> the teacher's that it comes from.

    Raises:
        UsageError: the teacher has no such tensor.
    """
    rules = [
        (re.compile(re.escape(stack) + r"\.(\d+)\."), stack, pick_depths(theirs, depth))
        for (stack, theirs), depth in zip(
            _stacks(teacher.config).items(), _stacks(student.config).values(), strict=True
        )
    ]
    sources = {name: _renamed(name, rules) for name in student.state_dict()}
    known = teacher.state_dict()
    for name, source in sources.items():
        if source not in known:
            raise UsageError(f"{name}: the teacher has no {source}", hint="give both the same branches and head")
    return sources


def _renamed(name: str, rules: list[tuple[re.Pattern[str], str, list[int]]]) -> str:
    for pattern, stack, picked in rules:
        if match := pattern.match(name):
            return f"{stack}.{picked[int(match[1])]}.{name[match.end() :]}"
    return name


def _stacks(config: ClipConfig) -> Mapping[str, int]:
    """Where layers are stacked -> how many."""
    image = config.image
    text = {"text.transformer.blocks": config.text.layers}
    if isinstance(image, VitConfig):
        return text | {"image.transformer.blocks": image.layers}
    depths = image.layers if isinstance(image, ResNetConfig) else image.depths
    return text | {f"image.stages.{i}": depth for i, depth in enumerate(depths)}


def _check_kinds(teacher: ClipConfig, student: ClipConfig) -> None:
    """Layers can be chosen only where both have the same stacks, and none of the student's is the deeper one."""
    kinds = [type(config.image).__name__.removesuffix("Config") for config in (teacher, student)]
    if kinds[0] != kinds[1]:
        raise UsageError(f"a {kinds[1]} cannot inherit from a {kinds[0]}", hint="both must be of one kind")
    strides = [config.image.strides if isinstance(config.image, RepVggConfig) else () for config in (teacher, student)]
    if strides[0] != strides[1]:
        raise UsageError(f"image: strides {strides[1]}, the teacher's are {strides[0]}", hint="use the same")
    theirs, own = _stacks(teacher), _stacks(student)
    for stack in own:
        if own[stack] > theirs[stack]:
            raise UsageError(f"{stack}: {own[stack]} layers, the teacher has {theirs[stack]}", hint="use fewer")
