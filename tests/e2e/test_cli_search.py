"""`search` as it is used."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgeclip
from edgeclip.bundle import Bundle, write_bundle
from edgeclip.cli import contactsheet
from edgeclip.cli.search import Ranked, Result
from tests.cli import document, patched, without
from tests.cli import edgeclip as run

HOSTILE = "<script>alert(1)</script>\" onerror='x'&amp;.png" if sys.platform != "win32" else "&amp;'.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Flat colours, whose names say them, in two folders, and a file that is no picture."""
    for name, colour in {"red": (200, 20, 20), "below/green": (20, 160, 40), "blue": (20, 30, 190)}.items():
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), colour).save(path)
    (tmp_path / "photos" / "bad.jpg").write_text("<html>")
    return tmp_path / "photos"


def test_texts_find_pictures_as_the_api_does(folder: Path) -> None:
    done = run("search", folder, "the colour red", "a green meadow", "--top", "2")
    assert done.returncode == 0, done.stderr
    assert f"skipped: {folder / 'bad.jpg'}" in done.stderr
    assert "3 pictures, 4 new, 0 changed, 0 gone, 1 that cannot be read are left out" in done.stderr
    blocks = done.stdout.strip().split("\n\n")
    paths = [str(folder / name) for name in ("below/green.png", "blue.png", "red.png")]
    with edgeclip.load() as model:
        cosines = model.encode_text(["the colour red", "a green meadow"]) @ model.encode_image(paths).T
    for block, text, row in zip(blocks, ("the colour red", "a green meadow"), cosines, strict=True):
        title, head, *lines = block.split("\n")
        assert (title, head.split()) == (text, ["rank", "cosine", "picture"])
        best = np.argsort(-row)[:2]
        assert [line.split() for line in lines] == [
            [str(rank), f"{row[i]:.4f}", paths[i]] for rank, i in enumerate(best, 1)
        ]


def test_the_json_document(folder: Path) -> None:
    run("search", folder, "x")
    picture = folder / "blue.png"
    found = document(run("search", folder, "x", "--like", picture, "--top", "1", "--json"))
    assert set(found) == {"provenance", "random_weights", "index", "results"}
    index = found["index"]
    assert (index["pictures"], index["unchanged"], index["added"], index["search"]) == (3, 4, 0, "exact")
    assert [one["path"] for one in index["unreadable"]] == [str(folder / "bad.jpg")]
    text, image = found["results"]
    assert (text["kind"], text["query"], len(text["matches"])) == ("text", "x", 1)
    assert (image["kind"], image["query"]) == ("image", str(picture))
    assert image["matches"] == [{"rank": 1, "cosine": pytest.approx(1, abs=1e-5), "path": str(picture)}]


def test_the_index_lies_in_the_cache_or_where_it_is_named(folder: Path, private_cache: Path, tmp_path: Path) -> None:
    place = document(run("search", folder, "x", "--json"))["index"]["path"]
    assert Path(place).parent == private_cache / "photographs"
    document(run("search", folder, "x", "--index", tmp_path / "mine.index", "--json"))
    assert (tmp_path / "mine.index").is_file() and sorted(path.name for path in folder.iterdir()) == [
        *("bad.jpg", "below", "blue.png", "red.png"),
    ]


def test_another_bundle_is_refused_until_the_index_is_made_anew(folder: Path, tiny_bundle: Path) -> None:
    run("search", folder, "x")
    done = run("search", folder, "x", "--model", tiny_bundle)
    assert done.returncode == 4
    assert "the index was made by 'edge-s'" in done.stderr and "--reindex" in done.stderr
    done = run("search", folder, "x", "--model", tiny_bundle, "--reindex")
    assert done.returncode == 0 and "3 pictures, 4 new" in done.stderr and "weights are random" in done.stderr


def test_a_bundle_without_a_text_tower_searches_by_pictures(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    import msgspec

    whole = Bundle.open(tiny_bundle)
    kept = tuple(one for one in whole.manifest.artifacts if one.tower == "image")
    names = {name for one in kept for name in one.files} | {"golden.safetensors", "tokenizer.json"}
    manifest = msgspec.structs.replace(whole.manifest, artifacts=kept)
    files = {one.path: whole.read(one.path) for one in whole.manifest.files if one.path in names}
    write_bundle(tmp_path / "image.edgeclip", manifest, files, replace=False)
    picture = folder / "red.png"
    found = document(run("search", folder, "--like", picture, "--model", tmp_path / "image.edgeclip", "--json"))
    assert found["results"][0]["matches"][0]["path"] == str(picture)
    assert run("search", folder, "x", "--model", tmp_path / "image.edgeclip").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "nothing to search for"),
        (["x", "--html", "nowhere/x.html"], 2, "the directory nowhere does not exist"),
        (["x", "--html", "photo.jpg"], 2, "is to be a .html file"),
        (["x", "--html", "x.html", "--top", "501"], 2, "a contact sheet holds 500 pictures, and there would be 501"),
        (["--like", "nowhere.jpg"], 4, "nowhere.jpg"),
    ],
)
def test_bad_calls_say_so(folder: Path, arguments: list[str], code: int, message: str) -> None:
    done = run("search", folder, *arguments)
    assert done.returncode == code and message in done.stderr, done.stderr


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("<html>")
    done = run("search", tmp_path, "x")
    assert done.returncode == 4 and "none of 1 pictures can be read" in done.stderr


def test_it_needs_neither_torch_nor_usearch_nor_jinja2(folder: Path) -> None:
    assert patched(without("torch", "usearch", "jinja2"), "search", folder, "x").returncode == 0


class Page(HTMLParser):
    """What a browser would make of a page: tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_the_contact_sheet_shows_what_was_found_and_runs_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "red.png").rename(folder / HOSTILE.replace("/", "_"))
    sheet = tmp_path / "found.html"
    done = run("search", folder, "<b>bold</b> & x", "--like", folder / "blue.png", "--html", sheet, "--json")
    assert document(done)["html"] == str(sheet)
    text = sheet.read_text("utf-8")
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer"),
        *("h1", "h2", "p", "ol", "li", "figure", "figcaption", "a", "img", "b", "span", "div"),
    }
    images = page.of("img")
    assert len(images) == 2 * 3 + 1
    assert all(re.fullmatch(r"data:image/jpeg;base64,[\w+/=]+", one["src"] or "") for one in images)
    assert HOSTILE.replace("/", "_") in [one["alt"] for one in images]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all((one["href"] or "").startswith("file:///") for one in page.of("a"))
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; x" in text and "<script" not in text
    assert "default-src 'none'" in str(page.of("meta"))
    assert "http:" not in text and "https:" not in text


def test_a_picture_of_the_sheet_is_small_upright_and_bounded(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 1400, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(tmp_path / "noise.jpg", exif=exif)
    small = contactsheet.thumbnail(str(tmp_path / "noise.jpg"))
    assert small is not None and (small.width, small.height) == (160, 320)
    assert len(small.uri) < 4 / 3 * contactsheet.MAX_BYTES + 100


def test_a_picture_that_is_gone_has_its_name_alone(tmp_path: Path) -> None:
    result = Result("text", "x", [Ranked(1, 0.5, str(tmp_path / "gone.jpg"))])
    text = contactsheet.draw(tmp_path, [result], "about", lambda amount: None)
    assert "cannot be read any more" in text and "gone.jpg" in text and not Page(text).of("img")


def test_a_text_finds_the_photographs_that_it_describes(data_dir: Path, tmp_path: Path) -> None:
    """Of 300 photographs with captions, the built-in model finds more than by chance, and as many as without an index."""
    from edgeclip.testset import open_test_set

    samples = list(open_test_set(data_dir / "eval" / "wds_flickr8k", limit=300))
    for i, sample in enumerate(samples):
        (tmp_path / f"{i:04d}.jpg").write_bytes(sample.image)
    texts = [sample.captions[0] for sample in samples[:50]]
    found = document(run("search", tmp_path, "--json", "--top", "10", "--", *texts))
    first = [[Path(match["path"]).stem for match in one["matches"]] for one in found["results"]]
    hits = sum(f"{i:04d}" in names for i, names in enumerate(first))
    with edgeclip.load() as model:
        cosines = model.encode_text(texts) @ model.encode_image([one.image for one in samples]).T
    exact = np.argsort(-cosines, axis=1)[:, :10]
    assert hits == sum(i in row for i, row in enumerate(exact)) and hits > 5
    same = [len({f"{i:04d}" for i in row} & set(names)) for row, names in zip(exact, first, strict=True)]
    assert np.mean(same) > 9.9
