"""A Core ML package's manifest: nothing outside the package is opened, whatever stands in it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from edgeclip.backends import coreml_compiled, coreml_package
from edgeclip.backends.base import Files
from edgeclip.bundle import Bundle, write_bundle
from edgeclip.errors import BundleFormatError, BundlePathError
from tests import bundles

PACKAGE = "coreml-fp16/image.mlpackage"
LISTING = f"{PACKAGE}/Manifest.json"
OUTSIDE = ["../../secret", "{folder}/secret", "com.apple.CoreML/../../../../secret", "/dev/zero"]


@pytest.fixture
def files() -> Files:
    return {name: data for name, data in bundles.files().items() if name.startswith(PACKAGE)}


def test_model_and_weights_are_found(files: Files) -> None:
    package = coreml_package.read(LISTING, files)
    assert package.name == PACKAGE
    assert package.specification == files[f"{PACKAGE}/Data/com.apple.CoreML/model.mlmodel"]
    assert list(package.weights) == ["@model_path/weights/weight.bin"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_package_that_points_outside_opens_nothing_there(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    target = path.format(folder=tmp_path)
    files = bundles.files() | {LISTING: bundles.coreml_manifest(model=target)}
    write_bundle(tmp_path / "b.edgeclip", bundles.manifest(), files, replace=False).unpack(tmp_path / "b")
    error, opened, loaded = read_in_a_child(tmp_path / "b")
    assert error == "BundlePathError"
    inside = {(tmp_path / "b" / entry.path).resolve() for entry in Bundle.open(tmp_path / "b").manifest.files}
    read = {Path(name).resolve() for name in opened if str(tmp_path) in name or name.startswith("/dev")}
    assert read <= inside | {tmp_path / "b" / "manifest.json"} and tmp_path / "b" / LISTING in read
    assert "coremltools" not in loaded


@pytest.mark.parametrize("path", OUTSIDE)
def test_the_reference_itself_opens_nothing_outside(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    script = f"""
        from edgeclip.backends import coreml_reference
        from edgeclip.backends.base import Options
        from tests import bundles
        artifact = bundles.artifacts()[0]
        files = bundles.files() | {{{LISTING!r}: bundles.coreml_manifest(model={path.format(folder=tmp_path)!r})}}
        act = lambda: coreml_reference.open(artifact, files, Options())
    """
    error, opened, loaded = watched(script)
    assert error == "BundlePathError" and opened == [] and "coremltools" not in loaded


def read_in_a_child(bundle: Path) -> tuple[str, list[str], set[str]]:
    return watched(f"""
        from edgeclip.backends import coreml_reference
        from edgeclip.backends.base import Options
        from edgeclip.bundle import Bundle
        def act():
            bundle = Bundle.open({str(bundle)!r})
            (artifact,) = bundle.artifacts(target="coreml")
            coreml_reference.open(artifact, bundle.files(artifact), Options())
    """)


def watched(prepare: str) -> tuple[str, list[str], set[str]]:
    """What `act` of a script raises in a child process, which paths it opens, and which modules are loaded then."""
    script = textwrap.dedent(prepare) + textwrap.dedent("""
        import sys
        from edgeclip.errors import EdgeClipError
        opened, error = [], "none"
        watching = True
        sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" and watching else None)
        try:
            act()
        except EdgeClipError as exc:
            error = type(exc).__name__
        watching = False
        print(error, " ".join(sys.modules), *[name for name in opened if not name.isdigit()], sep="\\n")
    """)
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False, cwd=root
    )
    assert run.returncode == 0, run.stderr
    error, modules, *opened = run.stdout.strip().split("\n")
    return error, [name for name in opened if name], set(modules.split())


def test_file_that_the_manifest_is_silent_about_is_refused(files: Files) -> None:
    files[f"{PACKAGE}/Data/com.apple.CoreML/extra.bin"] = b""
    with pytest.raises(BundleFormatError, match=r"says nothing of 'Data/com\.apple\.CoreML/extra\.bin'"):
        coreml_package.read(LISTING, files)


@pytest.mark.parametrize("root", ["B", "C", None, 3, []])
def test_root_that_is_not_a_model_of_the_package_is_refused(files: Files, root: Any) -> None:
    document = json.loads(bytes(files[LISTING])) | {"rootModelIdentifier": root}
    files[LISTING] = json.dumps(document).encode()
    with pytest.raises(BundleFormatError, match=r"root model is not a \.mlmodel of the package"):
        coreml_package.read(LISTING, files)


def test_package_is_written_with_its_files_alone(files: Files, tmp_path: Path) -> None:
    package = coreml_package.read(LISTING, files)
    written = coreml_compiled.store(package, tmp_path)
    assert written == tmp_path / "image.mlpackage"
    assert {
        path.relative_to(written).as_posix(): path.read_bytes() for path in written.rglob("*") if path.is_file()
    } == {name.removeprefix(f"{PACKAGE}/"): data for name, data in files.items()}


def test_name_that_leaves_the_folder_is_not_written(files: Files, tmp_path: Path) -> None:
    package = coreml_package.Package(PACKAGE, "m.mlmodel", {"../../secret": b"x"})
    with pytest.raises(BundlePathError):
        coreml_compiled.store(package, tmp_path / "deep" / "er")
    assert not list(tmp_path.rglob("secret"))
