"""What training with rounding wins back of what plain rounding loses: `python -m edgeclip.benchmarks.recovery`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click
import numpy as np
from numpy.typing import NDArray

from edgeclip import paired, scores, zeroshot
from edgeclip.backends.base import Array, Embeddings
from edgeclip.bundle import Bundle
from edgeclip.cli import progress
from edgeclip.cli.group import Command, examples
from edgeclip.cli.output import Output
from edgeclip.errors import UsageError
from edgeclip.manifest import Artifact, Precision, Target, Tower
from edgeclip.outcome import open_session
from edgeclip.paired import Drop, Right
from edgeclip.scores import Score
from edgeclip.testset import Decoded, read_test_set
from edgeclip.tokenizer import Tokenizer

BATCH = 64
RESAMPLES = 10_000
FLOATS = ("fp32", "fp16")
Kind = tuple[Target, Precision]


@click.command(
    "recovery",
    cls=Command,
    epilog=examples(
        "python -m edgeclip.benchmarks.recovery b32.edgeclip b32.edgeclip trained.edgeclip --data eval/wds_cifar10",
    ),
)
@click.argument("floating", type=click.Path(path_type=Path))
@click.argument("plain", type=click.Path(path_type=Path))
@click.argument("trained", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A test set with labels.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Images of it; 0: all.")
@click.pass_obj
def command(output: Output, floating: Path, plain: Path, trained: Path, data: Path, limit: int) -> None:
    """Compare integer artifacts of one model: rounded as it was (PLAIN), and trained with rounding (TRAINED).

    FLOATING holds the model in floating point, as ONNX; it may be the same bundle as PLAIN. Every target and precision
    that PLAIN and TRAINED both have is measured, all on the same images.
    """
    origin, before, after = Bundle.open(floating), Bundle.open(plain), Bundle.open(trained)
    check_same(origin, before)
    check_same(origin, after)
    kinds = shared_kinds(before, after)
    read = read_test_set(data, before.manifest.preprocess, limit=limit)
    runs: list[tuple[Bundle, Kind]] = [
        (origin, float_kind(origin)),
        *((b, kind) for kind in kinds for b in (before, after)),
    ]
    with progress.bar(output, "measuring", len(runs)) as advance:
        found = []
        for bundle, kind in runs:
            found.append(right(bundle, kind, read))
            advance(1)
    reference, rest = found[0], found[1:]
    results = [compare(data.name, kind, reference, *pair) for kind, pair in zip(kinds, _pairs(rest), strict=True)]
    output.document |= {"floating": origin.digest, "plain": before.digest, "trained": after.digest, "results": results}
    show(output, results)


@dataclass(frozen=True)
class Share:
    """Of the loss, how much is won back; 1 is all of it."""

    value: float
    low: float
    high: float
    """The 95 % interval, over resamples of the images."""


@dataclass(frozen=True)
class Recovery:
    """Three models on the same images."""

    data: str
    target: Target
    precision: Precision
    floating: Score
    plain: Score
    trained: Score
    plain_loss: Drop
    """Against floating point."""
    trained_loss: Drop
    """Against floating point, of the model before."""
    share: Share | None
    """None where plain rounding does not surely lose anything."""


def check_same(one: Bundle, other: Bundle) -> None:
    """
    Raises:
        UsageError: the bundles are of models that see pixels or texts differently.
    """
    facts = [(bundle.manifest.preprocess, bundle.manifest.tokenizer) for bundle in (one, other)]
    if facts[0] != facts[1]:
        raise UsageError(f"{other.path}: not the model of {one.path}: its pixels or tokens are others")


def shared_kinds(plain: Bundle, trained: Bundle) -> list[Kind]:
    """Targets and integer precisions of which both bundles have both towers.

    Raises:
        UsageError: there is none.
    """
    kinds = sorted(_kinds(plain) & _kinds(trained))
    if not kinds:
        raise UsageError(f"{plain.path} and {trained.path} have no integer precision of both towers in common")
    return kinds


def _kinds(bundle: Bundle) -> set[Kind]:
    """Of integers."""
    found = [(a.target, a.precision) for a in bundle.manifest.artifacts if a.precision not in FLOATS]
    return {kind for kind in found if found.count(kind) > 1}


def float_kind(bundle: Bundle) -> Kind:
    """The most precise ONNX.

    Raises:
        UsageError: there is none of both towers.
    """
    for precision in FLOATS:
        kind = cast("Kind", ("onnx", precision))
        if len(bundle.artifacts(target=kind[0], precision=kind[1])) > 1:
            return kind
    raise UsageError(f"{bundle.path}: has no ONNX in floating point to compare with", hint="export it with fp32")


def right(bundle: Bundle, kind: Kind, data: Decoded) -> Right:
    """bool [N]: whether the nearest class of each image is its own.

    Raises:
        UsageError: the set has captions, not labels.
    """
    spec = bundle.manifest.tokenizer
    if data.labels is None or spec is None:
        raise UsageError(f"{data.name}: has no labels", hint="name a classification set")
    ids = Tokenizer(bundle.read(spec.file), spec)(zeroshot.prompts(data.classes, data.templates, repeats=True))
    weights = zeroshot.ensemble(_embed(bundle, kind, "text", ids), len(data.classes))
    images = _embed(bundle, kind, "image", data.pixels)
    return np.asarray((images @ weights.T).argmax(axis=1) == data.labels)


def _embed(bundle: Bundle, kind: Kind, tower: Tower, inputs: Array) -> Embeddings:
    """[N, D], by the engine that judges the target."""
    artifact: Artifact = bundle.artifacts(tower=tower, target=kind[0], precision=kind[1])[0]
    session = open_session(artifact, {name: bundle.read(name) for name in artifact.files})
    try:
        return np.concatenate([session.run(inputs[i : i + BATCH]) for i in range(0, len(inputs), BATCH)])
    finally:
        session.close()


def compare(data: str, kind: Kind, reference: Right, plain: Right, trained: Right) -> Recovery:
    """What is lost, and what is won back."""
    loss = paired.drop(reference, plain)
    floating, rounded, learned = (
        scores.score(data, "top1", float(one.mean()), len(one)) for one in (reference, plain, trained)
    )
    return Recovery(
        data=data,
        target=kind[0],
        precision=kind[1],
        floating=floating,
        plain=rounded,
        trained=learned,
        plain_loss=loss,
        trained_loss=paired.drop(reference, trained),
        share=share(reference, plain, trained) if loss.low_pt > 0 else None,
    )


def share(reference: Right, plain: Right, trained: Right) -> Share:
    """(trained − plain) / (reference − plain), with percentiles over resampled images.

    Resampling images is drawing how often each of the eight outcomes that an image can have occurs.
    """
    outcomes = 4 * reference + 2 * plain + trained
    counts = np.bincount(outcomes, minlength=8)
    drawn = np.random.default_rng(0).multinomial(counts.sum(), counts / counts.sum(), RESAMPLES)
    low, high = np.percentile(_share(drawn), [2.5, 97.5])
    return Share(float(_share(counts[None])[0]), float(low), float(high))


def _share(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[R, 8] to [R]; nothing lost is nothing to win, and counts as all of it."""
    reference, plain, trained = (counts[:, [i for i in range(8) if i & bit]].sum(axis=1) for bit in (4, 2, 1))
    lost = reference - plain
    return np.where(lost > 0, (trained - plain) / np.maximum(lost, 1), 1.0)


def _pairs(found: list[Right]) -> list[tuple[Right, Right]]:
    return list(zip(found[::2], found[1::2], strict=True))


def show(output: Output, results: list[Recovery]) -> None:
    """Print one row for each target."""
    first = results[0]
    output.table(
        f"{first.data}, {first.floating.n} images: top-1 in %, losses in points against {_percent(first.floating)}",
        ("artifact", "plain", "loses", "trained", "loses", "won back"),
        [
            [
                f"{one.target} {one.precision}",
                _percent(one.plain),
                _interval(one.plain_loss),
                _percent(one.trained),
                _interval(one.trained_loss),
                _percents(one.share) if one.share else "nothing is surely lost",
            ]
            for one in results
        ],
    )


def _percent(score: Score) -> str:
    return f"{100 * score.value:.2f}"


def _interval(loss: Drop) -> str:
    return f"{loss.drop_pt:.2f} [{loss.low_pt:.2f}, {loss.high_pt:.2f}]"


def _percents(share: Share) -> str:
    return f"{100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"


if __name__ == "__main__":
    from edgeclip.cli import main

    sys.exit(main(command=command, name="python -m edgeclip.benchmarks.recovery"))
