"""The suites: which data each of them embeds, and what it makes of the embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from edgeclip import scores
from edgeclip.benchmarks import bias, probe
from edgeclip.benchmarks.bias import Design, Groups
from edgeclip.benchmarks.embedded_set import EmbeddedSet
from edgeclip.benchmarks.embedding_child import Fault, fault
from edgeclip.benchmarks.metrics import CaptionShare, ClassRecall, MeanPrecision, Metric, Share
from edgeclip.benchmarks.robustness import Baseline, Effective
from edgeclip.benchmarks.testdata import DataSpec
from edgeclip.errors import EdgeClipError

SuiteName = Literal["quick", "classification", "retrieval", "linear-probe", "robustness", "bias"]
SUITES: tuple[SuiteName, ...] = get_args(SuiteName)
QUICK = 500
"""Images of each set in the quick suite, where no limit is named."""
TOP = 5
EFFECTIVE = "effective_robustness"
RELATIVE = "relative_robustness"
Step = Callable[[str], None]
"""Told what takes long."""


@dataclass(frozen=True)
class Found:
    """A metric of a model on a data set."""

    data: str
    metric: str
    of: Metric
    group: str = ""
    note: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for what may be compared."""
        return self.data, self.metric, self.group


@dataclass(frozen=True)
class NotFound:
    """Why there is no metric of a data set."""

    data: str
    fault: Fault


Result = Found | NotFound


class Suite(Protocol):
    """What is embedded, and what is made of it."""

    @property
    def sets(self) -> tuple[DataSpec, ...]: ...

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader must know of all results."""
        ...

    def score(self, embedded: Callable[[int], EmbeddedSet | Fault], begin: Step) -> Iterator[Result]:
        """
        Args:
            embedded: gives one of the sets, by position.
        """
        ...


@dataclass(frozen=True)
class ZeroShot:
    """Images by prompts of their classes, and images and captions by each other."""

    sets: tuple[DataSpec, ...]
    remarks: tuple[str, ...] = ()

    def score(self, embedded: Callable[[int], EmbeddedSet | Fault], begin: Step) -> Iterator[Result]:
        for i, spec in enumerate(self.sets):
            begin(f"scoring {spec.name}")
            one = embedded(i)
            if isinstance(one, Fault):
                yield NotFound(spec.name, one)
            else:
                yield from (Found(spec.name, name, metric) for name, metric in zero_shot(one).items())


@dataclass(frozen=True)
class LinearProbe:
    """A logistic regression on the training split of each set, tested on the other."""

    sets: tuple[DataSpec, ...]
    """Each tested one is followed by its training split, where that is another."""
    remarks: tuple[str, ...] = ()

    def score(self, embedded: Callable[[int], EmbeddedSet | Fault], begin: Step) -> Iterator[Result]:
        for i, spec in enumerate(self.sets):
            if spec.split == "train":
                continue
            begin(f"fitting {spec.name}")
            has_split = i + 1 < len(self.sets) and self.sets[i + 1].split == "train"
            tested, trained = embedded(i), embedded(i + 1) if has_split else None
            broken = next((one for one in (tested, trained) if isinstance(one, Fault)), None)
            if broken is not None:
                yield NotFound(spec.name, broken)
                continue
            assert isinstance(tested, EmbeddedSet) and not isinstance(trained, Fault)
            try:
                yield from _probe(spec.name, tested, trained)
            except EdgeClipError as exc:
                yield NotFound(spec.name, fault(exc))


@dataclass(frozen=True)
class Robustness:
    """Zero-shot accuracy on data and on its natural shifts, and what is left of it there."""

    sets: tuple[DataSpec, ...]
    original: str
    """The set that the others are shifts of."""
    baseline: Baseline
    remarks: tuple[str, ...] = ()

    def score(self, embedded: Callable[[int], EmbeddedSet | Fault], begin: Step) -> Iterator[Result]:
        found: dict[str, Share] = {}
        for i, spec in enumerate(self.sets):
            begin(f"scoring {spec.name}")
            one = embedded(i)
            if isinstance(one, Fault):
                yield NotFound(spec.name, one)
                continue
            found[spec.name] = top(one, 1)
            yield Found(spec.name, "top1", found[spec.name], note="" if spec.name == self.original else "shift")
        for name in found if self.original in found else ():
            line = self.baseline.line(self.original, name) if name != self.original else None
            if line is not None:
                effective = Effective(line, found[self.original], found[name])
                note = f"above the line of {line.n} models, r2 {line.r2:.2f}"
                yield Found(name, EFFECTIVE, effective, note=note)


@dataclass(frozen=True)
class Bias:
    """Rates of kinds of labels, by group."""

    sets: tuple[DataSpec, ...]
    designs: tuple[Design, ...]
    groups: tuple[Groups, ...]
    """Of each set."""
    remarks: tuple[str, ...] = (bias.CAVEAT,)

    def score(self, embedded: Callable[[int], EmbeddedSet | Fault], begin: Step) -> Iterator[Result]:
        for i, (spec, groups) in enumerate(zip(self.sets, self.groups, strict=True)):
            begin(f"scoring {spec.name}")
            one = embedded(i)
            if isinstance(one, Fault):
                yield NotFound(spec.name, one)
                continue
            for design, kind, group, share in bias.rates(self.designs, groups, one.images, one.weights):
                yield Found(spec.name, f"rate of {kind}", share, group=group, note=f"labels: {design}")


def zero_shot(data: EmbeddedSet) -> dict[str, Metric]:
    """The metrics of one data set, by name."""
    if data.is_retrieval:
        return _retrieval(data)
    if data.is_multilabel:
        return {"mean_average_precision": MeanPrecision(data.images @ data.weights.T, data.truth)}
    right = top(data, 1)
    five = {f"top{TOP}": top(data, TOP)} if len(data.weights) >= TOP else {}
    return {"top1": right, **five, "mean_per_class_recall": ClassRecall(right.right, data.labels)}


def top(data: EmbeddedSet, rank: int) -> Share:
    """Whether the class of each image is among the nearest: see `scores.classes_before`."""
    return Share(scores.classes_before(data.images, data.weights, data.labels) < rank)


def _retrieval(data: EmbeddedSet) -> dict[str, Metric]:
    to_text = scores.texts_before(data.images, data.weights, data.owners)
    to_image = scores.images_before(data.images, data.weights, data.owners)
    found: dict[str, Metric] = {f"image_to_text_r{rank}": Share(to_text < rank) for rank in scores.RANKS}
    return found | {f"text_to_image_r{rank}": CaptionShare(to_image < rank, data.owners) for rank in scores.RANKS}


def _probe(name: str, tested: EmbeddedSet, trained: EmbeddedSet | None) -> Iterator[Found]:
    """Without a training split, half of the test images of each class are one."""
    if trained is None:
        train = probe.split(tested.labels, 0.5)
        images, labels = tested.images[train], tested.labels[train]
        rows, wanted = tested.images[~train], tested.labels[~train]
    else:
        images, labels, rows, wanted = trained.images, trained.labels, tested.images, tested.labels
    fitted = probe.fit(images, labels)
    right = fitted.predict(rows) == wanted
    note = _note(fitted, split=trained is None)
    yield Found(name, "top1", Share(right), note=note)
    yield Found(name, "mean_per_class_recall", ClassRecall(right, wanted), note=note)


def _note(fitted: probe.Probe, *, split: bool) -> str:
    where = f"half of the test images, {fitted.trained_on}" if split else f"{fitted.trained_on} images"
    stopped = f", stopped at {probe.ITERATIONS} iterations" if fitted.unfinished else ""
    return f"trained on {where}, strength {fitted.strength:.2g}{stopped}"
