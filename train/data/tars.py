"""WebDataset tars, plain or gzipped, from files, commands and URLs; the `webdataset` library finds and groups them."""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from edgeclip.errors import DataError, TargetUnavailableError
from edgeclip.train.data.damage import Damage
from edgeclip.train.data.sample import IMAGE_SUFFIXES, Sample, Shard

PIPE = "pipe:"
_BLOCK = 512
_GZIP = b"\x1f\x8b"


class Watched:
    """A stream that is decompressed where it must be, and knows whether it has come to the end mark of a tar.

    Python's tarfile takes a tar that is cut between two files, or anywhere in gzip, for a whole one.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._begun = False
        self._last = b""

    @property
    def ended(self) -> bool:
        """Whether the last block that was read is empty."""
        return len(self._last) == _BLOCK and not any(self._last)

    def read(self, size: int) -> bytes:
        """As many bytes, or what is left.

        Raises:
            EOFError: the gzip stream is cut.
            OSError: it is damaged, or the command failed.
        """
        if not self._begun:
            self._begin()
        data = cast("bytes", self._stream.read(size))
        self._last = (self._last + data)[-_BLOCK:]
        return data

    def _begin(self) -> None:
        self._begun = True
        joined = _Joined(self._stream.read(len(_GZIP)), self._stream)
        self._stream = gzip.GzipFile(fileobj=cast("BinaryIO", joined)) if joined.head == _GZIP else joined


class _Joined:
    """Bytes that were read already, and the stream that they came from."""

    def __init__(self, head: bytes, stream: Any) -> None:
        self.head = head
        self._left = head
        self._stream = stream

    def read(self, size: int) -> bytes:
        left, self._left = self._left[:size], self._left[size:]
        return left + cast("bytes", self._stream.read(size - len(left))) if size > len(left) else left


def tar_shard(url: str, repeat: float) -> Shard:
    """One tar as a shard."""
    local = None if ":" in url.split("/")[0] else Path(url)
    name = (local.name if local else url).removesuffix(".gz").removesuffix(".tar")
    return Shard(name, partial(_read_tar, url, name), repeat, local)


def expand(pattern: str, root: Path) -> list[str]:
    """`{000..127}` and `*` of one entry, sorted; `pipe:` commands and URLs as they are.

    Raises:
        DataError: a path matches no file.
        TargetUnavailableError: webdataset is not installed.
    """
    webdataset = _webdataset()
    if pattern.startswith(PIPE):
        return [pattern]
    urls: list[str] = []
    for url in webdataset.shardlists.expand_urls(pattern):
        if ":" in url.split("/")[0]:
            urls.append(url)
            continue
        found = sorted(glob.glob(str(root / url)))  # noqa: PTH207 - the root may itself be a pattern of a user
        if not found:
            raise DataError(f"{url}: no such shard in {root}", hint="set data.root=... to the folder that has it")
        urls += found
    return urls


def _webdataset() -> Any:
    try:
        import webdataset
    except ModuleNotFoundError as exc:
        if exc.name != "webdataset":
            raise
        raise TargetUnavailableError(
            "reading shards needs webdataset, which is not installed", hint="pip install 'edgeclip[train]'"
        ) from exc
    return webdataset


def _read_tar(url: str, name: str, damage: Damage) -> Iterator[Sample]:
    """The samples of one tar. A tar that ends early gives those before its end, and counts as a torn shard."""
    damage.begin_shard(name)
    try:
        stream = _webdataset().gopen(url)
    except OSError as exc:
        damage.torn(name, exc)
        return
    through = False
    try:
        for fields in _groups(url, Watched(stream), partial(_torn, damage, name)):
            try:
                yield _sample(fields, name)
            except (ValueError, KeyError, TypeError) as exc:
                damage.bad(f"{name}/{fields.get('__key__')}", exc)
        through = True
    finally:
        _close(stream, name, damage if through else None)


def _groups(url: str, stream: Watched, handler: Callable[[Exception], bool]) -> Iterator[Mapping[str, Any]]:
    """The files of a tar's samples, by suffix."""
    tariterators = _webdataset().tariterators
    torn = False

    def stop(exc: Exception) -> bool:
        nonlocal torn
        torn = True
        return handler(exc)

    files = tariterators.tar_file_expander([{"url": url, "stream": stream}], handler=stop)
    yield from tariterators.group_by_keys(files, handler=stop)
    if not torn and not stream.ended:
        handler(EOFError("ends without a tar's end mark: truncated"))


def _torn(damage: Damage, name: str, exc: Exception) -> bool:
    """Called when a tar cannot be read on; false: it is not tried."""
    damage.torn(name, exc)
    return False


def _close(stream: Any, name: str, damage: Damage | None) -> None:
    """A command whose output was read to its end must have succeeded; one that is left early may complain."""
    try:
        stream.close()
    except OSError as exc:
        if damage is not None:
            damage.torn(name, exc)


def _sample(fields: Mapping[str, Any], shard: str) -> Sample:
    """One group of a tar's files.

    Raises:
        ValueError: it has no image or no text.
    """
    image = next((fields[suffix] for suffix in IMAGE_SUFFIXES if suffix in fields), None)
    if image is None:
        raise ValueError(f"no image among {', '.join(sorted(k for k in fields if not k.startswith('__')))}")
    captions, names = _texts(fields)
    if not captions and not names:
        raise ValueError("no caption")
    return Sample(f"{shard}/{fields['__key__']}", image, captions, names)


def _texts(fields: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions and class names of a sample."""
    if "json" not in fields:
        lines = fields["txt"].decode("utf-8").splitlines() if "txt" in fields else []
        return tuple(line.strip() for line in lines if line.strip()), ()
    described = json.loads(fields["json"])
    if not isinstance(described, dict):
        raise ValueError("its JSON is no object")
    captions = described.get("captions") or [c for c in [described.get("caption")] if c]
    return _strings(captions), _strings(described.get("names", []))


def _strings(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("its captions or names are no list of strings")
    return tuple(dict.fromkeys(value.strip() for value in values if value.strip()))
