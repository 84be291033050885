"""`embed` and `classify` as they are used."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

import edgeclip
from tests.cli import document, environment, patched, without
from tests.cli import edgeclip as run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")


@pytest.fixture
def mixed(photos: Path, tmp_path: Path) -> list[Path]:
    """A good image, a damaged one, one that is not there, and another good one."""
    (tmp_path / "bad.jpg").write_text("<html>")
    return [photos / "a.jpg", tmp_path / "bad.jpg", tmp_path / "gone.jpg", photos / "b.png"]


def test_a_folder_becomes_an_npz_with_provenance(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    done = run("embed", tiny_bundle, photos, "-o", tmp_path / "x.npz")
    assert done.returncode == 0 and done.stdout == ""
    assert "3 embedded, 0 skipped" in done.stderr
    paths = [str(photos / name) for name in ("a.jpg", "b.png", "sub/c.webp")]
    with edgeclip.load(tiny_bundle) as model, np.load(tmp_path / "x.npz") as found:
        assert found["sources"].tolist() == paths
        np.testing.assert_allclose(found["embeddings"], model.encode_image(paths), atol=1e-6)
        provenance = json.loads(str(found["provenance"]))
        assert provenance == {**json.loads(json.dumps(model.info.provenance())), "artifacts": provenance["artifacts"],
                              "edgeclip": edgeclip.__version__, "dtype": "float32", "dim": 48}  # fmt: skip
    assert provenance["artifacts"] == {"image": "openvino-fp32/image.xml"}


def test_without_an_output_rows_are_json_lines(tiny_bundle: Path) -> None:
    done = run("embed", tiny_bundle, "--text", "a cat", "--text", "ein Hündchen")
    first, *rest = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["provenance"]["bundle"].startswith("sha256:")
    assert [(row["kind"], row["source"]) for row in rest] == [("text", "a cat"), ("text", "ein Hündchen")]
    with edgeclip.load(tiny_bundle, tower="text") as model:
        expected = model.encode_text(["a cat", "ein Hündchen"])
    np.testing.assert_allclose([row["embedding"] for row in rest], expected, atol=1e-6)


def test_with_json_the_rows_are_in_the_one_document(tiny_bundle: Path, photos: Path) -> None:
    found = document(run("embed", tiny_bundle, photos / "a.jpg", "--text", "a cat", "--json", "--quiet"))
    assert [row["kind"] for row in found["rows"]] == ["image", "text"]
    assert found["count"] == 2 and found["output"] is None and found["provenance"]["backend"] == "openvino"


def test_paths_and_texts_come_from_standard_input(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    done = run("embed", tiny_bundle, "-", "-o", tmp_path / "x.npy", stdin=f"{photos / 'b.png'}\n{photos / 'a.jpg'}\n")
    assert done.returncode == 0 and np.load(tmp_path / "x.npy").shape == (2, 48)
    beside = json.loads((tmp_path / "x.npy.json").read_text("utf-8"))
    assert beside["sources"] == [str(photos / "b.png"), str(photos / "a.jpg")]
    done = run("embed", tiny_bundle, "--texts", "-", stdin="one\n\nthree\n")
    assert [json.loads(line)["source"] for line in done.stdout.splitlines()[1:]] == ["one", "", "three"]


def test_quiet_says_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run("embed", tiny_bundle, "--text", "x", "-o", tmp_path / "x.jsonl", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_bad_image_exits_4_and_leaves_no_output(tiny_bundle: Path, mixed: list[Path], tmp_path: Path) -> None:
    done = run("embed", tiny_bundle, *mixed[:2], "-o", tmp_path / "x.parquet")
    assert done.returncode == 4
    assert "bad.jpg" in done.stderr and done.stderr.startswith("error: image 1: ")
    assert not list(tmp_path.glob("*x.parquet*"))


def test_bad_images_are_skipped_and_listed(tiny_bundle: Path, mixed: list[Path], tmp_path: Path) -> None:
    done = run("embed", tiny_bundle, *mixed, "--on-error", "skip", "-o", tmp_path / "x.jsonl", "--json")
    found = document(done)
    assert done.returncode == 0 and found["count"] == 2
    assert [(one["index"], Path(one["source"]).name) for one in found["skipped"]] == [(1, "bad.jpg"), (2, "gone.jpg")]
    assert done.stderr.count("skipped: ") == 2
    sources = [json.loads(line)["source"] for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()[1:]]
    assert sources == [str(mixed[0]), str(mixed[3])]


def test_only_bad_images_are_an_error(tiny_bundle: Path, mixed: list[Path], tmp_path: Path) -> None:
    done = run("embed", tiny_bundle, *mixed[1:3], "--on-error", "skip", "-o", tmp_path / "x.npy")
    assert done.returncode == 4 and "none of 2 images can be read" in done.stderr
    assert not list(tmp_path.glob("*x.npy*"))


def test_a_full_disk_exits_6_and_leaves_no_output(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("\n".join(f"text {i}" for i in range(600)))
    done = run(
        "embed", tiny_bundle, "--texts", tmp_path / "texts", "-o", tmp_path / "x.npy",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )  # fmt: skip
    assert done.returncode == 6 and "x.npy: the disk is full" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_parquet_without_pyarrow_exits_5(tiny_bundle: Path, tmp_path: Path) -> None:
    done = patched(without("pyarrow"), "embed", tiny_bundle, "--text", "x", "-o", tmp_path / "x.parquet")
    assert done.returncode == 5 and "hint: pip install 'edgeclip[parquet]'" in done.stderr


def test_classify_ranks_labels(tiny_bundle: Path, photos: Path) -> None:
    done = run("classify", tiny_bundle, photos, "--labels", "cat,dog,tree", "--top-k", "2")
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines() if line][1:]
    assert len(lines) == 6 and lines[0][0] == str(photos / "a.jpg")
    assert "The weights are random" in done.stderr


def test_classify_equals_the_library(tiny_bundle: Path, photos: Path) -> None:
    options = ("--labels", "cat,dog", "--template", "a {}", "--template", "one {}", "--json")
    found = document(run("classify", tiny_bundle, photos / "a.jpg", *options))
    with edgeclip.load(tiny_bundle) as model:
        expected = model.classifier(["cat", "dog"], ["a {}", "one {}"]).predict(photos / "a.jpg")
    assert [p["label"] for p in found["images"][0]["predictions"]] == [p.label for p in expected]
    assert found["images"][0]["predictions"][0]["probability"] == pytest.approx(expected[0].probability, abs=1e-6)


def test_classify_takes_labels_from_a_file(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("cat\n\ndog\n")
    found = document(run("classify", tiny_bundle, photos / "a.jpg", "--labels-file", tmp_path / "labels", "--json"))
    assert {p["label"] for p in found["images"][0]["predictions"]} == {"cat", "dog"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "cat,cat"], "label 'cat' is given twice"),
        (["--labels", "cat", "--template", "no place"], "template 'no place' has no place for the label"),
    ],
)
def test_labels_that_make_no_sense_exit_2(options: list[str], message: str, tiny_bundle: Path, photos: Path) -> None:
    done = run("classify", tiny_bundle, photos / "a.jpg", *options)
    assert done.returncode == 2 and message in done.stderr


def test_an_unusable_cache_is_one_line_of_warning(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    env = environment(EDGECLIP_CACHE=str(tmp_path / "file" / "cache"))
    done = run("classify", tiny_bundle, photos / "a.jpg", "--labels", "cat", env=env)
    assert done.returncode == 0
    warnings = [line for line in done.stderr.splitlines() if "cache" in line]
    assert len(warnings) == 1 and warnings[0].startswith("warning: working without a cache: ")
