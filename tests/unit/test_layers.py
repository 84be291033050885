"""Who may import whom: edgeclip ← quantize ← train ← export, and edgeclip ← benchmarks."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKSHOP = {"quantize", "train", "export", "benchmarks"}
ALLOWED = {
    "edgeclip": set(),
    "quantize": set(),
    "train": {"quantize"},
    "export": {"quantize", "train"},
    "benchmarks": set(),
}
NEVER_ON_THE_DEVICE = {"torch", "transformers", "onnx", "onnxscript", "nncf", "sklearn"}
LAZY_DOORS = {"edgeclip/cli"}
"""Commands reach the workshop by name, inside functions."""


def sources(folder: str) -> list[Path]:
    return [p for p in sorted((ROOT / folder).rglob("*.py")) if not linked(p)]


def linked(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents if parent != ROOT and ROOT in parent.parents)


def imports(path: Path, *, top_level_only: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def lazy(path: Path) -> bool:
    return any(str(path.relative_to(ROOT)).startswith(door) for door in LAZY_DOORS)


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_what_is_below_it(folder: str) -> None:
    for path in sources(folder):
        for name in imports(path, top_level_only=lazy(path)):
            parts = name.split(".")
            if parts[0] == "edgeclip" and len(parts) > 1 and parts[1] in WORKSHOP - {folder}:
                assert parts[1] in ALLOWED[folder], f"{path.relative_to(ROOT)} imports {name}"


def test_the_device_sdk_never_imports_the_training_stack() -> None:
    for path in sources("edgeclip"):
        for name in imports(path, top_level_only=lazy(path)):
            assert name.split(".")[0] not in NEVER_ON_THE_DEVICE, f"{path.relative_to(ROOT)} imports {name}"


def test_no_file_is_named_after_a_dependency() -> None:
    dependencies = {
        "coremltools",
        "nncf",
        "numpy",
        "onnx",
        "onnxruntime",
        "openvino",
        "tensorrt",
        "tokenizers",
        "torch",
    }
    for folder in ALLOWED:
        assert not dependencies & {path.stem for path in sources(folder)}, folder


def test_importing_edgeclip_loads_the_standard_library_alone() -> None:
    code = """
import sys
before = set(sys.modules)
import edgeclip
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(loaded - sys.stdlib_module_names - {"edgeclip"}))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_everything_public_can_be_reached() -> None:
    import edgeclip

    for name in edgeclip.__all__:
        assert getattr(edgeclip, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = edgeclip.nothing
