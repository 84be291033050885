"""The accuracy card, `report.json`: what a bundle's model was measured to do, on which artifacts, with which engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from edgeclip import __version__
from edgeclip.bundle import Bundle, put_file
from edgeclip.errors import BundleFormatError, BundleVersionError
from edgeclip.manifest import (
    MAX_BYTES,
    Artifact,
    ByteCount,
    Compute,
    FileEntry,
    Manifest,
    Name,
    Precision,
    Struct,
    parse_json,
)

if TYPE_CHECKING:
    from edgeclip.scores import Score

FILE = "report.json"
FORMAT_VERSION = 1

Share = Annotated[float, Meta(ge=0, le=1)]
Milliseconds = Annotated[float, Meta(gt=0, le=1e7)]
Count = Annotated[int, Meta(ge=1, le=1 << 40)]


class CardScore(Struct, frozen=True):
    """One measured share, with the interval that holds the true one in 95 of 100 cases."""

    data: Name
    metric: Name
    value: Share
    low: Share
    high: Share
    n: Count
    """Images that were tested."""

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} does not lie in its interval, [{self.low}, {self.high}]")


class Cost(Struct, frozen=True):
    """What one call costs, on the machine that measured it."""

    size_bytes: ByteCount
    """Of the artifacts that ran."""
    image_ms: Milliseconds
    """Median of one image, its pixels ready."""
    text_ms: Milliseconds
    """Median of one text, from the string."""
    cpu: Name
    threads: Count


class Card(Struct, frozen=True):
    """The root of `report.json`."""

    format_version: int
    created_by: Name
    backend: Name
    """What ran, with its version."""
    precision: Precision
    """Of the artifacts."""
    compute: Compute
    """Arithmetic of the engine."""
    measured: Annotated[tuple[FileEntry, ...], Meta(min_length=1, max_length=1024)]
    """The files that the scores depend on, as they were then."""
    scores: Annotated[tuple[CardScore, ...], Meta(min_length=1, max_length=1024)]
    notes: dict[Name, Name] = {}
    """Of a test set: what a reader must know of it."""
    cost: Cost | None = None

    def is_stale(self, manifest: Manifest) -> bool:
        """Whether the bundle's artifacts are others than those that were measured."""
        return not set(self.measured) <= set(manifest.files)


def make_card(
    manifest: Manifest,
    artifacts: Sequence[Artifact],
    scores: Sequence[Score],
    *,
    backend: str,
    compute: Compute = "f32",
    notes: Mapping[str, str] | None = None,
    cost: Cost | None = None,
) -> Card:
    """The card of scores that were measured with `artifacts`, which are of one precision."""
    return Card(
        format_version=FORMAT_VERSION,
        created_by=f"edgeclip {__version__}",
        backend=backend,
        precision=artifacts[0].precision,
        compute=compute,
        measured=depends_on(manifest, artifacts),
        scores=tuple(msgspec.convert(score, CardScore, from_attributes=True) for score in scores),
        notes=dict(notes or {}),
        cost=cost,
    )


def depends_on(manifest: Manifest, artifacts: Sequence[Artifact]) -> tuple[FileEntry, ...]:
    """The files that decide what these artifacts compute, the tokenizer's among them, in the manifest's order."""
    names = {name for artifact in artifacts for name in artifact.files}
    if manifest.tokenizer is not None:
        names.add(manifest.tokenizer.file)
    return tuple(entry for entry in manifest.files if entry.path in names)


def read_card(bundle: Bundle) -> Card | None:
    """The bundle's card, if it has one. `Card.is_stale` tells whether it still speaks of the artifacts that are there.

    Raises:
        BundleFormatError: it is malformed.
        BundleVersionError: a newer edgeclip wrote it.
        BundleIntegrityError: it is not what the manifest says.
    """
    entry = next((entry for entry in bundle.manifest.files if entry.path == FILE), None)
    if entry is None:
        return None
    if entry.size > MAX_BYTES:
        raise BundleFormatError(f"{bundle.path}: {FILE}: {entry.size} bytes, the limit is {MAX_BYTES}")
    return decode(bundle.read(FILE), f"{bundle.path}: {FILE}")


def with_card(bundle: Bundle, card: Card) -> Bundle:
    """Put the card into the bundle at `bundle.path`, in place of the one that is there.

    Raises:
        As `bundle.put_file`.
    """
    return put_file(bundle, FILE, encode(card))


def encode(card: Card) -> bytes:
    """Serialise; the same card gives the same bytes."""
    data = msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n"
    decode(data, FILE)  # What could not be read must not be written.
    return data


def decode(data: bytes, name: str) -> Card:
    """Parse and validate; raises as `read_card`, with `name` in front."""
    plain = parse_json(data, name)
    version = plain.get("format_version") if isinstance(plain, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise BundleVersionError(
            f"{name}: format version {version}, this edgeclip reads up to {FORMAT_VERSION}",
            hint="pip install -U edgeclip",
        )
    try:
        card = msgspec.json.decode(data, type=Card)
    except (msgspec.DecodeError, RecursionError, ValueError) as exc:
        raise BundleFormatError(f"{name}: {exc}") from exc
    if card.format_version < 1:
        raise BundleFormatError(f"{name}: format version {card.format_version} does not exist - at `$.format_version`")
    return card
