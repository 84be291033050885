"""`edgeclip eval` through the real command line: real bundles, real engines, and data in the true formats."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests import cli, labelled, training

CHUNK = 256
PATIENCE_S = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test set with classes, and one with captions."""
    root = tmp_path_factory.mktemp("data") / "eval"
    labelled.many_classes(root / "wds_many")
    labelled.retrieval(root / "wds_captions")
    return root


def rows(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["data"], row["metric"]): row for row in document["rows"]}


def beside(path: Path, module: str, code: str) -> dict[str, str]:
    """An environment in which this module is found before the one that is installed."""
    (path / module).mkdir(parents=True)
    (path / module / "__init__.py").write_text(code)
    return cli.environment(PYTHONPATH=str(path))


def test_without_a_bundle_the_built_in_model_is_evaluated(folder: Path, tmp_path: Path) -> None:
    """And without PyTorch, in this process or in that of the engine."""
    env = beside(tmp_path, "torch", "raise ImportError('PyTorch is not here')") | {"EDGECLIP_DATA": str(folder.parent)}
    done = cli.edgeclip("eval", "--json", "-o", tmp_path / "a.json", env=env)
    assert done.returncode == 0, done.stderr
    found = cli.document(done)
    assert found == json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert found["schema"] == "edgeclip.accuracy/1" and found["suite"] == "quick" and not found["missing"]
    assert {row["subject"]["name"] for row in found["rows"]} == {"edge-s"}
    assert set(rows(found)) == {
        *(("wds_many", name) for name in ("top1", "top5", "mean_per_class_recall")),
        *(("wds_captions", f"{way}_r{k}") for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    }
    assert all(row["low"] <= row["value"] <= row["high"] for row in found["rows"])


def test_an_engine_that_crashes_is_a_row_and_the_rest_completes(folder: Path, tmp_path: Path) -> None:
    """The library's import ends the process with a signal, as a broken driver does."""
    env = beside(tmp_path, "openvino", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    done = cli.edgeclip("eval", "--data", folder / "wds_many", "--backend", "openvino,onnxruntime,tensorrt", env=env)
    assert done.returncode == 5, done.stderr
    lines = done.stdout.splitlines()
    assert any(
        "built-in.edgeclip openvino" in line and "❌ failed" in line and "crashed (SIGSEGV)" in line for line in lines
    )
    assert any(
        "built-in.edgeclip tensorrt" in line and "❌ failed" in line and "has no artifact" in line for line in lines
    )
    assert sum("edge-s onnxruntime fp16" in line and "✅ ok" in line for line in lines) == 3
    assert done.stderr.startswith("error: built-in.edgeclip openvino: the engine's process crashed (SIGSEGV); 1 more")


def test_a_library_that_does_not_import_is_a_row(folder: Path, tmp_path: Path) -> None:
    env = beside(tmp_path, "openvino", "raise ImportError('libopenvino.so is missing')")
    done = cli.edgeclip("eval", "--data", folder / "wds_captions", "--backend", "openvino", "--json", env=env)
    assert done.returncode == 5
    (missing,) = cli.document(done)["missing"]
    assert (
        missing["fault"]["type"] == "TargetUnavailableError"
        and "libopenvino.so is missing" in missing["fault"]["message"]
    )


def test_damaged_data_are_a_row_and_the_rest_completes(folder: Path, tmp_path: Path) -> None:
    for one in folder.iterdir():
        (tmp_path / one.name).symlink_to(one)
    broken = training.test_set(tmp_path / "wds_broken")
    tar = (broken / "test" / "0.tar").read_bytes()
    (broken / "test" / "0.tar").write_bytes(tar[: len(tar) // 2])
    done = cli.edgeclip("eval", "--data", tmp_path, "--json")
    found = cli.document(done)
    assert done.returncode == 4 and [one["data"] for one in found["missing"]] == ["wds_broken"]
    assert "cannot be read to its end" in found["error"]["message"] and len(found["rows"]) == 9


def test_a_run_that_was_killed_goes_on_where_it_stopped(tmp_path: Path, private_cache: Path) -> None:
    labelled.many_classes(tmp_path / "wds_large", count=3 * CHUNK)
    command = [sys.executable, "-m", "edgeclip", "eval", "--suite", "classification", "--data", str(tmp_path)]
    with subprocess.Popen(command, env=cli.environment(), stdout=subprocess.DEVNULL) as process:
        first_kept(private_cache / "eval")
        children = psutil.Process(process.pid).children()
        process.kill()
    assert len(children) == 1 and not psutil.wait_procs(children, PATIENCE_S)[1], "it goes on without its parent"
    kept = len(list((private_cache / "eval").iterdir()))
    done = cli.edgeclip(*command[3:], "--json")
    again = cli.document(done)
    words = again["remarks"][-1].split(" of ")
    found = int(words[0].rpartition(" ")[2])
    assert again["remarks"][-1].endswith(f"of {3 * CHUNK} images were in the cache") and 0 < found <= kept * CHUNK
    assert found < 3 * CHUNK, "it was killed too late to show anything"
    afresh = cli.document(cli.edgeclip(*command[3:], "--json", "--no-cache"))
    assert [row["value"] for row in again["rows"]] == [row["value"] for row in afresh["rows"]]
    assert not afresh["remarks"]


def first_kept(cache: Path) -> None:
    """Wait until something was embedded."""
    deadline = time.monotonic() + PATIENCE_S
    while not (cache.is_dir() and any(not file.name.startswith(".tmp-") for file in cache.iterdir())):
        assert time.monotonic() < deadline, "nothing was embedded"
        time.sleep(0.005)


def test_a_drop_is_told_against_a_reference(folder: Path, tiny_bundle: Path) -> None:
    from edgeclip.loading import BUILT_IN

    done = cli.edgeclip("eval", BUILT_IN, tiny_bundle, "--reference", BUILT_IN, "--data", folder / "wds_many", "--json")
    found = cli.document(done)
    assert done.returncode == 0 and found["reference"]["name"] == "edge-s"
    same, other = (
        [row for row in found["rows"] if (row["subject"]["name"] == "edge-s") == ours] for ours in (True, False)
    )
    assert [row["drop_pt"] for row in same] == [0.0] * 3
    for before, after in zip(same, other, strict=True):
        assert after["drop_pt"] == pytest.approx(100 * (before["value"] - after["value"]))
        assert after["drop_low_pt"] <= after["drop_pt"] <= after["drop_high_pt"]


def test_robustness_is_effective_and_relative(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("wds_pacs_photo", "wds_pacs_sketch"):
        (tmp_path / name).symlink_to(folder / "wds_many")
    (tmp_path / "line.csv").write_text("model,pacs_photo,pacs_sketch\na,0.2,0.1\nb,0.4,0.2\nc,0.6,0.4\n")
    done = cli.edgeclip(
        "eval", "--suite", "robustness", "--data", tmp_path, "--baseline", tmp_path / "line.csv",
        "--reference", tiny_bundle, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = rows(cli.document(done))
    accuracy = found["wds_pacs_sketch", "top1"]
    slope, intercept = np.polyfit(
        *(np.log(np.divide(x, np.subtract(1, x))) for x in ([0.2, 0.4, 0.6], [0.1, 0.2, 0.4])), 1
    )
    x = found["wds_pacs_photo", "top1"]["value"]
    predicted = 1 / (1 + np.exp(-(slope * np.log(x / (1 - x)) + intercept)))
    assert found["wds_pacs_sketch", "effective_robustness"]["value"] == pytest.approx(accuracy["value"] - predicted)
    assert found["wds_pacs_sketch", "relative_robustness"]["value"] == pytest.approx(-accuracy["drop_pt"] / 100)
    assert ("wds_pacs_photo", "relative_robustness") not in found


def test_a_probe_is_fitted_on_the_training_split(tmp_path: Path) -> None:
    labelled.with_training(tmp_path / "wds_split")
    done = cli.edgeclip("eval", "--suite", "linear-probe", "--data", tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [one for one in done.stdout.splitlines() if "top1" in one]
    assert "100.0 %" in line and "trained on 40 images, strength " in line


def test_the_bias_probe_prints_rates_by_group_and_its_caveat(tmp_path: Path) -> None:
    table = labelled.table(tmp_path / "faces.csv", "image,age", [f"{{}},{('old', 'young')[i % 2]}" for i in range(8)])
    (tmp_path / "labels.csv").write_text("label,set\nred,warm\nwhite,\nblue,cold\n")
    done = cli.edgeclip("eval", "--suite", "bias", "--data", table, "--labels", tmp_path / "labels.csv")
    assert done.returncode == 0, done.stderr
    assert sum("rate of warm" in line for line in done.stdout.splitlines()) == 3
    assert "age=young" in done.stdout and "adding or taking away one label moves them" in done.stdout


def test_without_data_the_hint_says_where_they_may_lie() -> None:
    env = cli.environment()
    env.pop("EDGECLIP_DATA", None)
    done = cli.edgeclip("eval", env=env)
    assert done.returncode == 2 and "hint: --data DIR, or EDGECLIP_DATA" in done.stderr


@pytest.mark.nightly
def test_every_backend_agrees_on_real_data(data_dir: Path, tiny_bundle: Path) -> None:
    done = cli.edgeclip("eval", tiny_bundle, "--backend", "all", "--data", data_dir / "eval", "--limit", "60", "--json")
    found = cli.document(done)
    assert done.returncode == 0 and len({json.dumps(row["subject"]) for row in found["rows"]}) >= 4
    for name in {(row["data"], row["metric"]) for row in found["rows"]}:
        values = [row["value"] for row in found["rows"] if (row["data"], row["metric"]) == name]
        assert max(values) - min(values) < 0.05


@pytest.mark.nightly
def test_the_built_in_models_numbers_are_those_of_its_card(data_dir: Path) -> None:
    from edgeclip.bundle import Bundle
    from edgeclip.card import read_card
    from edgeclip.loading import BUILT_IN

    card = read_card(Bundle.open(BUILT_IN))
    assert card is not None
    sets = ("wds_pacs_photo", "wds_emoji", "wds_flickr8k", "wds_tinyimagenet")
    done = cli.edgeclip("eval", "--data", data_dir / "eval", "--sets", ",".join(sets), "--limit", "0", "--json")
    found = rows(cli.document(done))
    for score in (one for one in card.scores if one.data in sets):
        row = found[score.data, score.metric]
        assert row["value"] == pytest.approx(score.value, abs=3 / score.n) and row["n"] == score.n
