"""A tiny CLIP in Hugging Face form, with a tokenizer, and the bundle that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeclip.export.pipeline import export, plan
from edgeclip.export.source import Source, open_source
from edgeclip.export.vocabulary import from_merges
from edgeclip.outcome import Outcome, raise_if_failed
from tests.checkpoints import hf_clip

MERGES = [
    "#version",
    "t h",
    "th e</w>",
    "a n",
    "an d</w>",
    "i n",
    "in g</w>",
    "o f</w>",
    "p h",
    "ph o",
    "c a",
    "ca t</w>",
]
VOCAB_SIZE = 512 + len(MERGES) - 1 + 2


def tokenizer_file(folder: Path) -> Path:
    """A `tokenizer.json` of CLIP's form with eleven merges."""
    path = folder / "tokenizer.json"
    path.write_bytes(from_merges(MERGES, merges=len(MERGES) - 1))
    return path


def checkpoint(folder: Path, **options: Any) -> Any:
    """Write a Hugging Face directory, tokenizer included; returns transformers' `CLIPModel`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = hf_clip(folder, vocab_size=VOCAB_SIZE, context_length=24, **options)
    tokenizer_file(folder)
    return model


def bundle(
    folder: Path, output: Path, targets: tuple[str, ...] = ("onnx", "openvino"), **options: Any
) -> list[Outcome]:
    """Export the checkpoint in `folder` to `output`; all artifacts must pass."""
    precisions = options.pop("precisions", ("fp32", "fp16"))
    outcomes = export(source(folder), output, plan(targets, precisions, None), **options)  # type: ignore[arg-type]
    raise_if_failed(outcomes)
    return outcomes


def source(folder: Path) -> Source:
    return open_source(folder, random_weights=True)
