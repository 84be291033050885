"""From what was asked for to a suite: which of the data it takes, and what must be known before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeclip.benchmarks import bias, robustness
from edgeclip.benchmarks.robustness import FAMILIES, key
from edgeclip.benchmarks.suites import QUICK, Bias, LinearProbe, Robustness, Suite, SuiteName, ZeroShot
from edgeclip.benchmarks.testdata import Data, DataSpec, LooseSet, find_data, open_data, training_split
from edgeclip.errors import UsageError


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    suite: SuiteName
    places: tuple[str, ...]
    sets: tuple[str, ...] = ()
    limit: int | None = None
    split_test: bool = False
    """Whether a probe may be trained on half of the test images."""
    baseline: Path = robustness.BUILT_IN
    original: str = ""
    """Name of the set that the others are shifts of; "" finds it."""
    designs: tuple[Path, ...] = ()
    """Tables of labels for the bias probe."""


def plan(request: Request) -> Suite:
    """
    Raises:
        DataError, UsageError: the data are missing, damaged, or not what the suite needs.
        TargetUnavailableError: a data set is to come from the hub, and its library is not installed.
    """
    return _PLANS[request.suite](request)


def _zero_shot(request: Request, takes: Callable[[Data], bool], what: str) -> ZeroShot:
    specs = _find(request)
    fitting = _fitting(specs, takes, what)
    return ZeroShot(fitting, _left_out(specs, fitting, what))


def _quick(request: Request) -> ZeroShot:
    limit = QUICK if request.limit is None else request.limit
    specs = _fitting(_find(request, limit), lambda data: True, "classes or captions")
    cut = f"quick: the first {limit} images of each set" if limit else ""
    return ZeroShot(specs, (cut,) if cut else ())


def _classification(request: Request) -> ZeroShot:
    return _zero_shot(request, lambda data: not data.is_retrieval, "classes")


def _retrieval(request: Request) -> ZeroShot:
    return _zero_shot(request, lambda data: data.is_retrieval, "captions")


def _linear_probe(request: Request) -> LinearProbe:
    specs = [msgspec.structs.replace(spec, texts=False) for spec in _find(request, train=True)]
    labelled = _fitting(specs, _has_one_class, "one class an image")
    pairs = [(spec, training_split(spec)) for spec in labelled]
    chosen = [(spec, train) for spec, train in pairs if train is not None or request.split_test]
    if not chosen:
        raise UsageError(
            f"no training split in: {', '.join(spec.name for spec in labelled)}",
            hint="a folder train/ beside test/, or --split-test, which trains on half of the test images",
        )
    flat = [one for pair in chosen for one in pair if one is not None]
    without = [spec for spec, train in pairs if train is None]
    lacking = () if request.split_test or not without else (f"left out, without a training split: {_names(without)}",)
    return LinearProbe(tuple(flat), (*_left_out(specs, labelled, "one class an image"), *lacking))


def _robustness(request: Request) -> Robustness:
    specs = _fitting(_find(request), _has_one_class, "one class an image")
    original = _original(request, specs)
    shifts = [spec for spec in specs if spec is not original and _is_shift(request, original, spec)]
    if not shifts:
        raise UsageError(f"no shifts of {original.name}", hint="name them with --sets and it with --original")
    baseline = robustness.read_baseline(request.baseline)
    bare = [spec for spec in shifts if baseline.line(original.name, spec.name) is None]
    lacking = (
        f"no effective robustness of {_names(bare)}: {request.baseline.name} lacks accuracies of "
        f"{robustness.LEAST} models on them and on {original.name}; --baseline names a table that has them"
    )
    return Robustness((original, *shifts), original.name, baseline, (lacking,) if bare else ())


def _bias(request: Request) -> Bias:
    if not request.designs:
        raise UsageError("--suite bias needs --labels", hint="a CSV of label and set, where a set is a kind of labels")
    designs = tuple(map(bias.read_design, request.designs))
    for place in request.places:
        if Path(place).suffix.lower() not in (".csv", ".tsv"):
            raise UsageError(f"{place}: --suite bias needs a table", hint="a CSV of image and groups, as gender or age")
    specs = [msgspec.structs.replace(spec, labels=bias.all_labels(designs)) for spec in _find(request)]
    groups = []
    for spec in specs:
        data = open_data(spec)
        assert isinstance(data, LooseSet)
        groups.append(bias.read_groups(Path(spec.path), [entry.key for entry in data.entries]))
    return Bias(tuple(specs), designs, tuple(groups))


_PLANS: dict[SuiteName, Callable[[Request], Suite]] = {
    "quick": _quick,
    "classification": _classification,
    "retrieval": _retrieval,
    "linear-probe": _linear_probe,
    "robustness": _robustness,
    "bias": _bias,
}


def _find(request: Request, limit: int | None = None, *, train: bool = False) -> list[DataSpec]:
    return find_data(request.places, request.sets, limit=limit or request.limit or 0, train=train)


def _fitting(specs: Sequence[DataSpec], takes: Callable[[Data], bool], what: str) -> tuple[DataSpec, ...]:
    """The specs of data that a suite takes.

    Raises:
        UsageError: there is none.
    """
    found = tuple(spec for spec in specs if takes(open_data(spec)))
    if not found:
        raise UsageError(f"no data set with {what} among: {_names(specs)}")
    return found


def _left_out(specs: Sequence[DataSpec], taken: Sequence[DataSpec], what: str) -> tuple[str, ...]:
    others = [spec for spec in specs if spec not in taken]
    return (f"left out, without {what}: {_names(others)}",) if others else ()


def _has_one_class(data: Data) -> bool:
    return not data.is_retrieval and not data.is_multilabel


def _original(request: Request, specs: Sequence[DataSpec]) -> DataSpec:
    wanted = (key(request.original),) if request.original else tuple(FAMILIES)
    found = [spec for spec in specs if key(spec.name) in wanted]
    if not found:
        if request.original:
            raise UsageError(f"no data set {request.original!r} among: {_names(specs)}")
        raise UsageError(
            f"no data set whose shifts are known (ImageNet's, or PACS photographs') among: {_names(specs)}",
            hint="--original names the set that the others are shifts of",
        )
    if len(found) > 1:
        raise UsageError(f"several data sets have shifts: {_names(found)}", hint="choose one with --original")
    return found[0]


def _is_shift(request: Request, original: DataSpec, spec: DataSpec) -> bool:
    """Of data whose shifts are known, those; of others, whatever was named."""
    known = FAMILIES.get(key(original.name))
    return known is None or key(spec.name) in known or bool(request.sets)


def _names(specs: Sequence[DataSpec]) -> str:
    return ", ".join(spec.name for spec in specs)
