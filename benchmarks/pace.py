"""How long the variants of a model take, in the same rounds; beside PyTorch and bare products where asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from edgeclip.backends.base import Array
from edgeclip.benchmarks import matmul, results, timing
from edgeclip.benchmarks.calls import Contender
from edgeclip.benchmarks.matmul import Product
from edgeclip.benchmarks.peer import Peer
from edgeclip.benchmarks.prepare import CAPTIONS
from edgeclip.benchmarks.quiet import quietly
from edgeclip.benchmarks.results import AGAIN, Group
from edgeclip.benchmarks.sides import COSINE_MIN, PEER
from edgeclip.benchmarks.subjects import Subject
from edgeclip.benchmarks.timing import Estimate, Samples
from edgeclip.benchmarks.variants import Variant
from edgeclip.errors import ParityError
from edgeclip.model import Model

MAIN = "openvino w8a8"
"""Called twice a round, as a control; and what is held against the machine."""
BATCHES = (1, 32)
RATED = 4
"""Times as many calls, where the tower is held against bare products, as elsewhere."""
_GIGA = 1e9


@dataclass(frozen=True)
class Clock:
    """How much time is taken, and where it is said how far a run is."""

    seconds: float
    """Per contender and group."""
    queries: int
    """At least, per contender and group."""
    threads: int
    patience_s: float
    """How long each group waits for other processes to end."""
    say: Callable[[str], None]

    def time(self, title: str, contenders: Mapping[str, Contender]) -> tuple[dict[str, Samples], list[str]]:
        """Time calls in this process. Returns seconds by label, and what disturbed them."""
        warmup = max(3, *(contender.distinct for contender in contenders.values()))
        with quietly(title, self.patience_s, self.say) as flags:
            found = timing.time_calls(contenders, budget_s=self.seconds, min_queries=self.queries, warmup=warmup)
        return found, flags


@dataclass(frozen=True)
class Rate:
    """How fast something multiplies matrices of 8-bit integers."""

    by: str
    product: str
    p50_ms: float
    operations: int
    rate: Estimate
    """10⁹ operations a second, a multiplication and an addition being two."""


@dataclass(frozen=True)
class Rates:
    """A tower beside bare products of its own shapes, in the same rounds."""

    tower: Rate
    bare: list[Rate]
    best: Rate
    share: Estimate
    """The tower's rate by the best bare one."""
    bound_ms: float
    """What the tower's large products would take, each at the best rate of its shape."""
    covered: float
    """What part of the tower's operations these are."""


@dataclass
class Pace:
    """What was measured of one model."""

    groups: list[Group] = field(default_factory=list)
    rates: Rates | None = None


def measure(clock: Clock, subject: Subject, variants: Sequence[Variant], pixels: Array) -> Pace:
    """Time images at each batch, and single texts.

    Args:
        pixels: uint8 [N, S, S, 3], at least as many as the largest batch.

    Raises:
        ParityError: PyTorch does not compute what the fp32 artifact computes.
    """
    found = Pace()
    with _loaded(variants, clock.threads) as models:
        peer = _peer(subject, models, pixels, clock.threads)
        for batch in BATCHES:
            _images(clock, subject, variants, models, peer, np.ascontiguousarray(pixels[:batch]), found)
        texts = {label: Contender(model.encode_text, CAPTIONS) for label, model in models.items()}
        title = f"{subject.name}: one text, from a string"
        seconds, flags = clock.time(title, controlled(texts))
        found.groups.append(_group(f"{subject.key}/text", title, seconds, flags))
    return found


def _images(
    clock: Clock,
    subject: Subject,
    variants: Sequence[Variant],
    models: Mapping[str, Model],
    peer: Peer | None,
    pixels: Array,
    found: Pace,
) -> None:
    batch = len(pixels)
    contenders = {label: Contender(model.encode_pixels, [pixels]) for label, model in models.items()}
    if peer is not None:
        contenders = {PEER: Contender(peer.encode_pixels, [peer.normalised(pixels)])} | contenders
    title = f"{subject.name}: images, batch {batch}, pixels ready"
    seconds, flags = clock.time(title, controlled(contenders))
    found.groups.append(_group(f"{subject.key}/image/{batch}", title, seconds, flags))
    if peer is not None and batch == max(BATCHES) and MAIN in contenders:
        title = f"{subject.name}: images, batch {batch}, beside bare products"
        found.rates = _beside_products(clock, title, contenders[MAIN], _counted(variants, batch))


def _beside_products(clock: Clock, title: str, main: Contender, counted: Counter[Product]) -> Rates:
    """The tower and bare products, in rounds that hold nothing else, and so are short."""
    bare = _bare(matmul.largest(counted), clock.threads)
    longer = replace(clock, queries=RATED * clock.queries)
    seconds, _ = longer.time(title, {MAIN: main} | {label: call for label, (_, call) in bare.items()})
    return rates(counted, {label: product for label, (product, _) in bare.items()}, seconds)


@contextmanager
def _loaded(variants: Sequence[Variant], threads: int) -> Iterator[dict[str, Model]]:
    models = {variant.label: variant.load(threads) for variant in variants}
    try:
        yield models
    finally:
        for model in models.values():
            model.close()


def _peer(subject: Subject, models: Mapping[str, Model], pixels: Array, threads: int) -> Peer | None:
    """The same model in PyTorch, where its checkpoint is there."""
    if subject.checkpoint is None:
        return None
    first = next(iter(models.values()))
    spec = first.bundle.manifest.tokenizer
    assert spec is not None
    peer = Peer(subject.checkpoint, first.bundle.read(spec.file), threads)
    some = np.ascontiguousarray(pixels[:8])
    least = float((peer.encode_pixels(peer.normalised(some)) * first.encode_pixels(some)).sum(axis=1).min())
    if not least >= COSINE_MIN:
        raise ParityError(
            f"{subject.name}: the cosine of PyTorch and fp32 is {least:.5f}, below {COSINE_MIN}",
            hint="the two do not compute the same, so that there is nothing to time",
        )
    return peer


def controlled(contenders: Mapping[str, Contender]) -> dict[str, Contender]:
    """`MAIN` a second time, under a label of its own."""
    return {**contenders, MAIN + AGAIN: contenders[MAIN].again()} if MAIN in contenders else dict(contenders)


def _group(key: str, title: str, seconds: Mapping[str, Samples], flags: Sequence[str]) -> Group:
    return results.group(key, title, "ms", {label: some * 1e3 for label, some in seconds.items()}, flags=flags)


def _counted(variants: Sequence[Variant], batch: int) -> Counter[Product]:
    """The products of the image tower that is held against the machine; none where it is not there."""
    for variant in variants:
        if variant.label == MAIN:
            [artifact] = variant.bundle.artifacts(tower="image", target=variant.target, precision=variant.precision)
            return matmul.products(variant.bundle, artifact, batch)
    return Counter()


def _bare(products: Sequence[Product], threads: int) -> dict[str, tuple[Product, Contender]]:
    """Each product by each library that has it."""
    found: dict[str, tuple[Product, Contender]] = {}
    for product in products:
        for by, call in matmul.calls(product, threads).items():
            found[f"{by}, {product}"] = product, Contender(_make, [call])
    return found


def _make(call: Callable[[], object]) -> object:
    return call()


def rates(counted: Counter[Product], bare: Mapping[str, Product], seconds: Mapping[str, Samples]) -> Rates:
    """What the samples say of a tower and of bare products.

    Args:
        counted: the tower's products.
        bare: by label, the product that was timed.
        seconds: samples of the same rounds, of `MAIN` and of all bare products, each `REPEATS` times.
    """
    work = matmul.operations(counted)
    once = {label: seconds[label] / matmul.REPEATS for label in bare}
    found = {
        label: _rate(label.partition(",")[0], str(one), one.operations, once[label]) for label, one in bare.items()
    }
    fastest = max(found, key=lambda label: found[label].rate.value)
    ratio, scale = timing.paired_ratio(once[fastest], seconds[MAIN]), work / found[fastest].operations
    quickest: dict[Product, float] = {}
    for label, product in bare.items():
        quickest[product] = min(found[label].p50_ms, quickest.get(product, np.inf))
    return Rates(
        tower=_rate(MAIN, f"image tower, batch {max(BATCHES)}", work, seconds[MAIN]),
        bare=list(found.values()),
        best=found[fastest],
        share=Estimate(ratio.value * scale, ratio.low * scale, ratio.high * scale),
        bound_ms=sum(counted[product] * each for product, each in quickest.items()),
        covered=sum(counted[product] * product.operations for product in quickest) / work,
    )


def _rate(by: str, product: str, work: int, seconds: Samples) -> Rate:
    median = timing.median(seconds)
    per_second = Estimate(*(work / each / _GIGA for each in (median.value, median.high, median.low)))
    return Rate(by, product, 1e3 * median.value, work, per_second)
