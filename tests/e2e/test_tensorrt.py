"""TensorRT without a GPU: what is refused and how, real builds by TensorRT-RTX, and the cache that engines are kept in."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeclip
from edgeclip import backends
from edgeclip.bundle import Bundle, write_bundle
from edgeclip.errors import ResourceError, TargetLoadError, TargetUnavailableError, UsageError
from edgeclip.manifest import Artifact, Axis, Profile
from edgeclip.selection import select
from tests import bundles
from tests.cli import document
from tests.cli import edgeclip as run_edgeclip

pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed: pip install 'edgeclip[tensorrt-ci]'")
pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'edgeclip[tensorrt-ci]'")

from edgeclip.backends import cuda, trt_engines
from edgeclip.backends.trt_build import build_plan
from edgeclip.powermode import power_mode

PROFILE = Profile(batch=Axis(min=1, opt=8, max=32))
GPU = cuda.Gpu(0, "Test GPU", "8.7", 1 << 33, "12.6")
SIDE, DIM = 8, 4


def model(*, odd: str = "", weight: int = 0) -> bytes:
    """[batch, 8, 8, 3] uint8 -> [batch, 4] float32, one product; `odd` is an operator behind it."""
    rng = np.random.default_rng(weight)
    matrix = numpy_helper.from_array(rng.normal(size=(SIDE * SIDE * 3, DIM)).astype(np.float32), "w")
    flat = numpy_helper.from_array(np.array([-1, SIDE * SIDE * 3], np.int64), "flat")
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Reshape", ["float", "flat"], ["rows"], name="rows"),
        helper.make_node("MatMul", ["rows", "w"], ["product" if odd else "embeds"], name="project"),
    ]
    if odd:
        nodes.append(helper.make_node(odd, ["product"], ["embeds"], name="strange"))
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])
    embeds = helper.make_tensor_value_info("embeds", TensorProto.FLOAT, ["batch", DIM])
    graph = helper.make_graph(nodes, "g", [pixels], [embeds], [matrix, flat])
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(whole.SerializeToString())


def artifact(**changes: Any) -> Artifact:
    made = bundles.artifact("image", "tensorrt", "fp32")
    return msgspec.structs.replace(made, **{"profile": PROFILE} | changes)


def bundle(path: Path, *, with_onnx: bool = False) -> Path:
    """A bundle with an image tower for TensorRT."""
    kept = [artifact()] + ([bundles.artifact("image", "onnx", "fp32")] if with_onnx else [])
    files = {made.file: model() for made in kept} | {"golden.safetensors": b"\0" * 64}
    write_bundle(path, bundles.manifest(artifacts=tuple(kept), tokenizer=None), files, replace=False)
    return path


def child(code: str) -> list[str]:
    """A builder of another kind: Python code in a process of its own."""
    return [sys.executable, "-c", code]


without_gpu = pytest.mark.skipif(cuda.present(), reason="this machine has an NVIDIA GPU")


# Without a GPU


@without_gpu
@pytest.mark.parametrize("arguments", [["build"], ["verify", "--backend", "tensorrt"]])
def test_without_a_gpu_one_line_says_so_and_the_exit_code_is_5(arguments: list[str], tmp_path: Path) -> None:
    done = run_edgeclip(*arguments, bundle(tmp_path / "b.edgeclip"))
    assert done.returncode == 5, done.stderr
    error, hint = done.stderr.strip().splitlines()
    assert error.startswith("error: no NVIDIA GPU found: ")
    assert hint.startswith("hint: install the NVIDIA driver")


@without_gpu
def test_without_a_gpu_the_library_raises_and_the_process_lives_on(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b.edgeclip")
    for device in (None, "cuda", "cuda:3"):
        with pytest.raises(TargetUnavailableError, match="no NVIDIA GPU found"):
            edgeclip.load(made, backend="tensorrt", device=device)


def test_a_device_that_is_no_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailableError, match="tensorrt has no device 'cpu'; it runs on NVIDIA GPUs"):
        edgeclip.load(bundle(tmp_path / "b.edgeclip"), backend="tensorrt", device="cpu")


@without_gpu
def test_doctor_says_what_tensorrt_lacks() -> None:
    report = next(r for r in document(run_edgeclip("doctor", "--json"))["backends"] if r["backend"] == "tensorrt")
    assert not report["usable"] and report["version"].startswith("tensorrt_rtx 1.")
    assert "no NVIDIA GPU found" in report["reason"] and "NVIDIA driver" in report["fix"]


@without_gpu
def test_auto_leaves_tensorrt_out_and_says_what_is_missing_where_nothing_else_is_there(tmp_path: Path) -> None:
    both = Bundle.open(bundle(tmp_path / "both.edgeclip", with_onnx=True)).manifest
    assert select(both).artifacts["image"].target == "onnx"
    alone = Bundle.open(bundle(tmp_path / "alone.edgeclip")).manifest
    with pytest.raises(TargetUnavailableError, match=r"nothing here runs .*tensorrt-fp32 \(image\)"):
        select(alone)
    with pytest.raises(UsageError, match="no artifact for: image"):
        select(alone, device="cpu")


def test_loading_another_backend_imports_nothing_of_tensorrt(tiny_bundle: Path) -> None:
    code = """
import sys, edgeclip
edgeclip.load(sys.argv[1], tower="image")
print([name for name in sys.modules if name.partition(".")[0] in ("cuda", "tensorrt", "tensorrt_rtx")])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tiny_bundle)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_missing_binding_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert not backends.installed("tensorrt")
    with pytest.raises(
        TargetUnavailableError, match=r"the library 'cuda.bindings' is not installed; .*edgeclip\[tensorrt"
    ):
        backends.get("tensorrt")


# The builder


def test_a_graph_is_built_without_a_gpu() -> None:
    ticks: list[float] = []
    plan = build_plan(model(), PROFILE, precision="fp32", tick=ticks.append)
    assert len(plan) > 1000


def test_a_node_that_is_not_supported_is_named() -> None:
    with pytest.raises(
        TargetLoadError, match=r"image.onnx: TensorRT cannot build it: node 'strange' \(Unique\): UNSUPPORTED_NODE"
    ):
        build_plan(model(odd="Unique"), PROFILE, precision="fp32", name="image.onnx")


@pytest.mark.parametrize("data", [b"", b"no graph at all", model()[:100]])
def test_what_is_no_graph_is_refused(data: bytes) -> None:
    with pytest.raises(TargetLoadError, match="TensorRT cannot build it: "):
        build_plan(data, PROFILE, precision="fp32")


def test_an_axis_without_sizes_is_refused() -> None:
    graph = onnx.load_model_from_string(model())
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"
    with pytest.raises(TargetLoadError, match="does not say how large axis 1 is"):
        build_plan(graph.SerializeToString(), PROFILE, precision="fp32")


@without_gpu
def test_a_build_for_a_gpu_says_that_there_is_none() -> None:
    with pytest.raises(TargetLoadError, match="no NVIDIA GPU found"):
        build_plan(model(), PROFILE, precision="fp32", device=0)


BROKEN: dict[str, tuple[str, type[Exception], str]] = {
    "crash": (
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        TargetLoadError,
        r"builder crashed \(SIGSEGV\)",
    ),
    "half": (
        "import os; os.write(1, b'{\"error\": null}\\nhalf'); os.kill(os.getpid(), 9)",
        TargetLoadError,
        r"builder crashed \(SIGKILL\)",
    ),
    "exit": ("raise SystemExit('no luck')", TargetLoadError, r"ended without an engine \(exit code 1\): no luck"),
    "silent": ("pass", TargetLoadError, r"ended without an engine \(exit code 0\)"),
    "empty": ("print('{\"error\": null}')", TargetLoadError, "the plan is empty"),
    "memory": ('print(\'{"error": "Error Code 2: OutOfMemory"}\')', ResourceError, "OutOfMemory"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_builder_that_breaks_is_an_error_of_ours_and_leaves_nothing(
    kind: str, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, error, message = BROKEN[kind]
    monkeypatch.setattr(trt_engines, "build_plan", partial(build_plan, command=child(code)))
    with pytest.raises(error, match=message):
        trt_engines.obtain(artifact(), model(), GPU)
    assert not list(private_cache.rglob("*.*"))


def test_a_builder_that_hangs_is_ended(private_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    monkeypatch.setattr(trt_engines, "build_plan", partial(build_plan, command=child(code)))
    with pytest.raises(TargetLoadError, match="did not finish building within 2 s; it was ended"):
        trt_engines.obtain(artifact(), model(), GPU, limit_s=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not list(private_cache.rglob("*.*"))


def test_a_builder_that_begins_late_gets_the_whole_graph() -> None:
    """A graph is larger than what a pipe holds, and a slow device takes seconds to start the process that reads it."""
    code = """
import sys, time
time.sleep(2.5)
size = len(sys.stdin.buffer.read())
print('{"error": "%d bytes"}' % size)
"""
    with pytest.raises(TargetLoadError, match="cannot build it: 1000000 bytes"):
        build_plan(bytes(1_000_000), PROFILE, precision="fp32", limit_s=30, command=child(code))


def test_a_builder_does_not_outlive_who_waits_for_it(tmp_path: Path) -> None:
    """The real child, which waits for the rest of its graph while its parent is killed."""
    code = """
import json, subprocess, sys, time
from edgeclip.backends.trt_build import CHILD
child = subprocess.Popen([*CHILD, json.dumps(sys.path), "{}"])  # its standard input is ours, which stays open
print(child.pid, flush=True)
time.sleep(600)
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not _gone(pid, within_s=2)
        parent.kill()
        assert _gone(pid, within_s=30)


def _gone(pid: int, *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # ended; its new parent has not looked yet
            return True
        time.sleep(0.1)
    return False


# The cache


@pytest.fixture
def built_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Real builds, by RTX without a GPU; the list gets the name of each."""
    builds: list[str] = []

    def build(onnx: bytes, profile: Profile, *, device: int, name: str, **options: Any) -> bytes:
        builds.append(name)
        return build_plan(onnx, profile, name=name, **options)

    monkeypatch.setattr(trt_engines, "build_plan", build)
    return builds


def entry(cache: Path) -> Path:
    (found,) = (cache / "tensorrt").iterdir()
    return found


def test_an_engine_is_built_once_and_kept(
    private_cache: Path, built_here: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = trt_engines.obtain(artifact(), model(), GPU, device_profile="bench, fan on")
    assert "building the engine of tensorrt-fp32/image.onnx for Test GPU" in caplog.text
    second = trt_engines.obtain(artifact(), model(), GPU)
    assert bytes(second.plan) == bytes(first.plan)
    assert (first.cached, second.cached, built_here) == (False, True, ["tensorrt-fp32/image.onnx"])
    assert (second.power_mode, second.device_profile, second.seconds) == ("unknown", "bench, fan on", first.seconds)
    assert entry(private_cache).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "other",
    [
        {"gpu": cuda.Gpu(0, "Test GPU", "8.6", 1 << 33, "12.6")},
        {"gpu": cuda.Gpu(0, "Another GPU", "8.7", 1 << 33, "12.6")},
        {"gpu": cuda.Gpu(0, "Test GPU", "8.7", 1 << 33, "12.8")},
        {"onnx": model(weight=1)},
        {"artifact": artifact(precision="fp16")},
        {"artifact": artifact(profile=Profile(batch=Axis(min=1, opt=8, max=64)))},
    ],
    ids=["compute capability", "gpu", "driver", "graph", "precision", "profile"],
)
def test_what_decides_an_engine_is_in_its_name(other: dict[str, Any]) -> None:
    asked = {"artifact": artifact(), "onnx": model(), "gpu": GPU}
    assert trt_engines.recipe(**asked).entry != trt_engines.recipe(**asked | other).entry


def test_the_library_is_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = trt_engines.recipe(artifact(), model(), GPU).entry
    monkeypatch.setattr(trt_engines, "version", lambda: "rtx 9.9")
    assert trt_engines.recipe(artifact(), model(), GPU).entry != mine


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _anothers(path: Path) -> None:
    """A whole entry of ours, under the name of another engine."""
    other = trt_engines.recipe(artifact(), model(weight=5), GPU)
    trt_engines.write(other, trt_engines.Engine(b"native code", 1.0, False, "unknown", ""))
    path.with_name(Path(other.entry).name).replace(path)


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (_flip, "it is not what was written"),
    "cut": (_cut, "it is not what was written"),
    "empty": (lambda path: path.write_bytes(b""), "it is not what was written"),
    "group": (lambda path: path.chmod(0o620), "it can be written by other users"),
    "world": (lambda path: path.chmod(0o602), "it can be written by other users"),
    "folder": (lambda path: path.parent.chmod(0o777), "tensorrt can be written by other users"),
    "link": (_link, "is not used"),
    "pipe": (_pipe, "it is not a plain file"),
    "other": (_anothers, "it was built from something else"),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_tampered_entry_is_never_loaded(
    kind: str, private_cache: Path, built_here: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    change, reason = TAMPERED[kind]
    trt_engines.obtain(artifact(), model(), GPU)
    change(entry(private_cache))
    caplog.clear()
    again = trt_engines.obtain(artifact(), model(), GPU)
    assert not again.cached and len(built_here) == 2
    assert reason in caplog.text


@pytest.mark.parametrize("what", ["entry", "folder"])
def test_what_belongs_to_another_user_is_never_loaded(
    what: str, private_cache: Path, built_here: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can give files away")
    trt_engines.obtain(artifact(), model(), GPU)
    found = entry(private_cache)
    os.chown(found if what == "entry" else found.parent, 12345, 12345)
    again = trt_engines.obtain(artifact(), model(), GPU)
    assert not again.cached and len(built_here) == 2
    assert "belongs to another user" in caplog.text


def test_engines_can_be_built_afresh(built_here: list[str]) -> None:
    trt_engines.obtain(artifact(), model(), GPU)
    assert not trt_engines.obtain(artifact(), model(), GPU, afresh=True).cached
    assert len(built_here) == 2


def test_an_artifact_without_a_profile_is_refused() -> None:
    with pytest.raises(TargetLoadError, match="no profile of the sizes"):
        trt_engines.obtain(artifact(profile=None), model(), GPU)


WRITER = """
import sys
from functools import partial
import msgspec
from edgeclip.backends import cuda, trt_engines
from edgeclip.backends.trt_build import build_plan
from edgeclip.manifest import Artifact
artifact = msgspec.json.decode(sys.argv[1], type=Artifact)
gpu = cuda.Gpu(**msgspec.json.decode(sys.argv[2]))
plan = "import sys; sys.stdin.buffer.read(); sys.stdout.buffer.write(b'{\\"error\\": null}\\n' + b'plan' * 5_000_000)"
trt_engines.build_plan = partial(build_plan, command=[sys.executable, "-c", plan])
print("ready", flush=True)
while True:
    trt_engines.obtain(artifact, b"graph", gpu, afresh=True, tick=lambda passed_s: None)
"""


def test_a_kill_at_any_moment_leaves_a_whole_engine_or_none(private_cache: Path) -> None:
    """20 MB are built and written over and over; the process is killed at moments spread over some rounds."""
    wanted = trt_engines.recipe(artifact(), b"graph", GPU)
    arguments = [sys.executable, "-c", WRITER, msgspec.json.encode(artifact()), msgspec.json.encode(GPU)]
    seen = set()
    for moment in range(8):
        for left in private_cache.rglob("*.engine"):
            left.unlink()
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(0.05 * moment)
            writer.kill()
        found = trt_engines.read(wanted)
        seen.add(found is not None)
        assert found is None or bytes(found.plan) == b"plan" * 5_000_000
    assert False in seen


def test_a_build_that_is_interrupted_is_done_again(
    private_cache: Path, built_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as interrupted:

        def stop(passed_s: float) -> None:
            raise KeyboardInterrupt

        slow = partial(build_plan, command=child("import time; time.sleep(600)"))
        interrupted.setattr(trt_engines, "build_plan", slow)
        with pytest.raises(KeyboardInterrupt):
            trt_engines.obtain(artifact(), model(), GPU, tick=stop)
    assert not list(private_cache.rglob("*.*"))
    assert not trt_engines.obtain(artifact(), model(), GPU).cached


# The power mode, and the command


@pytest.mark.parametrize(
    ("script", "mode"),
    [
        ("echo 'NV Power Mode: MAXN_SUPER'; echo 2", "MAXN_SUPER"),
        ("echo 'NV Fan Mode:quiet'; echo 'NV Power Mode: 15W'; echo 0", "15W"),
        ("exit 1", "unknown"),
        ("echo nothing", "unknown"),
    ],
)
def test_the_power_mode_is_what_the_device_says(
    script: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "nvpmodel"
    command.write_text(f'#!/bin/sh\n[ "$1" = -q ] || exit 9\n{script}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert power_mode() == mode


def test_build_says_what_the_bundle_holds_where_there_is_nothing_to_build(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run_edgeclip("build", tiny_bundle)
    assert done.returncode == 2 and "the bundle has no artifact for: tensorrt" in done.stderr
    assert "edgeclip export --target tensorrt" in done.stderr
    done = run_edgeclip("build", bundle(tmp_path / "b.edgeclip"), "--precision", "fp16", "--tower", "text")
    assert done.returncode == 2 and "the bundle has no artifact for: tensorrt fp16 text" in done.stderr


def test_the_library_speaks_to_python_alone(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from edgeclip.backends.trt_library import complaints, logger, trt

    with caplog.at_level(logging.DEBUG, "edgeclip.tensorrt"):
        network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert not trt.OnnxParser(network, logger).parse(b"nonsense")
    assert "Failed to parse" in caplog.text and "Failed to parse" in complaints() and complaints() == ""
    assert capfd.readouterr() == ("", "")
