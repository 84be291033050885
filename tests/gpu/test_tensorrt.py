"""The backend `tensorrt` on a real GPU: engines that are built here agree with ONNX Runtime on the same graphs.

`EDGECLIP_GPU_BUNDLES` names a folder of bundles with artifacts for TensorRT. What the numbers must be is what ONNX
Runtime's CPU provider makes of the very graph that the engine was built from.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip import backends
from edgeclip.backends.base import Array, Embeddings
from edgeclip.bundle import Bundle
from edgeclip.errors import InputShapeError, ModelClosedError
from edgeclip.manifest import Artifact, Precision, Tower
from tests.cli import document
from tests.cli import edgeclip as run_edgeclip

pytestmark = pytest.mark.gpu

FOLDER = os.environ.get("EDGECLIP_GPU_BUNDLES", "")
WHOLE_BATCHES = (1, 8, 32)
ODD_BATCHES = (3, 33, 70)
LEAST_COSINE: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.999, "w8a8": 0.98}
"""Against ONNX Runtime on the same graph: float32's order of summation, float16's rounding, int8's ties."""
MEBIBYTE = 1 << 20


def _absent() -> str:
    """What this machine lacks, or ""."""
    if not backends.installed("tensorrt"):
        return f"not installed: {', '.join(backends.missing('tensorrt'))}"
    if not backends.ready("tensorrt"):
        return "no NVIDIA GPU"
    if find_spec("onnxruntime") is None:
        return "onnxruntime, the reference, is not installed"
    return "" if FOLDER else "EDGECLIP_GPU_BUNDLES names no folder of bundles"


def _cases() -> list[Any]:
    """Every artifact for TensorRT of every bundle; one that is skipped where there is no GPU."""
    if reason := _absent():
        return [pytest.param(None, None, None, marks=pytest.mark.skip(reason=reason), id="none")]
    return [
        pytest.param(path, artifact.tower, artifact.precision, id=f"{path.stem}-{artifact.precision}-{artifact.tower}")
        for path in sorted(Path(FOLDER).glob("*.edgeclip"))
        for artifact in Bundle.open(path).manifest.artifacts
        if artifact.target == "tensorrt"
    ]


CASES = _cases()
every_artifact = pytest.mark.parametrize(("path", "tower", "precision"), CASES)
first_artifacts = pytest.mark.parametrize(("path", "tower", "precision"), CASES[:2])
first_artifact = pytest.mark.parametrize(("path", "tower", "precision"), CASES[:1])


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(autouse=True)
def shared_cache(private_cache: Path, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are built once for all of these tests."""
    monkeypatch.setenv("EDGECLIP_CACHE", str(engines))


def load(path: Path, tower: Tower, precision: Precision) -> edgeclip.Model:
    return edgeclip.load(path, backend="tensorrt", tower=tower, precision=precision)


def run(model: edgeclip.Model, tower: Tower, inputs: Array) -> Embeddings:
    """The engine's own answer, one call a batch."""
    return model._sessions[tower].run(inputs)


def artifact_of(path: Path, tower: Tower, precision: Precision) -> Artifact:
    found = Bundle.open(path).manifest.artifacts
    return next(a for a in found if (a.target, a.tower, a.precision) == ("tensorrt", tower, precision))


@cache
def reference(path: Path, tower: Tower, precision: Precision) -> Any:
    """ONNX Runtime's session of an artifact's graph, on the CPU."""
    import onnxruntime

    artifact = artifact_of(path, tower, precision)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    graph = Bundle.open(path).read(artifact.file)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def inputs_of(path: Path, tower: Tower, rows: int, seed: int = 0, length: int | None = None) -> Array:
    """Random pixels in blocks, or random token ids that end as texts do."""
    manifest = Bundle.open(path).manifest
    rng = np.random.default_rng(seed)
    if tower == "image":
        side = manifest.preprocess.size
        coarse = rng.integers(0, 256, (rows, 6, 6, 3), np.uint8)
        return np.ascontiguousarray(coarse.repeat(-(-side // 6), 1).repeat(-(-side // 6), 2)[:, :side, :side])
    spec = manifest.tokenizer
    assert spec is not None
    length = length or spec.context_length
    ids = rng.integers(1, min(spec.sot_id, spec.eot_id), (rows, length), np.int32)
    ids[:, 0], ids[:, -1] = spec.sot_id, spec.eot_id
    return ids


def expected(path: Path, tower: Tower, precision: Precision, inputs: Array) -> Embeddings:
    session = reference(path, tower, precision)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0])


def cosines(a: Embeddings, b: Embeddings) -> Array:
    assert a.shape == b.shape and a.dtype == b.dtype == np.float32
    return np.asarray((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def require_agreement(path: Path, tower: Tower, precision: Precision, ours: Embeddings, inputs: Array) -> None:
    found = cosines(ours, expected(path, tower, precision, inputs)).min()
    assert found >= LEAST_COSINE[precision], f"batch {len(inputs)}: cosine {found:.6f}"


@every_artifact
def test_engines_agree_with_the_graph_at_every_batch(path: Path, tower: Tower, precision: Precision) -> None:
    with load(path, tower, precision) as model:
        assert model.info.device == "cuda:0" and model.info.backend == "tensorrt"
        for rows in (*WHOLE_BATCHES, *ODD_BATCHES):
            inputs = inputs_of(path, tower, rows, seed=rows)
            for _ in range(3):  # plain, recorded, replayed
                require_agreement(path, tower, precision, run(model, tower, inputs), inputs)


@every_artifact
def test_texts_of_every_length_agree(path: Path, tower: Tower, precision: Precision) -> None:
    if tower != "text":
        pytest.skip("images have one size")
    profile = artifact_of(path, tower, precision).profile
    assert profile is not None and profile.context is not None
    with load(path, tower, precision) as model:
        for length in sorted({profile.context.min, 5, profile.context.max // 2, profile.context.max}):
            inputs = inputs_of(path, tower, 4, length, length)
            require_agreement(path, tower, precision, run(model, tower, inputs), inputs)


@every_artifact
def test_cuda_graphs_change_nothing(
    path: Path, tower: Tower, precision: Precision, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batches = [inputs_of(path, tower, rows, seed=rows) for rows in (1, 3, 8)]
    monkeypatch.setenv("EDGECLIP_CUDA_GRAPHS", "0")
    with load(path, tower, precision) as model:
        plain = [run(model, tower, inputs) for inputs in batches]
    monkeypatch.setenv("EDGECLIP_CUDA_GRAPHS", "1")
    with load(path, tower, precision) as model:
        for _ in range(4):
            for inputs, row in zip(batches, plain, strict=True):
                assert cosines(run(model, tower, inputs), row).min() > 0.99999
        (runner,) = model._sessions[tower]._pool._idle  # type: ignore[attr-defined]
        recorded = [shape for shape, graph in runner._graphs.items() if graph is not None]
    assert "not recorded" not in caplog.text
    assert len(recorded) == 3


@first_artifact
def test_more_shapes_than_graphs_are_kept(path: Path, tower: Tower, precision: Precision) -> None:
    from edgeclip.backends.trt_runner import GRAPHS

    with load(path, tower, precision) as model:
        for _ in range(2):
            for rows in range(1, GRAPHS + 8):
                inputs = inputs_of(path, tower, rows, seed=rows)
                first, second = run(model, tower, inputs), run(model, tower, inputs)
                assert cosines(first, second).min() > 0.99999
                require_agreement(path, tower, precision, second, inputs)
        (runner,) = model._sessions[tower]._pool._idle  # type: ignore[attr-defined]
        assert len(runner._graphs) == GRAPHS


@first_artifacts
def test_many_threads_get_their_own_results(path: Path, tower: Tower, precision: Precision) -> None:
    batches = [inputs_of(path, tower, 1 + i % 9, seed=i) for i in range(64)]
    with load(path, tower, precision) as model:
        alone = [run(model, tower, inputs) for inputs in batches]
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda inputs: run(model, tower, inputs), batches * 4))
    for i, found in enumerate(together):
        assert cosines(found, alone[i % 64]).min() > 0.99999


@first_artifact
def test_a_second_load_builds_nothing(
    path: Path, tower: Tower, precision: Precision, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from edgeclip.backends import trt_engines

    load(path, tower, precision).close()
    caplog.clear()
    monkeypatch.setattr(trt_engines, "build_plan", lambda *a, **k: pytest.fail("built a second time"))
    with load(path, tower, precision) as model:
        inputs = inputs_of(path, tower, 2)
        require_agreement(path, tower, precision, run(model, tower, inputs), inputs)
    assert "built" not in caplog.text


@first_artifact
def test_a_tampered_engine_is_built_again(
    path: Path, tower: Tower, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    load(path, tower, precision).close()
    (entry,) = (tmp_path / "cache" / "tensorrt").iterdir()
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes(data)
    caplog.clear()
    with load(path, tower, precision) as model:
        inputs = inputs_of(path, tower, 2)
        require_agreement(path, tower, precision, run(model, tower, inputs), inputs)
    assert "it is not what was written" in caplog.text and "built the engine" in caplog.text
    assert entry.read_bytes() != bytes(data)


@first_artifact
def test_a_plan_that_the_library_refuses_is_built_again(
    path: Path, tower: Tower, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """As after an update that the fingerprint does not see: the entry is ours and whole, but not an engine."""
    from edgeclip.backends import cuda, trt_engines

    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    artifact = artifact_of(path, tower, precision)
    made = trt_engines.recipe(artifact, Bundle.open(path).read(artifact.file), cuda.describe(0))
    trt_engines.write(made, trt_engines.Engine(b"no engine" * 99, 0.0, False, "unknown", ""))
    with load(path, tower, precision) as model:
        inputs = inputs_of(path, tower, 2)
        require_agreement(path, tower, precision, run(model, tower, inputs), inputs)
    assert "is built again" in caplog.text


@first_artifact
def test_closing_gives_the_memory_back(path: Path, tower: Tower, precision: Precision) -> None:
    from edgeclip.backends import cuda

    def once() -> int:
        with load(path, tower, precision) as model:
            for rows in (1, 1, 32, 32):
                run(model, tower, inputs_of(path, tower, rows))
        return cuda.free_bytes(0)

    before = once()  # what CUDA and TensorRT keep for the process, they have by now
    assert min(once() for _ in range(5)) >= before - 16 * MEBIBYTE


@first_artifact
def test_a_closed_model_says_so_and_a_wrong_shape_too(path: Path, tower: Tower, precision: Precision) -> None:
    inputs = inputs_of(path, tower, 2)
    model = load(path, tower, precision)
    with pytest.raises(InputShapeError, match="the engine takes"):
        run(model, tower, inputs.astype(np.float32))
    with pytest.raises(InputShapeError, match="the engine takes"):
        run(model, tower, np.concatenate([inputs, inputs], axis=1))
    session = model._sessions[tower]
    model.close()
    model.close()
    with pytest.raises(ModelClosedError, match="this model is closed"):
        session.run(inputs)


@first_artifact
def test_auto_takes_the_gpu_unless_a_cpu_is_asked_for(path: Path, tower: Tower, precision: Precision) -> None:
    with edgeclip.load(path, tower=tower) as model:
        assert (model.info.backend, model.info.device) == ("tensorrt", "cuda:0")
    if any(artifact.target == "onnx" for artifact in Bundle.open(path).manifest.artifacts):
        with edgeclip.load(path, tower=tower, device="cpu") as model:
            assert model.info.device == "cpu"


@first_artifact
def test_a_load_that_is_killed_while_it_builds_leaves_nothing(
    path: Path, tower: Tower, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    code = (
        "import sys, edgeclip; edgeclip.load(sys.argv[1], backend='tensorrt', tower=sys.argv[2], precision=sys.argv[3])"
    )
    arguments = [sys.executable, "-c", code, str(path), tower, precision]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "building the engine" in process.stderr.readline()
        time.sleep(0.2)
        process.kill()
    assert not list((tmp_path / "cache").glob("tensorrt/*.engine"))
    with load(path, tower, precision) as model:
        inputs = inputs_of(path, tower, 2)
        require_agreement(path, tower, precision, run(model, tower, inputs), inputs)


@first_artifact
def test_the_command_line_builds_verifies_and_names_the_gpu(path: Path, tower: Tower, precision: Precision) -> None:
    built = run_edgeclip("build", path, "--precision", precision, "--tower", tower, "--json")
    assert built.returncode == 0, built.stderr
    (engine,) = document(built)["engines"]
    assert engine["bytes"] > 0 and engine["tower"] == tower
    verified = run_edgeclip("verify", path, "--backend", "tensorrt", "--precision", precision, "--tower", tower)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    report = next(r for r in document(run_edgeclip("doctor", "--json"))["backends"] if r["backend"] == "tensorrt")
    assert report["usable"] and "compute capability" in report["devices"]["cuda:0"], report


@first_artifact
def test_a_program_that_closes_nothing_ends_well(path: Path, tower: Tower, precision: Precision) -> None:
    code = """
import sys, numpy as np, edgeclip
model = edgeclip.load(sys.argv[1], backend="tensorrt", tower=sys.argv[2], precision=sys.argv[3])
print(model.info.engine_version)
"""
    load(path, tower, precision).close()  # so that nothing needs to be built
    arguments = [sys.executable, "-c", code, str(path), tower, precision]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module", autouse=True)
def close_references() -> Iterator[None]:
    yield
    reference.cache_clear()
