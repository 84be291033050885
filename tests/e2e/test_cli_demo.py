"""`demo` and the accuracy card as they are used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgeclip import loading
from edgeclip.benchmarks import accuracy
from edgeclip.bundle import Bundle, add_artifact
from edgeclip.card import make_card, read_card, with_card
from edgeclip.cli import main, photographs
from edgeclip.scores import score
from tests import training
from tests.cli import document, edgeclip, patched, without


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle."""
    return Path(shutil.copy(tiny_bundle, tmp_path / "copy.edgeclip"))


def test_the_demo_shows_labels_searches_and_time_without_pytorch(tiny_bundle: Path, photos: Path) -> None:
    done = patched(without("torch"), "demo", "--model", tiny_bundle, "--photographs", photos, "--query", "x y z")
    assert done.returncode == 0, done.stderr
    for part in ("Verification", "Labels", "Search", "x y z", "b.png", "sub/c.webp", "images/s from files", "Time"):
        assert part in done.stdout
    assert "This bundle carries no accuracy card." in done.stdout and "The weights are random" in done.stdout
    assert "no images: 1 files" in done.stderr


def test_the_demo_as_json(tiny_bundle: Path, photos: Path) -> None:
    options = ("--labels", "cat, dog", "--query", "one", "--query", "two")
    found = document(edgeclip("demo", "--model", tiny_bundle, "--photographs", photos, *options, "--json"))
    assert [one["source"] for one in found["photographs"]] == ["a.jpg", "b.png", "sub/c.webp"]
    assert {p["label"] for p in found["photographs"][0]["predictions"]} == {"cat", "dog"}
    assert list(found["searches"]) == ["one", "two"]
    cosines = [one["cosine"] for one in found["searches"]["two"]]
    assert len(cosines) == 3 and cosines == sorted(cosines, reverse=True)
    assert found["passed"] is True and found["card"] is None and found["images_per_s"] > 0


def test_the_demo_leaves_out_what_cannot_be_read(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "a.jpg", tmp_path / "a.jpg")
    (tmp_path / "broken.png").write_bytes(b"no image")
    done = edgeclip("demo", "--model", tiny_bundle, "--photographs", tmp_path)
    assert done.returncode == 0 and "cannot be read: 1 images" in done.stderr and "a.jpg" in done.stdout
    (tmp_path / "a.jpg").unlink()
    done = edgeclip("demo", "--model", tiny_bundle, "--photographs", tmp_path)
    assert done.returncode == 4 and "none of 1 images can be read" in done.stderr


def test_the_demo_runs_the_built_in_model(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, which carries the photographs, is not installed")
    monkeypatch.setattr(loading, "BUILT_IN", tiny_bundle)
    assert main(["demo"]) == 0
    assert "china.jpg" in capfd.readouterr().out


def test_the_demo_without_a_built_in_model_says_what_to_do(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "BUILT_IN", tmp_path / "absent")
    assert main(["demo", "--photographs", str(photos)]) == 3
    said = capfd.readouterr().err
    assert "this build of edgeclip carries no built-in model" in said and "edgeclip demo --model BUNDLE" in said


def test_the_demo_fails_where_the_device_computes_something_else(wrong_bundle: Path, photos: Path) -> None:
    done = edgeclip("demo", "--model", wrong_bundle, "--photographs", photos)
    assert done.returncode == 1 and "does not reproduce the reference" in done.stderr
    assert "Labels" not in done.stdout


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        (["--out", "x"], "--out needs --export", 2),
        (["--export", "--model", "x"], "--model and --export exclude each other", 2),
        (["--photographs", "absent"], "absent: no such folder", 4),
    ],
)
def test_wrong_options_of_the_demo(
    options: list[str], message: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *options]) == code
    assert message in capfd.readouterr().err


def test_without_photographs_the_demo_says_how_to_name_some(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(photographs, "PACKAGES", {"absent_package": ("", ("x.jpg",))})
    assert main(["demo"]) == 4
    said = capfd.readouterr().err
    assert "neither scikit-learn nor scikit-image" in said and "--photographs DIR" in said


def test_accuracy_is_measured_and_put_into_the_bundle(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    training.test_set(tmp_path / "sets" / "colours")
    options = ["--note", "colours=drawn", "--cost", "--embed", "--json"]
    assert main([str(bundle), "--data", str(tmp_path / "sets"), *options], command=accuracy.command) == 0
    found, card = json.loads(capfd.readouterr().out), read_card(Bundle.open(bundle))
    assert card is not None and card.notes == {"colours": "drawn"} and card.cost is not None
    assert found["bundle"] == Bundle.open(bundle).digest and found["card"]["scores"][0]["n"] == 12
    shown = edgeclip("inspect", bundle)
    assert "Accuracy\n" in shown.stdout and "colours" in shown.stdout and "drawn" in shown.stdout
    assert document(edgeclip("inspect", bundle, "--json"))["card"]["stale"] is False


def test_a_card_of_other_artifacts_is_shown_as_stale(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    (image,) = opened.artifacts(tower="image", target="onnx", precision="fp16")
    changed = {image.file: opened.read(opened.artifacts(tower="image", target="onnx", precision="fp32")[0].file)}
    with_card(opened, make_card(opened.manifest, [image], [score("pets", "top1", 0.5, 10)], backend="onnxruntime 1"))
    add_artifact(opened, image, changed, replace=True)
    assert "Accuracy (measured on other artifacts: stale)" in edgeclip("inspect", bundle).stdout
    assert document(edgeclip("inspect", bundle, "--json"))["card"]["stale"] is True
