"""Every name of TensorRT that the adapter uses is there in every version that it is for, or asked for first."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "tests" / "data" / "tensorrt_api"
BACKENDS = ROOT / "edgeclip" / "backends"
VERSIONS = ("10.3.0", "10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106", "rtx-1.7.1")
OBJECTS = {
    "trt_library.py": {},
    "trt_build_child.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "config": "IBuilderConfig",
        "parser": "OnnxParser",
        "profile": "IOptimizationProfile",
        "tensor": "ITensor",
        "error": "ParserError",
    },
    "trt.py": {"_signature.engine": "ICudaEngine", "_runtime": "Runtime"},
    "trt_runner.py": {"_prepare.engine": "ICudaEngine", "_context": "IExecutionContext"},
}
"""File -> variable (in a function, where it means something else elsewhere) -> the class of what it holds."""


def api(version: str) -> dict[str, set[str]]:
    parsed = json.loads((API / f"{version}.json").read_text())
    return {name: set(members) for name, members in parsed.items()}


def dotted(node: ast.AST) -> str:
    """`a.b.c`, without a leading `self`; "" for anything else."""
    if isinstance(node, ast.Name):
        return "" if node.id == "self" else node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        if head or (isinstance(node.value, ast.Name) and node.value.id == "self"):
            return f"{head}.{node.attr}".lstrip(".")
    return ""


def asked(test: ast.expr) -> bool:
    """Whether a condition asks TensorRT whether it has a name."""
    return any(
        isinstance(call, ast.Call) and dotted(call.func) == "hasattr" and dotted(call.args[0]).startswith("trt")
        for call in ast.walk(test)
    )


def uses(file: str, source: str) -> Iterator[tuple[str, bool]]:
    """`Class.member` for each use, and whether the adapter asked first."""
    objects = OBJECTS[file]

    def visit(node: ast.AST, function: str, guarded: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        if isinstance(node, ast.Attribute):
            head, _, member = dotted(node).rpartition(".")
            kind = objects.get(f"{function}.{head}") or objects.get(head)
            if kind:
                yield f"{kind}.{member}", guarded
            elif head.startswith("trt."):
                yield f"{head.removeprefix('trt.')}.{member}", guarded
            elif head == "trt" and member not in ("__version__", "OnnxParser", "Builder", "Runtime"):
                yield member, guarded
            if kind or head.startswith("trt"):
                return
        if isinstance(node, ast.If) and asked(node.test):
            for child in node.body:
                yield from visit(child, function, True)
            for child in node.orelse:
                yield from visit(child, function, guarded)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function, guarded)

    yield from visit(ast.parse(source), "", False)


def has(known: dict[str, set[str]], name: str) -> bool:
    kind, _, member = name.partition(".")
    return kind in known and (not member or member.startswith("__") or member in known[kind])


def unknown(file: str, source: str) -> list[str]:
    """What a version lacks and was not asked for; of what was asked for, what no version has."""
    known = {version: api(version) for version in VERSIONS}
    found = []
    for name, guarded in uses(file, source):
        lacking = [version for version in VERSIONS if not has(known[version], name)]
        if len(lacking) > (len(VERSIONS) - 1 if guarded else 0):
            found.append(f"{name}: not in {', '.join(lacking)}")
    return found


@pytest.mark.parametrize("file", OBJECTS)
def test_every_name_is_in_every_version(file: str) -> None:
    source = (BACKENDS / file).read_text()
    assert unknown(file, source) == []
    if OBJECTS[file]:
        assert {name.partition(".")[0] for name, _ in uses(file, source)} >= set(OBJECTS[file].values())


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16: not in 11.0.0.114, 11.4.0.106, rtx-1.7.1"),
        ("parser.supports_model(onnx)", "OnnxParser.supports_model: not in 11.0.0.114, 11.4.0.106, rtx-1.7.1"),
        ("trt.ComputeCapability.CURRENT", "ComputeCapability.CURRENT: not in 10.3.0"),
        ("if hasattr(trt, 'X'): trt.BuilderFlag.NOTHING", "BuilderFlag.NOTHING: not in 10.3.0"),
    ],
)
def test_a_name_that_a_version_lacks_is_found(code: str, complaint: str) -> None:
    (found,) = unknown("trt_build_child.py", code)
    assert found.startswith(complaint)


def test_a_name_that_was_asked_for_may_be_missing() -> None:
    assert unknown("trt_build_child.py", "if hasattr(trt, 'C'): trt.ComputeCapability.CURRENT") == []


def test_no_other_module_touches_tensorrt() -> None:
    for path in sorted(BACKENDS.glob("*.py")):
        if path.name not in OBJECTS:
            assert "import trt\n" not in path.read_text() and ", trt," not in path.read_text(), path.name


def test_the_list_of_rtx_is_what_the_wheel_has() -> None:
    trt = pytest.importorskip(
        "tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'edgeclip[tensorrt-ci]'"
    )
    if not trt.__version__.startswith("1.7.1"):
        pytest.skip(f"tensorrt_rtx {trt.__version__} is another version than the list")
    for name, members in api("rtx-1.7.1").items():
        found = {member for member in dir(getattr(trt, name)) if not member.startswith("_")}
        assert found - {"name", "value", "itemsize"} <= members <= found
