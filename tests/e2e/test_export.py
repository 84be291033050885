"""Export into bundles: what is published, what is refused, and what an interrupted export leaves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

import edgeclip
from edgeclip.bundle import Bundle
from edgeclip.errors import EdgeClipError, ExportExistsError, ExportLockedError, NonFiniteError, ParityError, UsageError
from edgeclip.export import pipeline, to_openvino
from edgeclip.export.graph import example, tower_graph
from edgeclip.export.pipeline import export, plan
from edgeclip.export.to_onnx import to_onnx
from edgeclip.outcome import Job, raise_if_failed
from edgeclip.verify import verify
from tests import tiny

ONNX_FP32 = plan(["onnx"], ["fp32"], None)


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Path) -> pipeline.Source:
    return tiny.source(tiny_checkpoint)


@pytest.fixture
def output(source: pipeline.Source, tmp_path: Path) -> Path:
    path = tmp_path / "b.edgeclip"
    raise_if_failed(export(source, path, ONNX_FP32))
    return path


def held(path: Path) -> set[tuple[str, str, str]]:
    bundle = Bundle.open(path)
    bundle.verify_files()
    return {(a.target, a.precision, a.tower) for a in bundle.manifest.artifacts}


def test_a_second_export_adds_to_the_bundle(source: pipeline.Source, output: Path) -> None:
    golden = Bundle.open(output).read("golden.safetensors")
    raise_if_failed(export(source, output, plan(["openvino"], ["fp32"], "image")))
    assert held(output) == {("onnx", "fp32", "image"), ("onnx", "fp32", "text"), ("openvino", "fp32", "image")}
    assert Bundle.open(output).read("golden.safetensors") == golden


def test_the_same_export_gives_the_same_bytes(source: pipeline.Source, output: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.edgeclip"
    export(source, again, ONNX_FP32)
    export(source, again, plan(["openvino"], ["fp32"], None))
    export(source, output, plan(["openvino"], ["fp32"], None))
    assert again.read_bytes() == output.read_bytes()


def test_a_bundle_tells_nothing_of_the_machine_that_made_it(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    data = tiny_bundle.read_bytes()
    for secret in (str(tiny_checkpoint.parent), str(Path.cwd()), str(Path.home()) + "/", "edgeclip-", ".py"):
        assert secret.encode() not in data, secret


def test_a_bundle_holds_what_was_measured(tiny_bundle: Path) -> None:
    for artifact in Bundle.open(tiny_bundle).manifest.artifacts:
        assert artifact.parity.passed
        assert artifact.parity.cosine_min > 0.999
        assert artifact.parity.n == 16
        assert artifact.tools["torch"] == torch.__version__


def test_what_is_there_is_not_replaced_unless_forced(source: pipeline.Source, output: Path) -> None:
    before = output.read_bytes()
    with pytest.raises(ExportExistsError, match=r"has onnx fp32 image already.*--force"):
        export(source, output, ONNX_FP32)
    assert output.read_bytes() == before
    raise_if_failed(export(source, output, ONNX_FP32, force=True))
    assert held(output) == {("onnx", "fp32", "image"), ("onnx", "fp32", "text")}


def test_another_checkpoint_does_not_join_a_bundle(output: Path, tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ExportExistsError, match="the bundle there is of another checkpoint"):
        export(tiny.source(tmp_path / "other"), output, plan(["openvino"], ["fp32"], None))


def test_a_file_that_is_no_bundle_is_never_replaced(source: pipeline.Source, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(EdgeClipError, match="notes.txt"):
        export(source, path, ONNX_FP32, force=True)
    assert path.read_text() == "mine"


def test_an_artifact_below_its_gate_is_not_published(
    source: pipeline.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(monkeypatch)
    path = tmp_path / "b.edgeclip"
    outcomes = export(source, path, plan(["onnx"], ["fp32"], "image"))
    assert [o.status for o in outcomes] == ["below gate"]
    assert not path.exists()
    with pytest.raises(ParityError, match=r"onnx fp32 image: cosine mean .* < 0\.99995.*--allow-below-gate"):
        raise_if_failed(outcomes)


def test_an_artifact_below_its_gate_is_marked_where_it_is_allowed(
    source: pipeline.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(monkeypatch)
    path = tmp_path / "b.edgeclip"
    raise_if_failed(
        export(source, path, plan(["onnx"], ["fp32"], "image"), allow_below_gate=True), allow_below_gate=True
    )
    assert not Bundle.open(path).manifest.artifacts[0].parity.passed


def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export a graph that rotates every embedding by one coordinate."""
    true = pipeline.tower_graph

    def rotated(*args: object) -> torch.nn.Module:
        class Rotated(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = true(*args)  # type: ignore[arg-type]

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.inner(x).roll(1, -1)  # type: ignore[no-any-return]

        return Rotated().eval()

    monkeypatch.setattr(pipeline, "tower_graph", rotated)


def test_one_failure_keeps_all_back_unless_told_to_keep_going(
    source: pipeline.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_openvino, "sys", type("Sys", (), {"executable": "/bin/false"}))
    path = tmp_path / "b.edgeclip"
    jobs = plan(["onnx", "openvino"], ["fp32"], "image")
    assert [o.status for o in export(source, path, jobs)] == ["ok", "failed"]
    assert not path.exists()
    outcomes = export(source, path, jobs, keep_going=True)
    assert held(path) == {("onnx", "fp32", "image")}
    with pytest.raises(EdgeClipError, match="openvino: the converter failed"):
        raise_if_failed(outcomes)


def test_a_crash_of_the_converter_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(to_openvino, "sys", type("Sys", (), {"executable": str(crash)}))
    with pytest.raises(EdgeClipError, match="openvino: the converter was killed by signal 11"):
        to_openvino.to_openvino(b"", "image", "fp32")


def test_a_hang_of_the_converter_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hang = tmp_path / "python"
    hang.write_text("#!/bin/sh\nexec sleep 60\n")
    hang.chmod(0o755)
    monkeypatch.setattr(to_openvino, "sys", type("Sys", (), {"executable": str(hang)}))
    monkeypatch.setattr(to_openvino, "TIME_LIMIT_S", 0.2)
    with pytest.raises(EdgeClipError, match="converting took longer"):
        to_openvino.to_openvino(b"", "image", "fp32")


def test_weights_that_are_not_finite_are_named_before_anything_is_made(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path / "clip")
    file = tmp_path / "clip" / "model.safetensors"
    tensors = load_file(file)
    tensors["visual_projection.weight"][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match="projection"):
        tiny.source(tmp_path / "clip")


def test_two_exports_to_one_path_exclude_each_other(source: pipeline.Source, output: Path) -> None:
    code = "import sys, time; from pathlib import Path; from edgeclip import publish\nwith publish.lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(output)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ExportLockedError):
            export(source, output, ONNX_FP32, force=True)
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize("opset", [17, 18, 19, 20])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_every_opset_is_what_it_says_and_self_contained(source: pipeline.Source, tower: str, opset: int) -> None:
    graph = tower_graph(source.clip, tower, source.preprocess)  # type: ignore[arg-type]
    model = onnx.load_from_string(to_onnx(graph, tower, example(source.clip, tower), opset))  # type: ignore[arg-type]
    assert {(o.domain, o.version) for o in model.opset_import if o.domain == ""} == {("", opset)}
    assert {node.domain for node in model.graph.node} == {""}
    assert not [i.name for i in model.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_an_opset_outside_the_range_is_refused(source: pipeline.Source) -> None:
    with pytest.raises(UsageError, match=r"opset 23 is not supported \(17 to 20\)"):
        to_onnx(torch.nn.Identity(), "image", torch.zeros(2), opset=23)


def test_half_precision_keeps_its_islands_of_single_precision(source: pipeline.Source) -> None:
    graph = tower_graph(source.clip, "image", source.preprocess, torch.float16)
    model = onnx.load_from_string(to_onnx(graph, "image", example(source.clip, "image")))
    kinds = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    for node in model.graph.node:
        if node.op_type in ("Softmax", "LayerNormalization"):
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT, node.name
        if node.op_type == "MatMul":
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT16, node.name


def test_what_cannot_be_exported_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="target 'tflite' cannot be exported.*onnx, openvino"):
        plan(["tflite"], ["fp32"], None)  # type: ignore[list-item]
    with pytest.raises(UsageError, match="target onnx cannot be exported at precision 'w4a16'"):
        plan(["onnx"], ["w4a16"], None)
    assert plan(["onnx", "onnx"], ["fp32"], "text") == [Job("text", "onnx", "fp32")]


@pytest.mark.parametrize("change", ["scale", "sign"])
def test_verify_finds_an_engine_that_computes_something_else(
    tiny_bundle: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with edgeclip.load(tiny_bundle) as model:
        true = model._sessions["image"]

        class Off:
            engine = true.engine

            def run(self, inputs: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
                rows = true.run(inputs)
                return np.asarray(-rows if change == "sign" else rows * np.float32(1.1))

            def close(self) -> None: ...

        monkeypatch.setitem(model._sessions, "image", Off())
        result = verify(model)
        assert not result.passed
        with pytest.raises(ParityError, match=r"does not reproduce the reference: image .*"):
            result.raise_if_failed()
        monkeypatch.setitem(model._sessions, "image", true)
        assert verify(model).passed


def test_verify_finds_constant_embeddings(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with edgeclip.load(tiny_bundle) as model:
        monkeypatch.setattr(model, "encode_pixels", lambda p: np.tile(np.eye(1, 48, dtype=np.float32), (len(p), 1)))
        failures = [f for check in verify(model).checks for f in check.failures]
    assert any("top-1 agreement 0.0625 < 1" in f for f in failures)


def test_verify_finds_a_wrong_tokenizer_and_a_wrong_resize(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import edgeclip.verify as verification

    with edgeclip.load(tiny_bundle) as model:
        tokenize, preprocess = model.tokenize, verification.preprocess
        monkeypatch.setattr(model, "tokenize", lambda texts: tokenize([t.upper() + "!" for t in texts]))
        monkeypatch.setattr(verification, "preprocess", lambda *a: np.roll(preprocess(*a), 1, axis=0))
        found = {check.name: check.failures for check in verify(model).checks}
    assert "a pixel differs by" in found["preprocess"][0]
    assert "has other token ids" in found["tokenizer"][0]


KILLED = """
import sys
from pathlib import Path
from edgeclip.export.pipeline import export, plan
from edgeclip.export.source import open_source
source = open_source(sys.argv[1], random_weights=True)
print("ready", flush=True)
while True:
    export(source, Path(sys.argv[2]), plan(["onnx"], ["fp32"], "image"), force=True)
    print("published", flush=True)
"""


@pytest.mark.nightly
def test_an_overwriting_export_killed_at_any_moment_leaves_a_whole_bundle(tiny_checkpoint: Path, output: Path) -> None:
    """A hundred kills of whole exports. The default run kills the writer alone, as often, in a hundredth of the time."""
    rng = random.Random(0)
    for _ in range(100):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tiny_checkpoint), str(output)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 4))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert held(output) == {("onnx", "fp32", "image"), ("onnx", "fp32", "text")}
