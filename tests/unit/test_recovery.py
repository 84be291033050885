"""What is won back of a loss: shares whose value is known, and the command on real bundles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeclip.benchmarks.recovery import command, compare, share
from edgeclip.cli import main
from edgeclip.export.pipeline import export, plan
from edgeclip.export.source import open_source
from edgeclip.train.checkpoints import save_checkpoint
from edgeclip.train.models import Clip
from tests import qat, tiny, training


def right(*runs: tuple[int, bool]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """So many samples each, right or wrong."""
    return np.concatenate([np.full(count, value) for count, value in runs])


ALL = right((1000, True))


def test_half_of_what_was_lost_is_won_back() -> None:
    found = share(ALL, right((800, True), (200, False)), right((900, True), (100, False)))
    assert found.value == 0.5
    # 100 of 200 lost samples: a binomial share, 0.43 to 0.57.
    assert (found.low, found.high) == pytest.approx((0.43, 0.57), abs=0.01)


def test_more_than_was_lost_can_be_won() -> None:
    before = right((900, True), (100, False))
    assert share(before, right((800, True), (200, False)), right((950, True), (50, False))).value == 1.5


def test_what_is_lost_once_more_counts_against_it() -> None:
    plain, trained = right((800, True), (200, False)), right((700, True), (300, False))
    assert share(ALL, plain, trained).value == -0.5


def test_no_share_is_given_where_nothing_is_surely_lost() -> None:
    noisy = right((998, True), (2, False))
    found = compare("toy", ("onnx", "w8a8"), ALL, noisy, ALL)
    assert found.share is None and found.plain_loss.drop_pt == pytest.approx(0.2)
    worse = right((900, True), (100, False))
    assert (share_of := compare("toy", ("onnx", "w8a8"), ALL, worse, ALL).share) and share_of.value == 1.0


def test_the_interval_is_the_same_each_time() -> None:
    plain, trained = right((800, True), (200, False)), right((900, True), (100, False))
    assert share(ALL, plain, trained) == share(ALL, plain, trained)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One model in fp32 and w8a16, and another that stands for what was trained."""
    folder = tmp_path_factory.mktemp("bundles")
    paths = []
    for seed, name in enumerate(("plain", "trained")):
        torch.manual_seed(seed)
        clip = Clip(qat.CONFIG).eval()
        saved = save_checkpoint(clip, folder / f"{name}-c", training.preprocess(), tiny.tokenizer_file(folder))
        path = folder / f"{name}.edgeclip"
        export(open_source(saved), path, plan(["onnx"], ["fp32", "w8a16"], None))
        paths.append(path)
    return paths[0], paths[1]


def test_the_command_measures_what_both_bundles_have(
    bundles: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = training.test_set(tmp_path / "colours", 40)
    assert main([str(bundles[0]), *map(str, bundles), "--data", str(data), "--json", "-q"], command=command) == 0
    (found,) = json.loads(capfd.readouterr().out)["results"]
    assert (found["target"], found["precision"], found["floating"]["n"]) == ("onnx", "w8a16", 40)
    loss = 100 * (found["floating"]["value"] - found["trained"]["value"])
    assert found["trained_loss"]["drop_pt"] == pytest.approx(loss) and found["share"] is None


def test_the_command_prints_a_table(
    bundles: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = training.test_set(tmp_path / "colours")
    assert main([str(bundles[0]), *map(str, bundles), "--data", str(data)], command=command) == 0
    assert "nothing is surely lost" in capfd.readouterr().out


def test_bundles_with_nothing_in_common_are_refused(
    bundles: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.edgeclip"
    torch.manual_seed(0)
    saved = save_checkpoint(
        Clip(qat.CONFIG).eval(), tmp_path / "c", training.preprocess(), tiny.tokenizer_file(tmp_path)
    )
    export(open_source(saved), bare, plan(["onnx"], ["fp32"], None))
    assert main([str(bundles[0]), str(bundles[0]), str(bare), "--data", str(tmp_path)], command=command) == 2
    assert "have no integer precision of both towers in common" in capfd.readouterr().err


def test_captions_are_refused(bundles: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = training.test_set(tmp_path / "sheets")
    (data / "dataset_type.txt").write_text("retrieval")
    members = {"0.jpg": training.picture((9, 9, 9), np.random.default_rng(0)), "0.txt": b"a sheet"}
    training.shard(data / "test" / "0.tar", members)
    assert main([str(bundles[0]), *map(str, bundles), "--data", str(data)], command=command) == 2
    assert "sheets: has no labels" in capfd.readouterr().err
