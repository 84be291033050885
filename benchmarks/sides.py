"""Both sides, loaded: edgeclip on each engine that runs here, and transformers; and whether they compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import edgeclip
from edgeclip import backends
from edgeclip.backends.base import Embeddings
from edgeclip.benchmarks.peer import Peer
from edgeclip.benchmarks.prepare import CAPTIONS, Materials
from edgeclip.bundle import Bundle
from edgeclip.errors import EdgeClipError, ParityError, TargetUnavailableError
from edgeclip.manifest import Compute, Precision
from edgeclip.model import Model

PEER = "transformers"
PEER_BF16 = "transformers bf16"
MAIN = "openvino f32"
BF16 = "openvino bf16"
INT8 = "openvino w8a8"
ENGINES: dict[str, tuple[str, Precision, Compute]] = {
    MAIN: ("openvino", "fp32", "f32"),
    BF16: ("openvino", "fp32", "bf16"),
    INT8: ("openvino", "w8a8", "f32"),
    "onnxruntime f32": ("onnxruntime", "fp32", "f32"),
}
"""Label -> backend, artifact and arithmetic."""
COSINE_MIN = 0.999
COSINE_MIN_INT8 = 0.99


@dataclass
class Sides:
    """What is compared."""

    peer: Peer
    models: dict[str, Model] = field(default_factory=dict)
    peer_bf16: Peer | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """Label -> why it does not run here."""

    def close(self) -> None:
        """Free the engines."""
        for model in self.models.values():
            model.close()


@dataclass(frozen=True)
class Agreement:
    """How alike one contender's embeddings are to the peer's, of the same files and texts."""

    contender: str
    image_min: float
    text_min: float
    other_images: float
    """Median cosine of two different photographs, in the peer's own embeddings: what 'alike' is to be measured by."""


def load(materials: Materials, threads: int) -> Sides:
    """Load all that this machine can run.

    Raises:
        TargetUnavailableError: not even the first of `ENGINES` runs.
    """
    tokenizer = _tokenizer(materials.bundle)
    sides = Sides(Peer(materials.checkpoint, tokenizer, threads))
    for label, engine in ENGINES.items():
        try:
            sides.models[label] = _model(materials.bundle, *engine, threads)
        except EdgeClipError as exc:
            sides.missing[label] = exc.message
    if MAIN not in sides.models:
        raise TargetUnavailableError(f"{MAIN} does not run here: {sides.missing[MAIN]}")
    if BF16 in sides.models:
        sides.peer_bf16 = Peer(materials.checkpoint, tokenizer, threads, "bfloat16")
    else:
        sides.missing[PEER_BF16] = sides.missing[BF16]
    return sides


def compare(sides: Sides, photographs: Sequence[Path]) -> list[Agreement]:
    """Embed the same files and captions with everything.

    Raises:
        ParityError: a cosine of the peer and an edgeclip engine is below `COSINE_MIN`, or `COSINE_MIN_INT8`.
    """
    images = sides.peer.encode_files(photographs)
    texts = sides.peer.encode_text(CAPTIONS, padding=True)
    others = float(np.median((images @ images.T)[~np.eye(len(images), dtype=bool)]))
    found = [
        Agreement(
            label, _least(images, model.encode_image(photographs)), _least(texts, model.encode_text(CAPTIONS)), others
        )
        for label, model in sides.models.items()
    ]
    for one in found:
        least = COSINE_MIN_INT8 if one.contender == INT8 else COSINE_MIN
        if not min(one.image_min, one.text_min) >= least:
            raise ParityError(
                f"{one.contender}: cosine with transformers {one.image_min:.5f} (images), {one.text_min:.5f} (texts), "
                f"below {least}",
                hint="the two do not compute the same, so that there is nothing to time",
            )
    return found


def _least(a: Embeddings, b: Embeddings) -> float:
    return float((a * b).sum(axis=1).min())


def _model(bundle: Path, backend: str, precision: Precision, compute: Compute, threads: int) -> Model:
    if compute not in backends.get(backend).computes("cpu"):
        raise TargetUnavailableError(f"this CPU has no {compute}")
    return edgeclip.load(
        bundle,
        backend=backend,
        precision=precision,
        compute=compute,
        threads=threads,
        text_cache=False,
        tuned=False,
    )


def _tokenizer(path: Path) -> bytes:
    bundle: Any = Bundle.open(path)
    return bytes(bundle.read(bundle.manifest.tokenizer.file))
