"""Core ML from the command line: what is exported and verified, what a broken package is worth, what is refused."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeclip.bundle import Bundle, write_bundle
from edgeclip.loading import BUILT_IN, load
from edgeclip.train.models.layers import MASKED
from tests.cli import document, edgeclip, patched, without
from tests.mil import proto

IMAGE, TEXT = (f"coreml-fp16/{tower}.mlpackage/Data/com.apple.CoreML" for tower in ("image", "text"))


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with ONNX and Core ML at fp16. Tests must not write to it."""
    path = tmp_path_factory.mktemp("coreml") / "tiny.edgeclip"
    asked = ("--target", "onnx,coreml", "--precision", "fp16", "--random-weights")
    done = edgeclip("export", tiny_checkpoint, *asked, "-o", path)
    assert done.returncode == 0, done.stderr
    return path


def test_an_export_is_measured_and_says_what_it_runs_on(exported: Path) -> None:
    bundle = Bundle.open(exported)
    bundle.verify_files()
    for tower in ("image", "text"):
        (artifact,) = bundle.artifacts(tower=tower, target="coreml")
        package = f"coreml-fp16/{tower}.mlpackage"
        assert artifact.file == f"{package}/Manifest.json"
        assert artifact.files == (
            f"{package}/Data/com.apple.CoreML/model.mlmodel",
            f"{package}/Data/com.apple.CoreML/weights/weight.bin",
            f"{package}/Manifest.json",
        )
        assert artifact.deployment == "iOS17" and artifact.opset is None
        assert set(artifact.tools) == {"python", "torch", "coremltools"}
        assert artifact.parity.passed and artifact.parity.cosine_min > 0.9999
        assert artifact.parity.backend.startswith("coreml-reference ")


def test_a_page_lies_beside_the_packages(exported: Path) -> None:
    bundle = Bundle.open(exported)
    assert bundle.loose_files() == ["coreml-fp16/README.md"]
    page = bundle.read("coreml-fp16/README.md").decode()
    for fact in (
        "image.mlpackage",
        "text.mlpackage",
        "60 x 60",
        "int32 [B, 24]",
        "iOS17",
        "523 (start)",
        "never trained",
    ):
        assert fact in page, fact


def test_verify_passes_by_the_reference(exported: Path) -> None:
    done = edgeclip("verify", exported, "--backend", "coreml-reference", "--json")
    assert done.returncode == 0, done.stderr


def test_a_package_computes_what_onnx_computes(exported: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 60, 60, 3), dtype=np.uint8)
    texts = ["a photo of a cat", "", "mountains " * 40]
    found = {}
    for backend in ("coreml-reference", "onnxruntime"):
        with load(exported, backend=backend) as model:
            found[backend] = np.concatenate([model.encode_pixels(pixels), model.encode_text(texts)])
    cosines = (found["coreml-reference"] * found["onnxruntime"]).sum(axis=1)
    assert cosines.min() > 0.9999


def broken(exported: Path, path: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """A bundle of which one file is not what was measured, digests and all."""
    bundle = Bundle.open(exported)
    files = {entry.path: bundle.read(entry.path) for entry in bundle.manifest.files}
    manifest = msgspec.structs.replace(bundle.manifest, files=())
    write_bundle(path, manifest, files | {name: change(files[name])}, replace=False)
    return path


def failures(path: Path) -> dict[str, list[str]]:
    """What the reference executor finds wrong, by check."""
    done = edgeclip("verify", path, "--backend", "coreml-reference", "--json")
    assert done.returncode == 1, done.stderr
    checks = document(done)["runs"][0]["verification"]["checks"]
    return {check["name"]: check["failures"] for check in checks}


def test_a_swapped_weight_fails_verification(exported: Path, tmp_path: Path) -> None:
    """The halves of the largest weight, the patch embedding, change places."""

    def swap(data: bytes) -> bytes:
        start, size = largest(data)
        middle, end = start + size // 2, start + size
        return data[:start] + data[middle:end] + data[start:middle] + data[end:]

    found = failures(broken(exported, tmp_path / "b.edgeclip", f"{IMAGE}/weights/weight.bin", swap))
    assert any("cosine mean" in failure for failure in found["image"])
    assert not found["text"]


def largest(data: bytes) -> tuple[int, int]:
    """Where the largest blob of a file of weights lies. Source: coremltools, `MILBlob/Blob/StorageFormat.hpp`."""
    found, at = [], 64
    for _ in range(struct.unpack_from("<I", data, 0)[0]):
        sentinel, _, size, start = struct.unpack_from("<IIQQ", data, at)
        assert sentinel == 0xDEADBEEF
        found.append((size, start))
        at = (start + size + 63) // 64 * 64
    size, start = max(found)
    return start, size


def test_a_mask_beyond_half_precision_fails_verification(exported: Path, tmp_path: Path) -> None:
    """-1e30 is minus infinity in half precision, and a product of it with 0 is not a number."""

    def overflow(data: bytes) -> bytes:
        model = proto.Model_pb2.Model.FromString(data)
        (block,) = model.mlProgram.functions["main"].block_specializations.values()
        held = [op.attributes["val"].immediateValue.tensor.bytes for op in block.operations if op.type == "const"]
        (mask,) = [value for value in held if value.values == np.float16(MASKED).tobytes()]
        with np.errstate(over="ignore"):
            mask.values = np.float32(-1e30).astype(np.float16).tobytes()
        return bytes(model.SerializeToString())

    found = failures(broken(exported, tmp_path / "b.edgeclip", f"{TEXT}/model.mlmodel", overflow))
    assert any("NaN or infinity" in failure for failure in found["text"])
    assert not found["image"]


def refused(path: Path, code: int, *arguments: str | Path) -> str:
    """The one line that `edgeclip verify` ends with."""
    done = edgeclip("verify", path, *(arguments or ("--backend", "coreml-reference")))
    assert done.returncode == code, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return line


def test_a_truncated_program_is_refused(exported: Path, tmp_path: Path) -> None:
    path = broken(exported, tmp_path / "b.edgeclip", f"{IMAGE}/model.mlmodel", lambda data: data[: len(data) // 2])
    assert refused(path, 5).startswith("error: coreml-fp16/image.mlpackage: not a Core ML model: ")


def test_a_truncated_file_of_weights_is_refused(exported: Path, tmp_path: Path) -> None:
    path = broken(exported, tmp_path / "b.edgeclip", f"{TEXT}/weights/weight.bin", lambda data: data[: len(data) // 2])
    assert re.match(
        r"error: coreml-fp16/text\.mlpackage: @model_path/weights/weight\.bin: bytes \d+ to", refused(path, 5)
    )


def test_a_package_cut_short_on_disk_is_refused_by_its_digest(exported: Path, tmp_path: Path) -> None:
    Bundle.open(exported).unpack(folder := tmp_path / "b")
    file = folder / TEXT / "weights" / "weight.bin"
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{TEXT}/weights/weight.bin" in refused(folder, 3)
    file.unlink()
    assert f"{TEXT}/weights/weight.bin" in refused(folder, 3)


def test_a_package_without_its_weights_is_refused(exported: Path, tmp_path: Path) -> None:
    """Although the bundle's own manifest agrees that there are none."""
    bundle, gone = Bundle.open(exported), f"{IMAGE}/weights/weight.bin"
    files = {entry.path: bundle.read(entry.path) for entry in bundle.manifest.files if entry.path != gone}
    artifacts = tuple(
        msgspec.structs.replace(one, files=tuple(name for name in one.files if name != gone))
        for one in bundle.manifest.artifacts
    )
    manifest = msgspec.structs.replace(bundle.manifest, files=(), artifacts=artifacts)
    write_bundle(tmp_path / "b.edgeclip", manifest, files, replace=False)
    assert "path 'com.apple.CoreML/weights' is not in the package" in refused(tmp_path / "b.edgeclip", 3)


@pytest.mark.parametrize("backend", ["coreml-reference", "coreml"])
def test_a_package_that_points_outside_opens_nothing_there(exported: Path, tmp_path: Path, backend: str) -> None:
    secret = tmp_path / "secret" / "model.mlmodel"
    secret.parent.mkdir()
    secret.write_bytes(b"secret")

    def escape(data: bytes) -> bytes:
        return data.replace(b"com.apple.CoreML/model.mlmodel", str(secret).encode())

    path = broken(exported, tmp_path / "b.edgeclip", "coreml-fp16/image.mlpackage/Manifest.json", escape)
    log = tmp_path / "opened"
    watch = f"import os, sys\nsys.platform = 'darwin'\nlog = os.open({str(log)!r}, os.O_CREAT | os.O_WRONLY)\n"
    watch += (
        "sys.addaudithook(lambda event, args: event == 'open' and os.write(log, f'{args[0]}\\n'.encode()) and None)"
    )
    done = patched(watch, "verify", path, "--backend", backend)
    assert done.returncode == 3, done.stderr
    assert f"image.mlpackage/Manifest.json: path {str(secret)!r}: absolute" in done.stderr
    opened = log.read_text().splitlines()
    assert str(path) in opened
    assert not [name for name in opened if "secret" in name]


def test_without_macos_it_offers_the_reference(exported: Path) -> None:
    done = edgeclip("verify", exported, "--backend", "coreml")
    assert done.returncode == 5
    assert "backend coreml: it needs macOS" in done.stderr and "--backend coreml-reference" in done.stderr


def test_integers_from_a_bundle(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.edgeclip"
    shutil.copy(exported, path)
    done = edgeclip("quantize", path, "--target", "coreml", "--precision", "w8a16", "--tower", "image")
    assert done.returncode == 0, done.stderr
    bundle = Bundle.open(path)
    (artifact,) = bundle.artifacts(target="coreml", precision="w8a16")
    assert artifact.deployment == "iOS17" and artifact.parity.cosine_min > 0.99
    assert artifact.quantization is not None
    assert {layer.precision for layer in artifact.quantization.layers if layer.op == "Conv"} == {"w8a16"}
    assert bundle.loose_files() == ["coreml-fp16/README.md", "coreml-w8a16/README.md"]


def test_4_bits_need_a_package_for_a_newer_system(exported: Path) -> None:
    done = edgeclip("quantize", exported, "--target", "coreml", "--precision", "w4a16")
    assert done.returncode == 2
    assert "coreml w4a16 needs iOS18, the fp16 package is for iOS17" in done.stderr


def test_a_bundle_without_packages_says_how_to_get_one() -> None:
    done = edgeclip("quantize", BUILT_IN, "--target", "coreml", "--precision", "w8a16")
    assert done.returncode == 2, done.stderr
    assert "has no Core ML package of the image tower in fp16" in done.stderr
    assert "--target coreml --precision fp16" in done.stderr


@pytest.mark.nightly
def test_the_built_in_model_becomes_a_package_without_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "b.edgeclip"
    done = edgeclip("export", BUILT_IN, "--target", "coreml", "--precision", "fp16", "--tower", "image", "-o", path)
    assert done.returncode == 0, done.stderr
    bundle = Bundle.open(path)
    (artifact,) = bundle.artifacts(target="coreml")
    assert artifact.parity.passed and artifact.parity.cosine_min > 0.9999
    assert bundle.artifacts(target="onnx") == Bundle.open(BUILT_IN).artifacts(target="onnx")
    assert "coreml-fp16/README.md" in bundle.loose_files()


def test_a_bundle_of_no_architecture_that_has_a_name_is_no_source_of_packages(exported: Path, tmp_path: Path) -> None:
    done = edgeclip("export", exported, "--target", "coreml", "--precision", "fp32", "-o", tmp_path / "b.edgeclip")
    assert done.returncode == 2
    assert "only where the model has the name of an architecture, and 'ViT-96x2-12-60' is none" in done.stderr
    assert "export the checkpoint" in done.stderr and not (tmp_path / "b.edgeclip").exists()


def test_a_system_is_for_core_ml_alone(tiny_checkpoint: Path) -> None:
    done = edgeclip("export", tiny_checkpoint, "--target", "onnx", "--coreml-target", "iOS18")
    assert done.returncode == 2
    assert "--coreml-target is for target coreml" in done.stderr


def test_an_unknown_system_is_refused_before_anything_slow(tiny_checkpoint: Path) -> None:
    asked = ("--target", "coreml", "--coreml-target", "iOS9")
    done = patched(without("torch"), "export", tiny_checkpoint, *asked)
    assert done.returncode == 2
    assert "unknown Core ML target 'iOS9'" in done.stderr and "iOS17, macOS14, iOS18, macOS15" in done.stderr


@pytest.mark.parametrize("command", ["export", "quantize"])
def test_without_coremltools_it_says_what_to_install(command: str, exported: Path, tmp_path: Path) -> None:
    asked = ("--target", "coreml", "--precision", "w8a16", "-o", tmp_path / "b.edgeclip")
    done = patched(without("coremltools"), command, exported, *asked)
    assert done.returncode == 5, done.stderr
    assert "coremltools, which is not installed" in done.stderr and "edgeclip[coreml]" in done.stderr
    assert not (tmp_path / "b.edgeclip").exists()
