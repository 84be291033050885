"""What small embeddings cost: `python -m edgeclip.benchmarks.embeddings B --data DIR`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeclip import quantized, scores
from edgeclip.backends.base import Array, Embeddings
from edgeclip.benchmarks.embedded_images import embed_set
from edgeclip.cli import progress
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import Engine, bundle_argument, engine_options
from edgeclip.cli.output import Output
from edgeclip.errors import UsageError
from edgeclip.form import DTYPES, Form, choose_form
from edgeclip.manifest import ModelSpec
from edgeclip.scores import RANKS, Score
from edgeclip.testset import TestSet, choose_test_sets, count_samples, open_test_set

if TYPE_CHECKING:
    from edgeclip.model import Model

WAYS = ("image_to_text", "text_to_image")
NEAREST = max(RANKS)
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@click.command(
    "embeddings",
    cls=Command,
    epilog=examples(
        "python -m edgeclip.benchmarks.embeddings b32.edgeclip --data eval/ --sets wds_flickr8k",
        "python -m edgeclip.benchmarks.embeddings b32.edgeclip --data eval/ --clip 4 --clip 8 --json",
    ),
)
@bundle_argument
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A folder of test sets.")
@click.option("--sets", help="Names of test sets that have captions, with commas; all such that the folder has.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Images of each set; 0: all.")
@click.option(
    "--clip",
    "clips",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    help="Clip int8 here, too, in standard deviations; may be given again.",
)
@click.option(
    "--cut",
    "cuts",
    type=click.IntRange(min=1),
    multiple=True,
    help="Measure the first so many dimensions, too, although the model was not trained for them; may be given again.",
)
@engine_options
@click.pass_obj
def command(
    output: Output,
    bundle: Path,
    data: Path,
    sets: str | None,
    limit: int,
    clips: tuple[float, ...],
    cuts: tuple[int, ...],
    engine: Engine,
) -> None:
    """Recall of BUNDLE's embeddings in each dtype, and in each number of dimensions that the model was trained for.

    Both ways, against float32 on the same images and captions. Ties go to the earlier row, as in the search that is
    measured.
    """
    opened = choose_retrieval(data, [name.strip() for name in (sets or "").split(",") if name.strip()], limit)
    with engine.load(bundle) as model:
        if len(model.info.artifacts) < 2:
            raise UsageError(f"{bundle}: recall needs both towers, and one is missing")
        variants = choose_variants(with_cuts(model.bundle.manifest.model, cuts), clips)
        output.document |= {"bundle": model.bundle.digest, "backend": model.info.backend, "clip": quantized.CLIP}
        total = sum(count_samples(one.folder, one.limit) for one in opened)
        with progress.bar(output, "embedding", total) as advance:
            embedded = [embed_both(model, one, advance) for one in opened]
    found = [result for one in embedded for result in measure(one, variants)]
    output.document["results"] = found
    for one in embedded:
        show(output, [result for result in found if result.data == one.name])


@dataclass(frozen=True)
class Embedded:
    """A test set, embedded once in float32."""

    name: str
    images: Embeddings
    """[N, D]."""
    captions: Embeddings
    """[M, D]."""
    owners: Ints
    """int64 [M], the image that each caption belongs to."""


@dataclass(frozen=True)
class Variant:
    """One way of making embeddings small."""

    name: str
    form: Form
    rescored: bool = False
    """Whether what it finds is ranked again by float32."""
    clip: float | None = None
    """Standard deviations at which int8 is clipped instead of at `quantized.CLIP`."""

    def apply(self, rows: Embeddings) -> Array:
        """float32 [N, D] made small."""
        if self.clip is None:
            return self.form.apply(rows)
        level = min(self.clip / math.sqrt(self.form.dim), 1.0) / quantized.LEVELS
        return np.asarray(np.clip(np.rint(rows / level), -quantized.LEVELS, quantized.LEVELS), np.int8)

    def search(self, index: Embeddings, queries: Embeddings) -> Ints:
        """Positions int64 [Q, 10] in the index, made small both."""
        again = index if self.rescored else None
        asked = queries if self.rescored else self.apply(queries)
        return quantized.search(self.apply(index), asked, NEAREST, rescore=again).positions


@dataclass(frozen=True)
class Difference:
    """A share less float32's on the same queries, in percentage points, with its 95 % interval."""

    value_pt: float
    low_pt: float
    high_pt: float


@dataclass(frozen=True)
class Result:
    """What one variant does to one test set."""

    data: str
    variant: str
    dim: int
    bytes_per_vector: int
    rescored_bytes: int
    """More bytes of each vector, of which a search reads those of its candidates alone."""
    scores: dict[str, Score]
    """By metric: `image_to_text_r1` …"""
    differences: dict[str, Difference]
    kept: dict[str, float]
    """By way, the share of float32's ten nearest that are among the ten nearest."""


def choose_retrieval(folder: Path, wanted: Sequence[str], limit: int = 0) -> list[TestSet]:
    """The sets with captions that are wanted, or all that there are.

    Raises:
        DataError: as `choose_test_sets`.
        UsageError: as `choose_test_sets`, or one has no captions, or none has.
    """
    opened = [open_test_set(folder / name, limit=limit) for name in choose_test_sets(folder, wanted)]
    with_captions = [one for one in opened if one.is_retrieval]
    without = [one.name for one in opened if not one.is_retrieval]
    if (wanted and without) or not with_captions:
        raise UsageError(f"{folder}: no captions in {', '.join(without)}", hint="recall needs sets with captions")
    return with_captions


def with_cuts(spec: ModelSpec, cuts: Sequence[int]) -> ModelSpec:
    """The model as if it had been trained for these numbers of dimensions, too.

    Raises:
        UsageError: it has no more than so many.
    """
    if beyond := [cut for cut in cuts if cut >= spec.embed_dim]:
        raise UsageError(f"--cut {beyond[0]}: the model has {spec.embed_dim} dimensions")
    return msgspec.structs.replace(spec, matryoshka=tuple(sorted({*spec.matryoshka, *cuts})))


def choose_variants(spec: ModelSpec, clips: Sequence[float] = ()) -> list[Variant]:
    """Those that a model can give; float32 of all dimensions is the first."""
    found = []
    for dim in (spec.embed_dim, *reversed(spec.matryoshka)):
        dtypes = [dtype for dtype in DTYPES if dtype != "binary" or dim % 8 == 0]
        forms = [choose_form(spec, dtype, dim) for dtype in dtypes]
        found += [Variant(form.dtype, form) for form in forms]
        if dim == spec.embed_dim:
            found += [Variant("binary, rescored", form, rescored=True) for form in forms if form.dtype == "binary"]
            found += [Variant(f"int8, clip {clip:g}", choose_form(spec, "int8"), clip=clip) for clip in clips]
    return found


def embed_both(model: Model, data: TestSet, advance: progress.Advance = lambda amount: None) -> Embedded:
    """Embed a test set's images and captions in float32.

    Raises:
        DataError, ImageDecodeError, ImageTooLargeError: it is damaged.
    """
    found = embed_set(model, data, advance)
    return Embedded(data.name, found.images, model.encode_text(found.captions), found.owners)


def measure(data: Embedded, variants: Sequence[Variant]) -> list[Result]:
    """What each variant does, against the first."""
    found = [_nearest(data, variant) for variant in variants]
    return [_result(data, variant, nearest, found[0]) for variant, nearest in zip(variants, found, strict=True)]


def _nearest(data: Embedded, variant: Variant) -> dict[str, Ints]:
    """By way, the positions of what each query finds."""
    return {
        "image_to_text": variant.search(data.captions, data.images),
        "text_to_image": variant.search(data.images, data.captions),
    }


def _result(data: Embedded, variant: Variant, nearest: dict[str, Ints], exact: dict[str, Ints]) -> Result:
    n, shares, differences = len(data.images), {}, {}
    for way in WAYS:
        right, reference = _right(data, way, nearest[way]), _right(data, way, exact[way])
        for rank in RANKS:
            metric, hits, before = f"{way}_r{rank}", _first(right, rank), _first(reference, rank)
            shares[metric] = scores.score(data.name, metric, float(hits.mean()), n)
            differences[metric] = difference(hits, before, n)
    form = variant.form
    return Result(
        data=data.name,
        variant=variant.name,
        dim=form.dim,
        bytes_per_vector=form.bytes_per_vector,
        rescored_bytes=4 * form.dim if variant.rescored else 0,
        scores=shares,
        differences=differences,
        kept={way: _kept(nearest[way], exact[way]) for way in WAYS},
    )


def _right(data: Embedded, way: str, found: Ints) -> Bools:
    """[Q, 10]: whether what was found belongs to the query."""
    if way == "image_to_text":
        return np.asarray(data.owners[found] == np.arange(len(data.images))[:, None])
    return np.asarray(found == data.owners[:, None])


def _first(right: Bools, rank: int) -> Bools:
    """[Q]: whether the first few of what was found have one that is right."""
    return np.asarray(right[:, :rank].any(axis=1))


def _kept(found: Ints, exact: Ints) -> float:
    return float((found[:, :, None] == exact[:, None, :]).any(axis=1).mean())


def difference(hits: Bools, before: Bools, n: int) -> Difference:
    """How many more of the same queries are right, with an interval from those of what was gained and of what was lost.

    Shares that are small and seldom change together, as these, are nearly independent; where nothing changed, the
    interval says what n images could not have shown.

    Source: R. G. Newcombe, "Interval estimation for the difference between independent proportions", 1998, method 10.
    """
    gained = scores.score("", "", float((hits & ~before).mean()), n)
    lost = scores.score("", "", float((before & ~hits).mean()), n)
    value = gained.value - lost.value
    down = math.hypot(gained.value - gained.low, lost.high - lost.value)
    up = math.hypot(gained.high - gained.value, lost.value - lost.low)
    return Difference(100 * value, 100 * (value - down), 100 * (value + up))


def show(output: Output, results: Sequence[Result]) -> None:
    """Print the results of one test set."""
    metrics = [f"{way}_r{rank}" for way in WAYS for rank in RANKS]
    heads = [f"{'text' if way == 'image_to_text' else 'image'} R@{rank}" for way in WAYS for rank in RANKS]
    first = results[0]
    n = first.scores[metrics[0]].n
    output.table(
        f"{first.data}, {n} images: recall of an image's texts and of a text's image, and float32's ten nearest, in %",
        ("embeddings", "dims", "bytes", *heads, "texts kept", "images kept"),
        [[*_named(one), *(f"{100 * one.scores[m].value:.1f}" for m in metrics), *_shares(one)] for one in results],
    )
    output.table(
        "Difference to float32 on the same queries, in points, with its 95 % interval",
        ("embeddings", "dims", "bytes", *heads),
        [[*_named(one), *(_interval(one.differences[m]) for m in metrics)] for one in results[1:]],
    )


def _named(result: Result) -> list[str]:
    more = f" + {result.rescored_bytes}" if result.rescored_bytes else ""
    return [result.variant, str(result.dim), f"{result.bytes_per_vector}{more}"]


def _shares(result: Result) -> list[str]:
    return [f"{100 * result.kept[way]:.1f}" for way in WAYS]


def _interval(found: Difference) -> str:
    return f"{found.value_pt:+.1f} ({found.low_pt:+.1f} to {found.high_pt:+.1f})"


if __name__ == "__main__":
    from edgeclip.cli import main

    sys.exit(main(command=command, name="python -m edgeclip.benchmarks.embeddings"))
