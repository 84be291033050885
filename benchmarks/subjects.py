"""The models whose precisions are compared, each in a bundle that the command line has made; kept for the next run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import edgeclip
from edgeclip.benchmarks import commands
from edgeclip.benchmarks.prepare import make_checkpoint
from edgeclip.bundle import Bundle
from edgeclip.cli import machine
from edgeclip.errors import UsageError
from edgeclip.loading import BUILT_IN
from edgeclip.manifest import Precision, Target

MAX_DROP_PT = 0.5
"""What w8a8 may lose of top-1 before layers go back to floating point."""
CALIBRATED_ON = "train"
EVALUATED_ON = "eval/wds_tinyimagenet"
"""Folders in the data."""
TEACHER = Path("models/edge-t")
TARGETS: tuple[Target, ...] = ("onnx", "openvino")
FLOATS: tuple[Precision, ...] = ("fp32", "fp16")
INTEGERS: dict[Precision, tuple[Target, ...]] = {
    "w8a16": ("onnx", "openvino"),
    "w8a8": ("onnx", "openvino", "tensorrt"),
    "w4a16": ("openvino",),
}
_MADE_BY = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "coremltools")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A model, and the bundle with all its precisions."""

    key: str
    name: str
    bundle: Path
    trained: bool
    checkpoint: Path | None = None
    """For the peer; None where there is none to compare with."""


@dataclass(frozen=True)
class Workshop:
    """Where bundles are made, and from what."""

    work: Path
    data: Path
    tokenizer: Path
    say: Say
    keep: bool = False
    """Take bundles that are there although other code made them."""

    def student(self) -> Subject:
        """The built-in model, whose fp16 weights are taken for exact."""
        bundle = self._bundle("student", BUILT_IN)
        return Subject("student", "edge-s, the built-in student", bundle, trained=True)

    def teacher(self) -> Subject:
        """What the student was distilled from; only a checkout has it."""
        bundle = self._bundle("teacher", require(TEACHER))
        return Subject("teacher", "edge-t, its teacher", bundle, trained=True)

    def b32(self) -> Subject:
        """A model of ViT-B/32's size with random weights."""
        checkpoint = make_checkpoint(self.work, self.say)
        bundle = self._bundle("b32", checkpoint, "--tokenizer", str(self.tokenizer), "--random-weights")
        return Subject("b32", "ViT-B/32's size, random weights", bundle, trained=False, checkpoint=checkpoint)

    def _bundle(self, key: str, source: Path, *options: str) -> Path:
        """Make what is missing of a bundle.

        Args:
            source: a checkpoint, or a bundle to begin with.
            options: of the export.
        """
        bundle = self.begin(key, source)
        beginning = bundle if source.is_file() else source
        for precision in FLOATS:
            self.add(bundle, ["export", str(beginning), *options], TARGETS, precision)
        for integer, targets in INTEGERS.items():
            self.add(bundle, ["quantize", str(bundle), *self._measured(key, integer)], targets, integer)
        return bundle

    def begin(self, key: str, source: Path) -> Path:
        """Where a bundle lies. What other code made, or another source, is taken away, unless it shall be kept."""
        bundle, note = self.work / f"{key}.edgeclip", self.work / f"{key}.made-by"
        ingredients = f"{_digest_of(source)} {_digest_of_code()}"
        if _read(note) != ingredients and not (self.keep and bundle.is_file()):
            self.work.mkdir(parents=True, exist_ok=True)
            bundle.unlink(missing_ok=True)
            if source.is_file():
                shutil.copyfile(source, bundle)
            note.write_text(ingredients, "utf-8")
        return bundle

    def add(self, bundle: Path, command: Sequence[str], targets: Sequence[str], precision: str) -> None:
        """Have the command line add the targets that the bundle has not got.

        Args:
            precision: one, or several with commas, which come together.
        """
        missing = [target for target in targets if not _has(bundle, target, precision)]
        if not missing:
            return
        self.say(f"{bundle.stem}: {', '.join(missing)} {precision}")
        arguments = [*command, "--target", ",".join(missing), "--precision", precision, "-o", str(bundle)]
        commands.run("edgeclip", *arguments)

    def _measured(self, key: str, precision: Precision) -> list[str]:
        """What a precision is calibrated on, and how much of top-1 it may lose."""
        calibration = ["--calib", str(self.data / CALIBRATED_ON)]
        if key == "b32":
            return calibration
        budget = ["--max-drop", str(MAX_DROP_PT)] if precision != "w4a16" else []
        return [*calibration, "--eval", str(self.data / EVALUATED_ON), *budget]


MAKERS: dict[str, Callable[[Workshop], Subject]] = {
    "student": Workshop.student,
    "teacher": Workshop.teacher,
    "b32": Workshop.b32,
}


def require(folder: Path) -> Path:
    """A folder of the repository.

    Raises:
        UsageError: it is not there.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", hint="run this in a checkout of the repository")
    return folder


def _has(bundle: Path, target: str, precision: str) -> bool:
    if not bundle.is_file():
        return False
    held = Bundle.open(bundle)
    return all(len(held.artifacts(target=target, precision=one)) == 2 for one in precision.split(","))


def _digest_of(source: Path) -> str:
    """Of a file, or of a checkpoint's weights."""
    file = source / "model.safetensors" if source.is_dir() else source
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _digest_of_code() -> str:
    """What makes bundles: libraries, and our code that drives them."""
    package = Path(edgeclip.__file__).parent
    files = [path for part in ("export", "quantize") for path in sorted((package / part).rglob("*.py"))]
    digest = hashlib.sha256(" ".join(f"{name} {machine.version_of(name)}" for name in _MADE_BY).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(note: Path) -> str:
    return note.read_text("utf-8") if note.is_file() else ""
