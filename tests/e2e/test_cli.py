"""The command line as it is used: exit codes, streams, terminals."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from edgeclip.bundle import Bundle
from edgeclip.cli.doctor import EXTRAS
from tests.cli import document, edgeclip, environment, patched, without

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="terminals and signals of POSIX")


def test_help_loads_no_library_but_click() -> None:
    code = """
import atexit
heavy = ("numpy", "rich", "torch", "PIL", "msgspec", "tokenizers", "onnxruntime", "openvino")
atexit.register(lambda: print([name for name in heavy if name in sys.modules], file=sys.stderr))
"""
    done = patched(code, "--help")
    assert done.returncode == 0 and "Commands:" in done.stdout
    assert done.stderr.strip() == "[]"


def test_verify_passes_on_every_backend(tiny_bundle: Path) -> None:
    done = edgeclip("verify", tiny_bundle, "--backend", "all")
    assert done.returncode == 0, done.stderr
    for backend in ("openvino", "onnxruntime"):
        for precision in ("fp32", "fp16"):
            assert any(backend in line and precision in line for line in done.stdout.splitlines())
    assert "bounds of fp16: mean >= 0.9995" in done.stdout
    assert "failed" not in done.stdout


def test_verify_json_has_measured_values_and_bounds(tiny_bundle: Path) -> None:
    found = document(edgeclip("verify", tiny_bundle, "--json", "--backend", "onnxruntime"))
    checks = {check["name"]: check for check in found["runs"][0]["verification"]["checks"]}
    assert found["passed"] is True and found["files_hashed"] > 0
    assert checks["image"]["agreement"]["cosine_min"] >= checks["image"]["bounds"]["cosine_min"]


def test_a_failed_gate_exits_1_and_shows_what_failed(wrong_bundle: Path) -> None:
    done = edgeclip("verify", wrong_bundle)
    assert done.returncode == 1
    assert "❌ failed" in done.stdout and "top-1 agreement 0 < 1" in done.stdout
    assert done.stderr.startswith("error: openvino ")
    assert "does not reproduce the reference" in done.stderr and "\nhint: " in done.stderr


def test_a_failed_gate_is_in_the_json_beside_the_measurements(wrong_bundle: Path) -> None:
    done = edgeclip("verify", wrong_bundle, "--json")
    found = document(done)
    assert done.returncode == 1 == found["error"]["exit_code"]
    assert found["error"]["type"] == "ParityError" and found["passed"] is False and found["runs"]


def test_a_damaged_bundle_exits_3_before_an_engine_is_loaded(tiny_bundle: Path, tmp_path: Path) -> None:
    data = bytearray(tiny_bundle.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.edgeclip").write_bytes(data)
    done = patched(without("openvino", "onnxruntime"), "verify", tmp_path / "damaged.edgeclip")
    assert done.returncode == 3
    assert "damaged.edgeclip" in done.stderr and "expected" in done.stderr


def test_a_missing_bundle_exits_3() -> None:
    done = edgeclip("embed", "absent.edgeclip", "--text", "x")
    assert done.returncode == 3
    assert done.stderr == "error: absent.edgeclip: no such file or directory\n"


def test_a_missing_library_exits_5_and_says_how_to_get_it(tiny_bundle: Path) -> None:
    done = patched(without("openvino"), "verify", tiny_bundle, "--backend", "openvino")
    assert done.returncode == 5
    assert "'openvino' is not installed; available here: onnxruntime" in done.stderr
    assert "hint: pip install 'edgeclip[openvino]'" in done.stderr


def test_verify_all_takes_the_backends_that_are_there(tiny_bundle: Path) -> None:
    done = patched(without("openvino"), "verify", tiny_bundle, "--backend", "all", "--json")
    assert done.returncode == 0
    assert {run["backend"] for run in document(done)["runs"]} == {"onnxruntime"}


def test_verify_all_goes_on_after_an_engine_that_cannot_run(tiny_bundle: Path) -> None:
    done = edgeclip("verify", tiny_bundle, "--backend", "all", "--compute", "bf16", "--precision", "fp32", "--json")
    runs = {run["backend"]: run for run in document(done)["runs"]}
    assert done.returncode == 5
    assert "not in bf16" in runs["onnxruntime"]["error"]
    assert set(runs) == {"openvino", "onnxruntime"}


def test_what_engines_print_stays_out_of_the_json(tiny_bundle: Path) -> None:
    code = """
import os, edgeclip.verify as module
original = module.verify
def noisy(model):
    print("from Python"); os.write(1, b"from C\\n")
    return original(model)
module.verify = noisy
"""
    done = patched(code, "verify", tiny_bundle, "--json")
    assert document(done)["passed"] is True
    assert "from Python" in done.stderr and "from C" in done.stderr


@pytest.mark.parametrize("command", ["verify", "inspect", "embed", "classify", "unpack"])
def test_json_of_a_failure_is_one_document(command: str) -> None:
    rest = {"embed": ["--text", "x"], "classify": [__file__, "--labels", "a"], "unpack": ["out"]}.get(command, [])
    done = edgeclip(command, "absent.edgeclip", *rest, "--json")
    assert done.returncode == 3
    assert document(done)["error"]["type"] == "BundleNotFoundError"


def test_inspect_shows_the_model_and_its_artifacts(tiny_bundle: Path) -> None:
    done = edgeclip("inspect", tiny_bundle, "--check")
    assert done.returncode == 0
    assert "random: embeddings mean nothing" in done.stdout and "hashed and intact" in done.stdout
    assert "openvino fp16 text" in done.stdout and Bundle.open(tiny_bundle).digest in done.stdout


def test_inspect_json_has_the_manifest(tiny_bundle: Path) -> None:
    found = document(edgeclip("inspect", tiny_bundle, "--json"))
    assert found["kind"] == "bundle" and found["manifest"]["model"]["random_weights"] is True


def test_unpack_makes_the_same_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    done = edgeclip("unpack", tiny_bundle, tmp_path / "tree", "--json")
    assert document(done)["digest"] == Bundle.open(tiny_bundle).digest == Bundle.open(tmp_path / "tree").digest
    again = edgeclip("unpack", tiny_bundle, tmp_path / "tree")
    assert again.returncode == 2 and "exists" in again.stderr


def test_doctor_lists_backends_and_machine() -> None:
    found = document(edgeclip("doctor", "--json"))
    states = {report["backend"]: report for report in found["backends"]}
    assert states["onnxruntime"]["usable"] and states["onnxruntime"]["computes"]["cpu"] == ["f32"]
    assert states["coreml"]["usable"] or states["coreml"]["fix"]
    assert states["coreml-reference"]["usable"]
    assert states["tensorrt"]["usable"] or states["tensorrt"]["fix"]
    assert int(found["machine"]["usable cpus"]) >= 1


def test_doctor_asks_for_distributions_that_the_extras_name() -> None:
    required = metadata.requires("edgeclip") or []
    for extra, names in EXTRAS.items():
        declared = {re.split(r"[^\w.-]", line)[0].replace("-", "_") for line in required if f'"{extra}"' in line}
        assert {name.replace("-", "_") for name in names} <= declared, extra


def test_doctor_exits_5_where_nothing_runs() -> None:
    done = patched(without("openvino", "onnxruntime", "tensorrt", "tensorrt_rtx"), "doctor")
    assert done.returncode == 5
    assert "pip install 'edgeclip[openvino]'" in done.stdout and "error: no backend runs here" in done.stderr


def test_doctor_survives_a_broken_library() -> None:
    code = """
import edgeclip.backends as backends
original = backends.get
def get(name):
    if name == "openvino":
        raise OSError("libopenvino.so: bad magic")
    return original(name)
backends.get = get
"""
    done = patched(code, "doctor", "--json")
    report = next(r for r in document(done)["backends"] if r["backend"] == "openvino")
    assert done.returncode == 0
    assert report["reason"] == "OSError: libopenvino.so: bad magic" and not report["usable"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
def test_a_legacy_console_gets_plain_words(encoding: str, tiny_bundle: Path) -> None:
    done = edgeclip("inspect", tiny_bundle, env=environment(PYTHONIOENCODING=encoding))
    assert done.returncode == 0
    assert " ok " in done.stdout and "✅" not in done.stdout


def on_terminal(*arguments: str | Path, **env: str) -> str:
    """What the command shows on a terminal."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "edgeclip", *map(str, arguments)]
    full = environment(TERM="xterm-256color", **env)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower, env=full)
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 1 << 16)
        except OSError:  # Linux: the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    assert process.wait(60) == 0, shown
    return shown.decode().replace("\r\n", "\n")


def test_no_color_means_no_control_sequence_in_60_columns(tiny_bundle: Path) -> None:
    shown = on_terminal("inspect", tiny_bundle, NO_COLOR="1", COLUMNS="60")
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 60
    assert "artifact: onnx fp32 image" in shown


def test_a_wide_terminal_gets_a_coloured_table(tiny_bundle: Path) -> None:
    shown = on_terminal("inspect", tiny_bundle, COLUMNS="160")
    assert "\x1b[" in shown and "─" in shown


def test_progress_shows_on_a_terminal_unless_quiet(tiny_bundle: Path) -> None:
    assert "hashing" in on_terminal("verify", tiny_bundle, COLUMNS="120")
    assert "hashing" not in on_terminal("verify", tiny_bundle, "--quiet", COLUMNS="120")


def heed_interrupts() -> None:
    """A shell's background jobs, and so the tests that run in one, are started with interrupts ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_interrupted_embed_exits_130_and_leaves_nothing(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    many = "\n".join([str(photos / "b.png")] * 200_000)
    (tmp_path / "list").write_text(many)
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "edgeclip", "embed", str(tiny_bundle), "-", "-o", str(out / "x.npz")]
    with (tmp_path / "list").open() as stdin:
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            preexec_fn=heed_interrupts,
        )
        wait_for(lambda: any(out.iterdir()))
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        stopped = time.perf_counter()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err.strip() == "error: interrupted"
    assert time.perf_counter() - stopped < 5
    assert list(out.iterdir()) == []


def test_a_terminated_embed_leaves_nothing(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeclip", "embed", str(tiny_bundle), "-", "-o", str(tmp_path / "x.jsonl")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment())
    assert process.stdin is not None
    process.stdin.write("\n".join([str(photos / "b.png")] * 200_000))
    process.stdin.close()
    wait_for(lambda: any(tmp_path.iterdir()))
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_is_no_error(tiny_bundle: Path, photos: Path) -> None:
    command = [sys.executable, "-m", "edgeclip", "embed", str(tiny_bundle), *[str(photos / "b.png")] * 2000]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None and process.stderr is not None
    assert "provenance" in json.loads(process.stdout.readline())
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(30) == 141


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
