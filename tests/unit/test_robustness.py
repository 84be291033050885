"""Effective robustness: the line through published accuracies, and what is above it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LinearRegression

from edgeclip.benchmarks.metrics import Share
from edgeclip.benchmarks.robustness import Effective, Line, command, fit, key, read_baseline
from edgeclip.cli import main
from edgeclip.csvtable import read_table
from edgeclip.errors import DataError
from edgeclip.scores import score

SHIFTS = ("wds_imagenetv2", "wds_imagenet-r", "wds_imagenet_sketch", "wds_imagenet-a", "wds_objectnet")


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_built_in_line_is_that_of_scikit_learn(shift: str) -> None:
    line = read_baseline().line("wds_imagenet1k", shift)
    assert line is not None and line.n == 121
    table = read_table(read_baseline().path)
    column = next(name for name in table.columns if key(name) == key(shift))
    x, y = (logit([float(row[name]) for row in table.rows])[:, None] for name in ("imagenet1k", column))
    other = LinearRegression().fit(x, y)
    assert (line.slope, line.intercept) == pytest.approx((other.coef_[0, 0], other.intercept_[0]), abs=1e-9)
    assert line.r2 == pytest.approx(other.score(x, y), abs=1e-9)
    assert line.predict(0.6, 50_000) == pytest.approx(float(expit(other.predict([[logit(0.6)]])[0, 0])), abs=1e-9)


def test_the_built_in_accuracies_are_the_published_ones() -> None:
    """OpenAI's reference points, arXiv 2103.00020, within what OpenCLIP's repetition differs from them."""
    rows = {(row["name"], row["pretrained"]): row for row in read_table(read_baseline().path).rows}
    for name, published in (
        ("RN50", 59.8),
        ("RN101", 62.3),
        ("ViT-B-32", 63.3),
        ("ViT-B-16", 68.3),
        ("ViT-L-14", 75.5),
    ):
        found = next(
            row for (model, data), row in rows.items() if model.removesuffix("-quickgelu") == name and data == "openai"
        )
        assert 100 * float(found["imagenet1k"]) == pytest.approx(published, abs=0.2)


def test_a_line_in_logits_by_hand() -> None:
    x = np.array([0.2, 0.5, 0.8])
    line = fit(x, expit(2 * logit(x) - 1))
    assert (line.slope, line.intercept, line.r2) == pytest.approx((2, -1, 1))
    assert line.predict(0.5, 10) == pytest.approx(1 / (1 + np.e))


def test_effective_robustness_is_what_is_above_the_line() -> None:
    line = Line(slope=1, intercept=0, n=3, r2=1)
    original, shifted = np.arange(200) < 100, np.arange(300) < 180
    found = Effective(line, Share(original), Share(shifted))
    assert found.value == pytest.approx(0.1) and found.n == 300
    interval = found.interval()
    spread = 1.96 * np.sqrt(0.25 / 200 + 0.24 / 300)
    assert (interval.low, interval.high) == pytest.approx((0.1 - spread, 0.1 + spread), abs=0.02)
    worse = Effective(line, Share(original), Share(np.arange(300) < 150))
    assert worse.loss(found).drop_pt == pytest.approx(10)


def test_nothing_right_is_half_an_image() -> None:
    assert Line(1, 0, 3, 1).predict(0.0, 50) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("wds_imagenet-r", "imagenetr"),
        ("ImageNet-R", "imagenetr"),
        ("wds/vtab/caltech101", "caltech101"),
        ("pacs_photo", "pacsphoto"),
    ],
)
def test_names_of_data_sets_are_known_by_their_letters(name: str, known: str) -> None:
    assert key(name) == known


def test_accuracies_in_percent_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "b.csv"
    file.write_text("name,a,b\nx,50,40\ny,60,50\nz,70,60\n")
    with pytest.raises(DataError, match=r"b\.csv: a: not all are shares from 0 to 1 \(write 63\.3 % as 0\.633\)"):
        read_baseline(file).line("a", "b")


def test_too_few_models_make_no_line(tmp_path: Path) -> None:
    file = tmp_path / "b.csv"
    file.write_text("name,a,b\nx,0.5,0.4\ny,0.6,\nz,0.7,0.6\n")
    assert read_baseline(file).line("a", "b") is None


def test_training_runs_make_a_line(tmp_path: Path) -> None:
    for i, (photo, sketch) in enumerate(((0.2, 0.1), (0.4, 0.2), (0.6, 0.4))):
        (tmp_path / f"run-{i}").mkdir()
        scores = [score("wds_pacs_photo", "top1", photo, 10), score("wds_pacs_sketch", "top1", sketch, 10)]
        others = [score("wds_flickr8k", "text_to_image_r1", 0.9, 10)]
        (tmp_path / f"run-{i}" / "scores.json").write_bytes(msgspec.json.encode(scores + others))
    baseline = read_baseline(tmp_path)
    assert baseline.line("pacs_photo", "pacs_sketch") == fit(np.array([0.2, 0.4, 0.6]), np.array([0.1, 0.2, 0.4]))
    assert baseline.line("pacs_photo", "flickr8k") is None
    (tmp_path / "run-0" / "scores.json").write_text("[1]")
    with pytest.raises(DataError, match=r"run-0/scores\.json: cannot be read: Expected `object`"):
        read_baseline(tmp_path)


def test_the_lines_are_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([], command=command) == 0
    assert "imagenet_sketch     121  1.075" in capfd.readouterr().out
