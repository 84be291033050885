"""What small embeddings cost, with embeddings whose neighbours are known."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeclip.benchmarks.embeddings import (
    Embedded,
    Result,
    choose_retrieval,
    choose_variants,
    command,
    difference,
    measure,
    with_cuts,
)
from edgeclip.cli import main
from edgeclip.errors import UsageError
from edgeclip.loading import BUILT_IN
from edgeclip.manifest import ModelSpec
from tests import bundles, training


def spec(dim: int, *dims: int) -> ModelSpec:
    return msgspec.structs.replace(bundles.manifest().model, embed_dim=dim, matryoshka=dims)


def drawn(n: int, dim: int, each: int = 2) -> Embedded:
    """Images, and captions that are near theirs."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(n, dim))
    owners = np.arange(n).repeat(each)
    captions = images[owners] + 2 * rng.normal(size=(len(owners), dim))
    unit = [np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32) for x in (images, captions)]
    return Embedded("toy", unit[0], unit[1], owners)


def values(result: Result) -> dict[str, float]:
    return {metric: score.value for metric, score in result.scores.items()}


def retrieval_set(folder: Path) -> Path:
    training.test_set(folder)
    (folder / "dataset_type.txt").write_text("retrieval")
    members: dict[str, bytes] = {}
    for i, (name, colour) in enumerate(training.COLOURS.items()):
        members[f"{i}.jpg"] = training.picture(colour, np.random.default_rng(i))
        members[f"{i}.txt"] = f"a {name} sheet\nall {name}".encode()
    training.shard(folder / "test" / "0.tar", members)
    return folder


def test_a_model_gives_every_dtype_and_every_number_of_dimensions() -> None:
    found = [(one.name, one.form.dim) for one in choose_variants(spec(16, 4, 8), [3.5])]
    whole = ["float32", "float16", "int8", "binary", "binary, rescored", "int8, clip 3.5"]
    eight = ["float32", "float16", "int8", "binary"]
    assert found == [*((n, 16) for n in whole), *((n, 8) for n in eight), *((n, 4) for n in eight[:3])]
    assert [one.name for one in choose_variants(spec(12))] == ["float32", "float16", "int8"]


def test_recall_by_hand() -> None:
    # Each image finds a caption of its own first; the second caption, which is of image 1, finds image 0.
    images = np.array([[1.0, 0.0], [0.8, 0.6]], np.float32)
    captions = np.array([[0.96, 0.28], [0.8, -0.6], [0.6, 0.8]], np.float32)
    (found,) = measure(Embedded("toy", images, captions, np.array([0, 1, 1])), choose_variants(spec(2))[:1])
    assert found.scores["image_to_text_r1"].value == 1.0
    assert found.scores["text_to_image_r1"].value == pytest.approx(2 / 3)
    assert found.scores["text_to_image_r5"].value == 1.0
    assert found.kept == {"image_to_text": 1.0, "text_to_image": 1.0}


def test_fewer_bits_find_less_and_rescoring_makes_up_for_it() -> None:
    found = {one.variant: one for one in measure(drawn(300, 32), choose_variants(spec(32)))}
    r1 = {name: values(one)["text_to_image_r1"] for name, one in found.items()}
    assert r1["binary"] < r1["binary, rescored"] - 0.05
    assert r1["int8"] == pytest.approx(r1["float32"], abs=0.02)
    kept = {name: one.kept["image_to_text"] for name, one in found.items()}
    assert kept["binary"] < kept["binary, rescored"] < kept["int8"] < kept["float16"] <= kept["float32"] == 1.0
    sizes = {name: (one.bytes_per_vector, one.rescored_bytes) for name, one in found.items()}
    assert sizes == {
        "float32": (128, 0), "float16": (64, 0), "int8": (32, 0), "binary": (4, 0), "binary, rescored": (4, 128),
    }  # fmt: skip


def test_a_clip_that_is_too_tight_is_seen() -> None:
    found = {one.variant: one for one in measure(drawn(300, 32), choose_variants(spec(32), [0.5, 4]))}
    kept = {name: one.kept["text_to_image"] for name, one in found.items()}
    assert kept["int8, clip 0.5"] < 0.8 < kept["int8, clip 4"]


def test_a_difference_by_hand() -> None:
    before = np.arange(100) < 50
    none = difference(before, before, 100)
    # Wilson's bound for none of 100.
    assert (none.value_pt, none.low_pt, none.high_pt) == pytest.approx((0.0, -3.6994, 3.6994), abs=1e-3)
    hits = before.copy()
    hits[:20] = False
    lost = difference(hits, before, 100)
    # 20 of 100 lost: 13.34 to 28.88; none gained: up to 3.70.
    assert lost.value_pt == pytest.approx(-20.0)
    assert lost.low_pt == pytest.approx(-28.88, abs=0.01)
    assert lost.high_pt == pytest.approx(-20 + np.hypot(20 - 13.34, 3.70), abs=0.01)


def test_a_set_without_captions_is_refused_by_name_and_left_out_otherwise(tmp_path: Path) -> None:
    training.test_set(tmp_path / "colours")
    with pytest.raises(UsageError, match="no captions in colours .recall needs sets with captions"):
        choose_retrieval(tmp_path, [])
    retrieval_set(tmp_path / "sheets")
    assert [one.name for one in choose_retrieval(tmp_path, [])] == ["sheets"]
    with pytest.raises(UsageError, match="no captions in colours"):
        choose_retrieval(tmp_path, ["sheets", "colours"])


def test_the_command_measures_a_bundle(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    retrieval_set(tmp_path / "sheets")
    assert main([str(BUILT_IN), "--data", str(tmp_path), "--threads", "1", "--json", "-q"], command=command) == 0
    found = json.loads(capfd.readouterr().out)["results"]
    assert [one["variant"] for one in found] == ["float32", "float16", "int8", "binary", "binary, rescored"]
    assert found[3]["bytes_per_vector"] == 32 and found[0]["scores"]["image_to_text_r10"]["value"] == 1.0


def test_the_command_prints_a_table_of_each_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    retrieval_set(tmp_path / "sheets")
    assert main([str(BUILT_IN), "--data", str(tmp_path), "--threads", "1", "--clip", "4"], command=command) == 0
    out = capfd.readouterr().out
    assert "sheets, 4 images: recall of" in out and "Difference to float32" in out
    assert out.count("int8, clip 4") == 2 and "32 + 1024" in out


def test_dimensions_can_be_cut_that_the_model_was_not_trained_for() -> None:
    assert with_cuts(spec(16, 8), [4, 8]).matryoshka == (4, 8)
    with pytest.raises(UsageError, match="--cut 16: the model has 16 dimensions"):
        with_cuts(spec(16), [4, 16])


def test_the_command_cuts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    retrieval_set(tmp_path / "sheets")
    options = ["--data", str(tmp_path), "--threads", "1", "--cut", "32", "--json", "-q"]
    assert main([str(BUILT_IN), *options], command=command) == 0
    found = [(one["variant"], one["dim"]) for one in json.loads(capfd.readouterr().out)["results"]]
    assert found[5:] == [(dtype, 32) for dtype in ("float32", "float16", "int8", "binary")]
