"""The index of a folder: what is embedded again, what is refused, and what a death or damage leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip import indexfile, neighbours, photoindex, publish
from edgeclip.benchmarks import search
from edgeclip.benchmarks.search import lifelike, measure, with_rows
from edgeclip.cli import main
from edgeclip.errors import InputError, InputShapeError, PhotoIndexError, UsageError
from edgeclip.model import Model
from edgeclip.nearest import Nearest
from edgeclip.photoindex import Match, PhotoIndex, Update, open_index
from edgeclip.testset import open_test_set
from tests import pictures

ROOT = Path(__file__).resolve().parents[2]
COUNT = 6
BATCH = 2


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with edgeclip.load(threads=1) as loaded:
        yield loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures.folder(tmp_path / "photos", COUNT)


@pytest.fixture
def index_path(tmp_path: Path) -> Path:
    return tmp_path / "photos.index"


def update(folder: Path, model: Model, path: Path | None = None, *, reindex: bool = False) -> Update:
    with open_index(folder, model, path=path, reindex=reindex) as index:
        return index.update(batch_size=BATCH)


def found(folder: Path, model: Model, path: Path | None = None, k: int = 3, seed: int = 0) -> list[Match]:
    """The best for a picture of the folder, after an update."""
    with open_index(folder, model, path=path) as index:
        index.update()
        return index.search(model.encode_image(pictures.encoded(seed)), k)[0]


def names(matches: list[Match]) -> list[str]:
    return [Path(one.path).name for one in matches]


@pytest.fixture
def embedded(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures that the model has embedded for an index; queries are no lists."""
    seen: list[str] = []
    stream = model.stream_image

    def recording(images: Any, **options: Any) -> Any:
        seen.extend(Path(path).name for path in images if isinstance(images, list))
        return stream(images, **options)

    monkeypatch.setattr(model, "stream_image", recording)
    return seen


# --- what is embedded, and what is found --------------------------------------------------------------------------


def test_a_picture_is_found_by_itself_with_the_cosine_of_its_embedding(folder: Path, model: Model) -> None:
    rows = model.encode_image([pictures.encoded(i) for i in range(COUNT)])
    best = found(folder, model, k=COUNT, seed=3)
    assert len(best) == COUNT and best[0].path == str(folder / "0003.png")
    order = np.argsort(-(rows @ rows[3]), kind="stable")
    assert names(best) == [f"{i:04d}.png" for i in order]
    np.testing.assert_allclose([one.cosine for one in best], (rows @ rows[3])[order], atol=1e-5)


def test_nothing_is_embedded_twice(folder: Path, model: Model, embedded: list[str]) -> None:
    assert update(folder, model) == Update(added=COUNT)
    assert update(folder, model) == Update(unchanged=COUNT)
    assert len(embedded) == COUNT


def test_a_new_picture_is_added_alone(folder: Path, model: Model, embedded: list[str]) -> None:
    update(folder, model)
    pictures.folder(folder / "below", 1, first=9)
    assert update(folder, model) == Update(added=1, unchanged=COUNT)
    assert embedded[COUNT:] == ["0009.png"]
    assert found(folder, model, seed=9)[0].path == str(folder / "below" / "0009.png")


def test_a_changed_picture_is_embedded_again(folder: Path, model: Model, embedded: list[str]) -> None:
    update(folder, model)
    (folder / "0002.png").write_bytes(pictures.encoded(20))
    assert update(folder, model) == Update(changed=1, unchanged=COUNT - 1)
    assert embedded[COUNT:] == ["0002.png"]
    best = found(folder, model, seed=20)[0]
    assert Path(best.path).name == "0002.png" and best.cosine == pytest.approx(1, abs=1e-5)


def test_a_picture_that_is_gone_is_found_no_more(folder: Path, model: Model) -> None:
    update(folder, model)
    (folder / "0001.png").unlink()
    assert update(folder, model) == Update(removed=1, unchanged=COUNT - 1)
    assert "0001.png" not in names(found(folder, model, k=COUNT, seed=1))


def test_moved_and_touched_pictures_are_recognised_by_content(folder: Path, model: Model, embedded: list[str]) -> None:
    before = found(folder, model, seed=4)[0].cosine
    (folder / "0004.png").rename(folder / "renamed.png")
    os.utime(folder / "0005.png", (1, 1))
    shutil.copy(folder / "0000.png", folder / "twin.png")
    done = update(folder, model)
    assert done == Update(added=2, changed=1, removed=1, unchanged=COUNT - 2, recognised=3)
    assert len(embedded) == COUNT
    best = found(folder, model, seed=4)[0]
    assert (Path(best.path).name, best.cosine) == ("renamed.png", before)
    assert sorted(names(found(folder, model, k=2, seed=0))) == ["0000.png", "twin.png"]
    assert names(found(folder, model, k=1, seed=5)) == ["0005.png"]


def test_an_unreadable_picture_is_named_and_tried_again_only_when_it_changes(
    folder: Path, model: Model, embedded: list[str]
) -> None:
    bad = folder / "bad.jpg"
    bad.write_bytes(b"no picture")
    with open_index(folder, model) as index:
        done = index.update()
        assert done.added == COUNT + 1 and [one.path for one in done.unreadable] == [str(bad)]
        assert index.unreadable() == done.unreadable and "not an image" in done.unreadable[0].reason
        assert len(index) == COUNT
    assert update(folder, model) == Update(unchanged=COUNT + 1)
    assert embedded.count("bad.jpg") == 1
    bad.write_bytes(pictures.encoded(8))
    assert update(folder, model) == Update(changed=1, unchanged=COUNT)
    assert names(found(folder, model, seed=8))[0] == "bad.jpg"


def test_a_picture_that_becomes_unreadable_is_found_no_more(folder: Path, model: Model) -> None:
    update(folder, model)
    (folder / "0003.png").write_bytes(b"damaged")
    assert len(update(folder, model).unreadable) == 1
    assert "0003.png" not in names(found(folder, model, k=COUNT))


@pytest.mark.skipif(sys.platform != "linux", reason="file names of bytes that are no text")
def test_names_of_any_bytes_come_back_as_they_are(folder: Path, model: Model) -> None:
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\n.png"))
    odd.write_bytes(pictures.encoded(30))
    assert found(folder, model, seed=30)[0].path == str(odd)


def test_a_pipe_among_the_pictures_is_left_alone(folder: Path, model: Model) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes on this system")
    os.mkfifo(folder / "pipe.jpg")
    assert update(folder, model) == Update(added=COUNT)


def test_a_folder_without_pictures_says_so(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no picture in .* \(their names end with .*\.jpg"):
        update(tmp_path, model)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        open_index(tmp_path / "nowhere", model)


def test_queries_of_other_dimensions_are_refused(folder: Path, model: Model) -> None:
    with (
        open_index(folder, model) as index,
        pytest.raises(InputShapeError, match=r"queries: expected \[Q, 256\], got \[1, 3\]"),
    ):
        index.search(np.ones((1, 3), np.float32))


def test_without_a_cache_directory_the_index_is_in_memory(
    folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="working without a cache"), open_index(folder, model) as index:
        assert index.path is None
        index.update()
        assert len(index) == COUNT


# --- what is refused ----------------------------------------------------------------------------------------------


def change_facts(path: Path, old: bytes, new: bytes) -> None:
    """Write other facts, with their checksum."""
    with sqlite3.connect(path) as database:
        (data,) = database.execute("SELECT json FROM facts").fetchone()
        assert old in data
        data = data.replace(old, new)
        database.execute("UPDATE facts SET json = ?, checksum = ?", (data, indexfile._checksum(data)))
    database.close()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"bundle":"sha256:', b'"bundle":"sha256:0'),
        (b'"precision":"fp16"', b'"precision":"w8a8"'),
        (b'"compute":"f32"', b'"compute":"bf16"'),
        (b'"artifact":""', b'"artifact":"onnx-w8a8/image.onnx"'),
    ],
)
def test_an_index_that_another_model_made_is_refused(
    folder: Path, model: Model, index_path: Path, old: bytes, new: bytes
) -> None:
    update(folder, model, index_path)
    change_facts(index_path, old, new)
    with pytest.raises(PhotoIndexError, match=r"the index was made by 'edge-s'.*this is 'edge-s'.*--reindex"):
        update(folder, model, index_path)
    assert update(folder, model, index_path, reindex=True) == Update(added=COUNT)


def test_the_index_of_another_folder_is_refused(folder: Path, model: Model, index_path: Path, tmp_path: Path) -> None:
    update(folder, model, index_path)
    other = pictures.folder(tmp_path / "other", 1)
    with pytest.raises(PhotoIndexError, match=r"is the index of .*photos, not of .*other"):
        update(other, model, index_path)
    assert update(folder, model, index_path) == Update(unchanged=COUNT)


def test_an_index_of_another_format_is_refused(folder: Path, model: Model, index_path: Path) -> None:
    update(folder, model, index_path)
    with sqlite3.connect(index_path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(PhotoIndexError, match=r"has index format 99, this edgeclip has 1 .*--reindex"):
        update(folder, model, index_path)
    assert update(folder, model, index_path, reindex=True) == Update(added=COUNT)


def test_a_file_that_is_no_index_is_neither_read_nor_replaced(folder: Path, model: Model, tmp_path: Path) -> None:
    precious, foreign = tmp_path / "letter.txt", tmp_path / "other.sqlite"
    precious.write_text("dear reader, " * 100)
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE t (x)")
    database.close()
    for path in (precious, foreign):
        before = path.read_bytes()
        with pytest.raises(PhotoIndexError, match="is not an index of photographs"):
            update(folder, model, path)
        with pytest.raises(UsageError, match="is not an index of photographs, and will not be replaced"):
            update(folder, model, path, reindex=True)
        assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_an_error(folder: Path, model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be opened"):
        update(folder, model, tmp_path / "nowhere" / "x.index")


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A folder and the bytes of its index."""
    place = tmp_path_factory.mktemp("whole")
    folder = pictures.folder(place / "photos", 40)
    update(folder, model, place / "x.index")
    return folder, (place / "x.index").read_bytes()


def answer(folder: Path, model: Model, path: Path) -> list[str]:
    with open_index(folder, model, path=path) as index:
        return names(index.search(model.encode_image(pictures.encoded(7)), 5)[0])


def check_changed_bytes(whole: tuple[Path, bytes], model: Model, path: Path, count: int) -> None:
    """Each changed byte either is refused or does not show."""
    folder, data = whole
    path.write_bytes(data)
    expected = answer(folder, model, path)
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(data), count):
        damaged = bytearray(data)
        damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            assert answer(folder, model, path) == expected
        except PhotoIndexError:
            refused += 1
    assert refused > count / 3


def test_no_changed_byte_changes_what_is_found(whole: tuple[Path, bytes], model: Model, index_path: Path) -> None:
    check_changed_bytes(whole, model, index_path, 60)


@pytest.mark.nightly
def test_no_changed_byte_of_many_changes_what_is_found(
    whole: tuple[Path, bytes], model: Model, index_path: Path
) -> None:
    check_changed_bytes(whole, model, index_path, 3000)


def test_a_truncated_index_is_refused_and_made_anew(whole: tuple[Path, bytes], model: Model, index_path: Path) -> None:
    folder, data = whole
    for length in (100, 4096, len(data) // 2, len(data) - 4096, len(data) - 1):
        index_path.write_bytes(data[:length])
        with pytest.raises(PhotoIndexError, match="--reindex"):
            answer(folder, model, index_path)
    assert update(folder, model, index_path, reindex=True) == Update(added=40)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM pictures WHERE id = 3", "lists 39 pictures instead of 40"),
        ("DELETE FROM embeddings WHERE id = 3", "has 39 embeddings instead of 40"),
        ("UPDATE pictures SET path = x'61' WHERE id = 3", "picture 3 is not what was written"),
        ("UPDATE embeddings SET vector = zeroblob(1024) WHERE id = 3", "embedding 3 is not what was written"),
        ("UPDATE facts SET json = x'7b7d'", "its facts are not what was written"),
        ("DROP TABLE embeddings", "no such table"),
    ],
)
def test_rows_that_are_not_what_was_written_are_refused(
    whole: tuple[Path, bytes], model: Model, index_path: Path, statement: str, message: str
) -> None:
    folder, data = whole
    index_path.write_bytes(data)
    with sqlite3.connect(index_path) as database:
        database.execute(statement)
    database.close()
    with pytest.raises(PhotoIndexError, match=f"the index is damaged: .*{message}.*--reindex"):
        answer(folder, model, index_path)


# --- death and company --------------------------------------------------------------------------------------------

DYING = """
import os, signal, sys
import edgeclip
from edgeclip.photoindex import open_index
folder, path, die_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
done = 0
def start(label, total):
    def advance(count):
        global done
        done += count
        if done >= die_at:
            os.kill(os.getpid(), signal.SIGKILL)
    return advance
with edgeclip.load(tower="image", threads=1) as model, open_index(folder, model, path=path) as index:
    index.update(batch_size=2, start=start)
"""


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL on this system")
def test_a_run_that_is_killed_goes_on_where_it_stopped(
    folder: Path, model: Model, index_path: Path, embedded: list[str]
) -> None:
    assert child(DYING, folder, index_path, 4).wait(60) == -signal.SIGKILL
    assert update(folder, model, index_path) == Update(added=2, unchanged=4)
    assert embedded == ["0004.png", "0005.png"]
    assert names(found(folder, model, index_path, seed=1))[0] == "0001.png"


TORN = (
    """
import os, signal, sys
from edgeclip import indexfile
create, put = indexfile.IndexFile.__init__, indexfile.IndexFile._put
def without_cache(self, *arguments):
    create(self, *arguments)
    self._database.execute("PRAGMA cache_size = 1")
def die(self, facts):
    put(self, facts)
    if facts.pictures == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
indexfile.IndexFile.__init__, indexfile.IndexFile._put = without_cache, die
"""
    + DYING
)
"""Dies within a transaction, of which SQLite has written a part into the file already."""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL on this system")
@pytest.mark.parametrize("pictures_in", [0, 4])
def test_a_death_within_a_transaction_leaves_what_was_before(
    folder: Path, model: Model, index_path: Path, pictures_in: int
) -> None:
    assert child(TORN, folder, index_path, 10**9, pictures_in).wait(60) == -signal.SIGKILL
    assert index_path.with_name(f"{index_path.name}-journal").stat().st_size
    done = update(folder, model, index_path)
    assert done.unchanged == max(0, pictures_in - BATCH) and done.added == COUNT - done.unchanged
    assert names(found(folder, model, index_path, k=1, seed=5)) == ["0005.png"]


def test_two_that_index_exclude_each_other_and_readers_go_on(folder: Path, model: Model, index_path: Path) -> None:
    update(folder, model, index_path)
    with publish.lock(index_path), open_index(folder, model, path=index_path) as index:
        assert names(index.search(model.encode_image(pictures.encoded(2)), 1)[0]) == ["0002.png"]
    pictures.folder(folder, 1, first=7)
    holder = child(
        "import sys, pathlib; from edgeclip import publish\n"
        "with publish.lock(pathlib.Path(sys.argv[1])):\n    pathlib.Path(sys.argv[2]).touch(); import time; time.sleep(60)",
        index_path,
        folder.parent / "held",
    )
    try:
        while not (folder.parent / "held").exists():
            assert holder.poll() is None
        with pytest.raises(UsageError, match=r"another process is indexing .*photos \(wait for it"):
            update(folder, model, index_path)
        with pytest.raises(UsageError, match="another process is indexing"):
            update(folder, model, index_path, reindex=True)
    finally:
        holder.kill()
        holder.wait()
    assert update(folder, model, index_path) == Update(added=1, unchanged=COUNT)


def test_what_another_process_embeds_meanwhile_is_not_embedded_again(
    folder: Path, model: Model, index_path: Path, embedded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = photoindex._locked

    def wait_for_another(path: Path | None, where: Path) -> Any:
        monkeypatch.setattr(photoindex, "_locked", locked)
        update(folder, model, index_path)
        return locked(path, where)

    with open_index(folder, model, path=index_path) as late:
        monkeypatch.setattr(photoindex, "_locked", wait_for_another)
        assert late.update() == Update(unchanged=COUNT)
    assert len(embedded) == COUNT


# --- many photographs ---------------------------------------------------------------------------------------------

usearch = pytest.mark.skipif(not neighbours.available(), reason="usearch is not installed")


@usearch
def test_the_graph_finds_nearly_what_the_exact_search_finds(tmp_path: Path) -> None:
    rows, queries = lifelike(2000, 50, 32)
    file = with_rows(tmp_path / "x.index", rows)
    exact = Nearest(file, 10**9).search(queries, 10)
    Nearest(file, 0).build_graph(lambda name, amount: lambda done: None)
    near = Nearest(file, 0)
    found = [near.search(query[None], 10)[0] for query in queries]
    assert near.method == "approximate" and not len(near.contents().embeddings)
    shares = [len({i for i, _ in a} & {i for i, _ in b}) / 10 for a, b in zip(exact, found, strict=True)]
    assert np.mean(shares) > 0.95
    for right, same in zip(exact, found, strict=True):
        assert dict(same) == pytest.approx({**dict(same), **{i: c for i, c in right if i in dict(same)}}, abs=1e-6)
    file.close()


@usearch
@pytest.mark.nightly
def test_the_graph_finds_nearly_all_among_real_embeddings(data_dir: Path, model: Model, tmp_path: Path) -> None:
    images: list[bytes] = []
    captions: list[str] = []
    for name in ("wds_flickr8k", "wds_tinyimagenet"):
        for sample in open_test_set(data_dir / "eval" / name):
            images.append(sample.image)
            captions += sample.captions[:1]
    measured = measure(model.encode_image(images), model.encode_text(captions[:200]))
    assert measured.count > 6000 and measured.recall > 0.99


@usearch
def test_the_benchmark_measures_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--count", "300", "--count", "400", "--dim", "16", "--json"]
    assert main(arguments, command=search.command, name="search") == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert [(one["count"], one["dim"]) for one in found] == [(300, 16), (400, 16)]
    assert all(one["recall"] > 0.9 and one["exact_s"] > 0 and one["graph_bytes"] > 0 for one in found)
    assert main(["--rows", __file__], command=search.command, name="search") == 2


@usearch
def test_above_the_threshold_a_graph_is_made_and_kept_as_pictures_come_and_go(
    folder: Path, model: Model, index_path: Path
) -> None:
    pictures.folder(folder, 40)

    def search(seed: int, k: int = 1) -> list[str]:
        with open_index(folder, model, path=index_path, threshold=40) as index:
            index.update()
            assert index.method == "approximate"
            return names(index.search(model.encode_image(pictures.encoded(seed)), k)[0])

    assert search(17) == ["0017.png"]
    before = indexfile.beside(index_path).read_bytes()
    pictures.folder(folder, 1, first=50)
    (folder / "0017.png").write_bytes(pictures.encoded(60))
    assert search(50) == ["0050.png"] and search(60) == ["0017.png"]
    (folder / "0021.png").unlink()
    assert "0021.png" not in search(21, k=40)
    assert indexfile.beside(index_path).read_bytes() == before
    pictures.folder(folder, 10, first=70)
    assert search(75) == ["0075.png"]
    assert indexfile.beside(index_path).read_bytes() != before


@usearch
@pytest.mark.parametrize("damage", ["changed", "truncated", "gone"])
def test_a_damaged_graph_is_made_again(folder: Path, model: Model, index_path: Path, damage: str) -> None:
    def search() -> list[str]:
        with open_index(folder, model, path=index_path, threshold=1) as index:
            index.update()
            assert index.method == "approximate"
            return names(index.search(model.encode_image(pictures.encoded(3)), COUNT)[0])

    expected = search()
    graph = indexfile.beside(index_path)
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 255
    graph.unlink() if damage == "gone" else graph.write_bytes(data if damage == "changed" else data[:-9])
    with open_index(folder, model, path=index_path, threshold=1) as index:
        assert index.method == "exact"
    assert search() == expected


def test_without_usearch_all_are_compared_and_it_says_so(
    folder: Path, model: Model, index_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "available", lambda: False)
    with open_index(folder, model, path=index_path, threshold=1) as index:
        with pytest.warns(UserWarning, match=r"usearch is not installed: each search compares with all 6 pictures"):
            index.update()
        assert index.method == "exact"
        assert names(index.search(model.encode_image(pictures.encoded(3)), 1)[0]) == ["0003.png"]


def test_a_small_index_says_nothing_of_usearch(
    folder: Path, model: Model, index_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "available", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(folder, model, index_path)


def test_it_is_closed_by_with(folder: Path, model: Model) -> None:
    with open_index(folder, model) as index:
        assert isinstance(index, PhotoIndex)
    with pytest.raises(UsageError, match="the index is closed"):
        index.update()
