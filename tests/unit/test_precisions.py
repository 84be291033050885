"""The table of precisions: what is counted, compared and written. Nothing here depends on how fast this machine is."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgeclip.backends.ov_library import ov
from edgeclip.benchmarks import fidelity, matmul, pace, precision_report, results, subjects
from edgeclip.benchmarks.fidelity import Embedded, Fidelity, Trial
from edgeclip.benchmarks.matmul import Product
from edgeclip.benchmarks.precision_report import BEGIN, END, Described, Report, Row
from edgeclip.benchmarks.results import Goal, Group
from edgeclip.benchmarks.sides import PEER
from edgeclip.benchmarks.subjects import Workshop
from edgeclip.benchmarks.timing import Samples
from edgeclip.benchmarks.variants import variants_of
from edgeclip.bundle import Bundle
from edgeclip.errors import ExportError, UsageError
from edgeclip.paired import Cosines, drop

ROOT = Path(__file__).resolve().parents[2]


def unit(*rows: tuple[float, float]) -> np.ndarray:
    found = np.array(rows, np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def test_a_bundles_variants_are_its_targets_at_each_precision_of_both_towers(tiny_bundle: Path) -> None:
    found = variants_of(Bundle.open(tiny_bundle))
    assert [one.label for one in found] == ["onnx fp32", "onnx fp16", "openvino fp32", "openvino fp16"]
    assert all(one.is_timed and one.kept is None for one in found)


def test_a_variants_size_is_that_of_its_files(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    for one in variants_of(bundle):
        artifacts = bundle.artifacts(target=one.target, precision=one.precision)
        assert one.size_bytes == sum(len(bundle.read(name)) for artifact in artifacts for name in artifact.files)


def test_a_variant_embeds_as_its_own_engine_does(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    size = bundle.manifest.preprocess.size
    pixels = np.random.default_rng(0).integers(0, 256, (35, size, size, 3), np.uint8)
    rows = [one.embed("image", pixels, 1) for one in variants_of(bundle)]
    for other in rows[1:]:
        np.testing.assert_allclose(other, rows[0], atol=2e-3)
    with variants_of(bundle)[2].load(1) as model:
        assert model.info.backend == "openvino" and model.info.precision == "fp32"


def test_fidelity_counts_what_was_lost_and_what_changed() -> None:
    trial = Trial("set", np.zeros(1), np.zeros(1), labels=np.array([0, 0, 1, 1]), classes=2)
    reference = Embedded(unit((1, 0), (1, 0.1), (0, 1), (1, 0)), unit((1, 0), (0, 1)), np.array([0, 0, 1, 0]))
    found = Embedded(unit((1, 0), (0, 1), (0, 1), (0, 1)), reference.texts, np.array([0, 1, 1, 1]))
    kept = fidelity.compare(trial, found, reference)
    assert kept.top1 is not None and kept.top1.value == 0.75
    assert kept.drop is not None
    assert (kept.drop.lost, kept.drop.won, kept.drop.n, kept.drop.drop_pt) == (1, 1, 4, 0)
    assert kept.agreement == 0.5
    assert kept.images.min == 0 and kept.texts.min == 1


def test_without_labels_nothing_is_right_or_lost() -> None:
    same = Embedded(unit((1, 0), (0, 1)), unit((1, 0), (0, 1)), np.array([0, 1]))
    kept = fidelity.compare(Trial("set", np.zeros(1), np.zeros(1)), same, same)
    assert kept.top1 is None and kept.drop is None
    assert kept.agreement == 1 and kept.images.mean == 1


def test_the_products_of_an_artifact_grow_with_the_batch(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    [artifact] = bundle.artifacts(tower="image", target="openvino", precision="fp32")
    one, three = (matmul.operations(matmul.products(bundle, artifact, batch)) for batch in (1, 3))
    assert three == 3 * one > 0


def test_products_of_each_kind_are_counted_once_a_window_a_row_and_a_head() -> None:
    make = ov.opset13
    pixels = make.parameter([-1, 3, 8, 8], np.float32)
    patches = make.convolution(
        pixels, make.constant(np.ones((16, 3, 4, 4), np.float32)), [4, 4], [0, 0], [0, 0], [1, 1]
    )
    rows = make.transpose(
        make.reshape(patches, make.constant(np.array([0, 16, 4])), True), make.constant(np.array([0, 2, 1]))
    )
    wide = make.matmul(rows, make.constant(np.ones((16, 32), np.float32)), False, False)
    heads = make.transpose(
        make.reshape(wide, make.constant(np.array([0, 4, 2, 16])), True), make.constant(np.array([0, 2, 1, 3]))
    )
    model = ov.Model([make.matmul(heads, heads, False, True)], [pixels], "image")
    assert matmul.count(model, 5) == Counter({Product(20, 48, 16): 1, Product(20, 16, 32): 1, Product(4, 16, 4): 10})


def test_a_bare_product_is_computed_in_8_bits_and_is_right() -> None:
    product = Product(16, 64, 32)
    model = ov.Core().compile_model(matmul.layer(product), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = {
        str(node.get_rt_info()["layerType"].value): str(node.get_rt_info()["runtimePrecision"].value)
        for node in model.get_runtime_model().get_ordered_ops()
    }
    assert kinds["FullyConnected"] in ("u8", "i8"), kinds
    rows = np.random.default_rng(1).integers(0, 256, (16, 64)).astype(np.uint8)
    levels = np.random.default_rng(0).integers(-127, 128, (32, 64)).astype(np.float64)
    step = 100 / 255
    exact = np.clip(rows @ levels.T * 0.02 * 0.02, 0, 100)
    assert np.abs(model(rows)[0] - exact).max() < 0.51 * step


@pytest.mark.parametrize("by", ["openvino", "torch._int_mm"])
def test_a_call_makes_its_product_as_often_as_it_says(by: str) -> None:
    calls = matmul.calls(Product(16, 64, 32), 1)
    assert set(calls) == {"openvino", "torch._int_mm"}
    assert calls[by]() is None
    assert matmul.REPEATS > 1


def test_only_products_that_matter_are_timed() -> None:
    counted = Counter({Product(100, 100, 100): 3, Product(10, 10, 10): 5})
    assert matmul.largest(counted) == [Product(100, 100, 100)]
    assert matmul.largest(Counter()) == []


def constant(value: float) -> Samples:
    return np.full((5, 2), value)


def test_rates_are_operations_by_time() -> None:
    small, large = Product(10, 10, 10), Product(100, 100, 100)
    counted = Counter({large: 4, small: 1})
    bare = {"a, large": large, "b, large": large}
    seconds = {pace.MAIN: constant(10.0), "a, large": constant(8.0), "b, large": constant(16.0)}
    found = pace.rates(counted, bare, seconds)
    work = 4 * 2e6 + 2e3
    assert found.tower.rate.value == pytest.approx(work / 10 / 1e9)
    assert found.best.by == "a"
    assert found.best.rate.value == pytest.approx(2e6 * matmul.REPEATS / 8 / 1e9)
    assert found.share.value == pytest.approx(found.tower.rate.value / found.best.rate.value)
    assert found.bound_ms == pytest.approx(4 * 1e3 * 8 / matmul.REPEATS)
    assert found.covered == pytest.approx(8e6 / work)


def example_row(precision: str, lost: int = 0, subject: str = "student", size: int = 100) -> Row:
    before, after = np.ones(1000, bool), np.ones(1000, bool)
    after[:lost] = False
    near = Cosines(0.999, 0.99, 0.98)
    trained = subject != "b32"
    kept = Fidelity(near, near, 0.98, drop=drop(before, after) if trained else None)
    return Row(subject, "openvino", precision, size, 3 if trained else None, kept, {"image/1": 1.5, "text": None})


def speeds(ratio: float) -> list[Group]:
    samples = {PEER: constant(ratio), pace.MAIN: constant(1.0)}
    return [results.group("b32/image/1", "images", "ms", samples)]


def verdicts(goals: list[Goal]) -> list[bool | None]:
    return [goal.passed for goal in goals]


def test_goals_hold_what_was_measured_against_what_was_promised() -> None:
    assert verdicts(precision_report.goals([], speeds(5.1), None)) == [True]
    assert verdicts(precision_report.goals([], speeds(4.9), None)) == [False]
    rows = [example_row("w8a8", 5), example_row("w8a8", 6), example_row("w8a16", 1), example_row("w8a16", 2)]
    assert verdicts(precision_report.goals(rows, [], None)) == [True, False, True, False]
    sizes = [example_row("fp32", subject="b32", size=1000), example_row("w8a16", subject="b32", size=270)]
    assert verdicts(precision_report.goals(sizes, [], None)) == [True]
    assert verdicts(precision_report.goals([sizes[0], example_row("w8a16", subject="b32", size=271)], [], None)) == [
        False
    ]


def test_a_rate_below_85_percent_of_the_machines_is_a_miss() -> None:
    product = Product(100, 100, 100)
    for time, passed in ((1.17, True), (1.18, False)):
        seconds = {pace.MAIN: constant(time), "a, x": constant(1.0 * matmul.REPEATS)}
        found = pace.rates(Counter({product: 1}), {"a, x": product}, seconds)
        assert verdicts(precision_report.goals([], [], found)) == [passed]


def example_report() -> Report:
    env = {
        "cpu": {"model": "a CPU", "usable": 2, "isa": ["avx2"]},
        "memory_mb": 1000,
        "os": "Linux",
        "python": "CPython 3.11",
        "packages": {"numpy": "2"},
        "variables": {},
    }
    config = {"mode": "standard", "threads": 2, "budget_s": 4.0, "min_queries": 16}
    rows = [example_row("fp32"), example_row("w8a8", 5)]
    return Report(env, config, [Described("student", "The student", "sha256:0", "set", 1000)], rows, canary_ms=[1.0])


def test_every_variant_has_a_line_with_its_loss_and_its_interval() -> None:
    text = precision_report.to_markdown(example_report())
    line = next(line for line in text.splitlines() if line.startswith("| openvino | w8a8 "))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == len(precision_report.COLUMNS)
    assert cells[3] == "1.50" and cells[5] == ""
    assert (cells[7], cells[-1]) == ("+0.50 [+0.12, +1.17]", "3")


def test_models_that_are_left_out_come_from_an_earlier_run(tmp_path: Path) -> None:
    earlier = example_report()
    path, _ = precision_report.write(earlier, tmp_path)
    again = precision_report.read(path)
    assert precision_report.to_markdown(again) == precision_report.to_markdown(earlier)
    described = Described("b32", "large", "sha256:0", "set", 2)
    new = Report(earlier.env, earlier.config, [described], [example_row("fp32", subject="b32")], flags=["noisy"])
    found = precision_report.joined(new, again)
    assert [model.key for model in found.models] == [*(model.key for model in earlier.models), "b32"]
    assert [row.subject for row in found.rows] == [*(row.subject for row in earlier.rows), "b32"]
    assert set(found.flags) == {"noisy", *earlier.flags}
    anew = Report(earlier.env, earlier.config, [earlier.models[0]], [example_row("fp32")])
    assert precision_report.joined(anew, found).rows == [
        *(row for row in found.rows if row.subject == "b32"),
        *anew.rows,
    ]


def test_a_run_of_another_environment_is_not_joined() -> None:
    new = example_report()
    new.env = {**new.env, "python": "another"}
    with pytest.raises(UsageError, match="another python"):
        precision_report.joined(new, example_report())


def test_a_quick_run_is_not_joined_with_a_standard_one() -> None:
    new = example_report()
    new.config = {**new.config, "mode": "quick: not comparable"}
    with pytest.raises(UsageError, match="another mode"):
        precision_report.joined(new, example_report())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "other"}', '{"schema": "edgeclip.precisions/1"}'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "precisions.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"precisions\.json"):
        precision_report.read(path)


def test_the_tables_replace_those_of_the_last_run_and_nothing_else() -> None:
    page = f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    once = precision_report.insert(page, precision_report.block(example_report()))
    assert once.startswith("before\n") and once.endswith("after\n") and "old" not in once
    assert precision_report.insert(once, precision_report.block(example_report())) == once


@pytest.mark.parametrize("page", ["nothing", f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_a_page_without_a_place_for_the_tables_is_refused(page: str) -> None:
    with pytest.raises(UsageError, match="no place for the tables"):
        precision_report.insert(page, "x")


def test_the_documentation_has_a_place_for_the_tables() -> None:
    page = (ROOT / "docs" / "quantization.md").read_text("utf-8")
    assert "new tables" in precision_report.insert(page, "new tables")


def workshop(tmp_path: Path, *, keep: bool = False) -> Workshop:
    return Workshop(tmp_path / "work", tmp_path, tmp_path / "merges", lambda text: None, keep=keep)


def test_what_the_command_line_cannot_make_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"nothing")
    monkeypatch.setattr(subjects, "TEACHER", tmp_path / "model")
    with pytest.raises(ExportError, match=r"(?s)^edgeclip export ended with \d+: .*model"):
        workshop(tmp_path).teacher()


def test_what_a_bundle_has_is_not_made_again(tmp_path: Path, tiny_bundle: Path) -> None:
    made = workshop(tmp_path)
    made.add(tiny_bundle, ["no-command"], ["onnx", "openvino"], "fp32")
    with pytest.raises(ExportError, match="edgeclip no-command ended with 2"):
        made.add(tiny_bundle, ["no-command"], ["onnx"], "w8a8")


def test_a_bundle_that_other_code_made_is_made_anew_unless_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.edgeclip"
    source.write_bytes(b"source")
    bundle = workshop(tmp_path).begin("student", source)
    assert bundle.read_bytes() == b"source"
    bundle.write_bytes(b"made")
    assert workshop(tmp_path).begin("student", source).read_bytes() == b"made"
    monkeypatch.setattr(subjects, "_digest_of_code", lambda: "other")
    assert workshop(tmp_path, keep=True).begin("student", source).read_bytes() == b"made"
    assert workshop(tmp_path).begin("student", source).read_bytes() == b"source"


def test_missing_data_is_said_before_bundles_are_made(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeclip.benchmarks.precisions", "--data", str(tmp_path), "--tokenizer", __file__]
    done = subprocess.run([*command, "--work", str(tmp_path / "work")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{tmp_path / 'train'}: no such folder" in done.stderr
    assert not (tmp_path / "work").exists()
