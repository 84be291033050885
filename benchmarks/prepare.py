"""What is measured with: a checkpoint, the bundle made from it, photographs and captions. Kept for the next run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import edgeclip
from edgeclip.benchmarks import commands, peer, photographs
from edgeclip.cli import machine

CAPTIONS = (
    "a red wooden boat resting on the calm lake",
    "two children are flying a kite above the wide empty beach",
    "the old stone bridge crosses a narrow river in the early morning fog",
    "a brown dog with a stick in its mouth runs across wet grass",
    "a bowl of noodle soup on a dark table beside a folded newspaper",
    "the red train leaves a small mountain station under heavy snow and low grey clouds",
    "three yellow flowers in a tall glass vase",
    "a street market at night with paper lanterns, steam and people who look at fruit",
)
"""Eight to fifteen words, without end-of-sentence marks, as captions are."""
_EXPORTED_BY = ("torch", "onnx", "onnxscript", "openvino", "onnxruntime", "nncf")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Materials:
    """Everything that a run needs."""

    checkpoint: Path
    bundle: Path
    singles: dict[float, list[Path]]
    """Megapixels -> a few photographs of that size."""
    folder: list[Path]

    def photographs(self) -> list[Path]:
        """The single photographs, all sizes."""
        return [path for paths in self.singles.values() for path in paths]


def prepare(work: Path, tokenizer: Path, folder_size: int, say: Say) -> Materials:
    """Make what is not there yet.

    Args:
        work: a folder of the benchmark's own.
        tokenizer: OpenAI's merges.
        folder_size: photographs in the folder.

    Raises:
        UsageError: scikit-learn, whose photographs are used, is not installed.
        ExportError: `edgeclip export` or `edgeclip quantize` failed.
    """
    checkpoint = make_checkpoint(work, say)
    say(f"photographs: {folder_size} in a folder, and a few of each size")
    singles = {
        size: photographs.make(work / f"photographs-{size:g}mp", photographs.plan_size(size))
        for size in photographs.SIZES
    }
    folder = photographs.make(work / f"photographs-{folder_size}", photographs.plan_folder(folder_size))
    bundle = _bundle(work, checkpoint, tokenizer, folder, say)
    return Materials(checkpoint, bundle, singles, folder)


def captions(count: int, first: int = 0) -> list[str]:
    """`count` captions, the list over again where it ends."""
    return [CAPTIONS[(first + i) % len(CAPTIONS)] for i in range(count)]


def make_checkpoint(work: Path, say: Say) -> Path:
    """The folder of a Hugging Face checkpoint of a ViT-B/32 with random weights, made if it is not there yet."""
    version = machine.version_of("transformers")
    folder = work / f"checkpoint-{_short(f'{peer.SEED} {version} {_digest(Path(peer.__file__))}')}"
    if not folder.is_dir():
        say("checkpoint: a ViT-B/32 with random weights")
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        peer.write_checkpoint(partial)
        partial.rename(folder)
        for old in set(work.glob("checkpoint-*")) - {folder}:
            shutil.rmtree(old)
    return folder


def _bundle(work: Path, checkpoint: Path, tokenizer: Path, folder: list[Path], say: Say) -> Path:
    """Export and quantize by the command line, as a user would; calibrated on the folder's photographs."""
    bundle = work / f"{_short(_ingredients(checkpoint, tokenizer, folder))}.edgeclip"
    if bundle.is_file():
        return bundle
    partial = bundle.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    say("bundle: edgeclip export, onnx and openvino, fp32 and fp16")
    arguments = ["export", str(checkpoint), "--target", "onnx,openvino", "--precision", "fp32,fp16"]
    commands.run("edgeclip", *arguments, "--tokenizer", str(tokenizer), "--random-weights", "-o", str(partial))
    say("bundle: edgeclip quantize, openvino w8a8")
    texts = work / "captions.txt"
    texts.write_text("\n".join([*CAPTIONS, *map(" and ".join, permutations(CAPTIONS, 2))]), "utf-8")
    arguments = [
        "quantize",
        str(partial),
        "--target",
        "openvino",
        "--precision",
        "w8a8",
        "--calib",
        str(folder[0].parent),
    ]
    commands.run("edgeclip", *arguments, "--calib-texts", str(texts), "-o", str(partial))
    partial.rename(bundle)
    for old in set(work.glob("*.edgeclip")) - {bundle}:  # each is larger than a gigabyte
        old.unlink()
    return bundle


def _ingredients(checkpoint: Path, tokenizer: Path, folder: list[Path]) -> str:
    """What a bundle depends on: weights, tokenizer, photographs, exporters, and our code that drives them."""
    package = Path(edgeclip.__file__).parent
    code = [path for part in ("export", "train", "quantize") for path in sorted((package / part).rglob("*.py"))]
    versions = [f"{name} {machine.version_of(name)}" for name in _EXPORTED_BY]
    files = [checkpoint / "model.safetensors", tokenizer, *code]
    return " ".join(["fp32,fp16,w8a8", photographs.digest(folder), *versions, *map(_digest, files)])


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
