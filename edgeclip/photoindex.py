"""`PhotoIndex`: the photographs of a folder, embedded once and kept, to be searched."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from edgeclip import cache, indexfile, neighbours, publish
from edgeclip.backends.base import Array
from edgeclip.errors import ExportLockedError, InputError, InputShapeError, PhotoIndexError, UsageError
from edgeclip.indexfile import ANEW, Facts, IndexFile, Maker, Picture, open_file
from edgeclip.model import Model
from edgeclip.nearest import Advance, Method, Nearest, Start
from edgeclip.picturefiles import Stamp, digest_of, scan

FLOATING = ("fp32", "fp16")


@dataclass(frozen=True)
class Match:
    """A picture that was found."""

    path: str
    cosine: float


@dataclass(frozen=True)
class Unreadable:
    """A picture that the index leaves out."""

    path: str
    reason: str


@dataclass(frozen=True)
class Update:
    """What an update did, in pictures."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    recognised: int = 0
    """Of those added or changed, how many have a content that was known; they were not embedded again."""
    unreadable: list[Unreadable] = field(default_factory=list)
    """Of those added or changed."""


@dataclass(frozen=True)
class _Plan:
    """What has to be done for the index to be that of the folder."""

    fresh: dict[str, Stamp]
    old: dict[str, int]
    """Ids of pictures that are listed with what their files were before."""
    gone: list[int]
    pictures: dict[int, Picture]


class PhotoIndex:
    """The embeddings of a folder's pictures, in a file. Made by `open_index`; not for several threads at once."""

    def __init__(self, folder: Path, model: Model, file: IndexFile, threshold: int) -> None:
        self.folder = folder
        self.model = model
        self._file = file
        self._nearest = Nearest(file, threshold)

    @property
    def path(self) -> Path | None:
        """The index's file; None where it is in memory."""
        return self._file.path

    @property
    def method(self) -> Method:
        """`exact` where a search compares with every picture, `approximate` where it follows a graph of neighbours."""
        return self._nearest.method

    def __len__(self) -> int:
        """Pictures that can be found."""
        return self._nearest.contents().facts.embeddings

    def unreadable(self) -> list[Unreadable]:
        """All pictures that are left out, and why."""
        pictures = self._nearest.contents().pictures.values()
        return [Unreadable(self._full(one.path), one.reason) for one in pictures if one.reason]

    def update(self, *, batch_size: int | None = None, start: Start = lambda name, amount: lambda done: None) -> Update:
        """Embed what is new in the folder or has changed, and drop what is gone. Each batch is kept when it is done.

        A file is looked at again when its size or its time of modification changes.

        Raises:
            InputError: the folder does not exist, or has no picture.
            UsageError: another process is updating the index.
            PhotoIndexError: the index is damaged.
            ResourceError: the disk is full.
        """
        found = scan(self.folder)
        contents = self._file.contents(embeddings=False)
        plan = _compare(found, contents.pictures)
        if not plan.fresh and not plan.gone and not self._nearest.graph_is_due(contents):
            return Update(unchanged=len(found))
        with _locked(self.path, self.folder):
            plan = _compare(found, self._file.contents(embeddings=False).pictures)
            try:
                return self._carry_out(plan, len(found), batch_size, start)
            finally:
                self._nearest.forget()

    def search(self, queries: Array, k: int = 10) -> list[list[Match]]:
        """The `k` pictures that are most similar to each query, best first, with their cosines.

        Args:
            queries: floating [Q, D], each L2-normalised: what the model makes of texts or of images.

        Raises:
            InputShapeError: they are of other dimensions.
            UsageError: k is less than 1.
            PhotoIndexError: the index is damaged.
        """
        dim = self.model.info.embed_dim
        if np.ndim(queries) != 2 or queries.shape[1] != dim:
            raise InputShapeError(f"queries: expected [Q, {dim}], got {list(np.shape(queries))}")
        found = self._nearest.search(queries, k)
        paths = {number: self._full(one.path) for number, one in self._nearest.contents().pictures.items()}
        return [[Match(paths[number], cosine) for number, cosine in one] for one in found]

    def close(self) -> None:
        """Close the file; what was found stays valid."""
        self._nearest.forget()
        self._file.close()

    def __enter__(self) -> PhotoIndex:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _full(self, path: str) -> str:
        return str(self.folder / path)

    def _carry_out(self, plan: _Plan, count: int, batch_size: int | None, start: Start) -> Update:
        advance = start("indexing", len(plan.fresh))
        recognised = self._recognise(plan)
        advance(len(recognised))
        self._file.change(plan.gone, [])
        rest = [path for path in plan.fresh if path not in recognised]
        unreadable = self._embed(plan, rest, batch_size, advance)
        if self._nearest.graph_is_due(self._file.contents(embeddings=False)):
            self._nearest.build_graph(start)
        return Update(
            added=len(plan.fresh) - len(plan.old),
            changed=len(plan.old),
            removed=len(plan.gone),
            unchanged=count - len(plan.fresh),
            recognised=len(recognised),
            unreadable=unreadable,
        )

    def _recognise(self, plan: _Plan) -> set[str]:
        """Put in the pictures whose content is known under another name or time; returns their paths."""
        known = {one.digest: number for number, one in plan.pictures.items() if one.digest and not one.reason}
        sizes = {plan.pictures[number].stamp.size for number in known.values()}
        candidates = [path for path, stamp in plan.fresh.items() if stamp.size in sizes]
        digests = {path: digest_of(self._full(path), plan.fresh[path]) for path in candidates}
        twins = {path: known[digest] for path, digest in digests.items() if digest in known}
        ids, rows = self._file.embeddings_of(list(twins.values()))
        vectors = dict(zip(ids.tolist(), rows, strict=True))
        added = [(Picture(path, plan.fresh[path], digests[path]), vectors[twin]) for path, twin in twins.items()]
        self._file.change([plan.old[path] for path in twins if path in plan.old], added)
        return set(twins)

    def _embed(self, plan: _Plan, paths: Sequence[str], batch_size: int | None, advance: Advance) -> list[Unreadable]:
        """Embed batch by batch, and keep each; returns what cannot be read."""
        full, unreadable = [self._full(path) for path in paths], []
        for batch in self.model.stream_image(full, batch_size=batch_size, on_error="skip"):
            rows = dict(zip(batch.indices, batch.embeddings, strict=True))
            reasons = {one.index: one.reason for one in batch.skipped}
            done = sorted([*rows, *reasons])
            replaced = [plan.old[paths[i]] for i in done if paths[i] in plan.old]
            pictures = [_picture(paths[i], full[i], plan.fresh[paths[i]], reasons.get(i, "")) for i in done]
            self._file.change(replaced, [(one, rows.get(i)) for i, one in zip(done, pictures, strict=True)])
            unreadable += [Unreadable(full[i], reasons[i]) for i in done if i in reasons]
            advance(len(done))
        return unreadable


def open_index(
    folder: str | os.PathLike[str],
    model: Model,
    *,
    path: str | os.PathLike[str] | None = None,
    reindex: bool = False,
    threshold: int = neighbours.THRESHOLD,
) -> PhotoIndex:
    """The index of a folder's pictures, as it was left; `update` brings it up to date.

    Args:
        model: with its image tower.
        path: the index's file; by default the folder's own in the cache directory, or memory where there is none.
        reindex: begin anew, whatever is there.
        threshold: embeddings from which on a graph of neighbours is made, where usearch is installed.

    Raises:
        PhotoIndexError: the index was made by another bundle, precision or arithmetic, of another folder or in another
            format, or is damaged.
        InputError: there is no such folder.
        UsageError: the index cannot be written, or `path` is another kind of file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    place = Path(path) if path is not None else _in_cache(root)
    new = Facts(os.fsencode(root.resolve()).hex(), _maker(model))
    if reindex and place is not None:
        with _locked(place, root):
            _remove(place, ours=path is None)
    file = open_file(place, new)
    try:
        _check(file, new, root)
    except BaseException:
        file.close()
        raise
    return PhotoIndex(root, model, file, threshold)


def _in_cache(folder: Path) -> Path | None:
    root = cache.directory()
    if root is None:
        return None
    place = root / "photographs" / f"{cache.fingerprint(os.fsencode(folder.resolve()))}.index"
    try:
        place.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise UsageError(f"{place.parent}: {exc.strerror}", hint="keep the index elsewhere: --index PATH") from exc
    return place


def _maker(model: Model) -> Maker:
    info = model.info
    if "image" not in info.artifacts:
        raise UsageError("the image tower is not loaded", hint="load it with tower='image' or tower=None")
    artifact = "" if info.precision in FLOATING else info.artifacts["image"]
    return Maker(info.name, info.bundle, info.precision, info.compute, artifact, info.embed_dim)


def _check(file: IndexFile, expected: Facts, folder: Path) -> None:
    """
    Raises:
        PhotoIndexError: the index is of another folder, or made by another model.
    """
    found = file.facts()
    if found.folder != expected.folder:
        where = os.fsdecode(bytes.fromhex(found.folder))
        raise PhotoIndexError(f"{file.path}: is the index of {where}, not of {folder}", hint=f"name another, or {ANEW}")
    if found.made_by != expected.made_by:
        raise PhotoIndexError(
            f"{file.path}: the index was made by {_described(found.made_by)}, this is {_described(expected.made_by)}: "
            "their embeddings cannot be compared",
            hint=f"{ANEW}, or keep another with --index PATH (path=)",
        )


def _described(made_by: Maker) -> str:
    digest = made_by.bundle[: len("sha256:") + 8]
    artifact = f", {made_by.artifact}" if made_by.artifact else ""
    return f"{made_by.model!r} ({digest}, {made_by.precision} in {made_by.compute}{artifact})"


def _remove(path: Path, *, ours: bool) -> None:
    """
    Raises:
        UsageError: it is not an index, and not in our own folder.
    """
    try:
        if path.exists() and not ours and not (path.is_file() and indexfile.is_index(path)):
            raise UsageError(
                f"{path}: is not an index of photographs, and will not be replaced", hint="remove it yourself"
            )
        indexfile.remove(path)
    except OSError as exc:
        raise UsageError(f"{path}: cannot be replaced: {exc.strerror or exc}") from exc


@contextmanager
def _locked(path: Path | None, folder: Path) -> Iterator[None]:
    """The right to change the index; in memory it is ours anyway.

    Raises:
        UsageError: another process has it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(publish.lock(path) if path is not None else nullcontext())
        except ExportLockedError as exc:
            hint = "wait for it; what it has embedded is kept"
            raise UsageError(f"another process is indexing {folder}", hint=hint) from exc
        yield


def _compare(found: dict[str, Stamp], pictures: dict[int, Picture]) -> _Plan:
    listed = {one.path: (number, one.stamp) for number, one in pictures.items()}
    fresh = {path: stamp for path, stamp in found.items() if path not in listed or listed[path][1] != stamp}
    old = {path: listed[path][0] for path in fresh if path in listed}
    return _Plan(fresh, old, [number for path, (number, _) in listed.items() if path not in found], pictures)


def _picture(path: str, full: str, stamp: Stamp, reason: str) -> Picture:
    return Picture(path, stamp, digest_of(full, stamp), reason)
