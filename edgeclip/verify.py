"""Does this device compute what the model's makers measured? Golden vectors through the loaded engine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np

from edgeclip import cache
from edgeclip.errors import NonFiniteError, ParityError
from edgeclip.golden import Golden
from edgeclip.manifest import Tower
from edgeclip.model import Model
from edgeclip.parity import Agreement, Bounds, bounds_for, measure
from edgeclip.preprocess import preprocess


@dataclass(frozen=True)
class Check:
    """One thing that was checked."""

    name: str
    """`image`, `text`, `preprocess` or `tokenizer`."""
    artifact: str
    failures: list[str]
    """Empty when it passed."""
    agreement: Agreement | None = None
    bounds: Bounds | None = None


@dataclass(frozen=True)
class Verification:
    """All checks of one model on this device."""

    backend: str
    compute: str
    checks: list[Check]

    @property
    def passed(self) -> bool:
        return not any(check.failures for check in self.checks)

    def raise_if_failed(self) -> None:
        """
        Raises:
            ParityError: naming each check that failed and by how much.
        """
        if not self.passed:
            what = "; ".join(f"{c.name} ({c.artifact}): {', '.join(c.failures)}" for c in self.checks if c.failures)
            raise ParityError(
                f"{self.backend} does not reproduce the reference: {what}",
                hint="try another backend or compute type; `edgeclip doctor` lists them",
            )


def verify(model: Model) -> Verification:
    """Run every golden input through the towers that are loaded, and the picture and texts through the host's part."""
    golden = Golden.from_bytes(model.bundle.read(model.bundle.manifest.golden))
    checks = [_picture(model, golden)] if "image" in model.info.artifacts else []
    for tower in model.info.artifacts:
        checks.append(_tower(model, golden, tower))
    if "text" in model.info.artifacts:
        checks.append(_tokens(model, golden))
    return Verification(f"{model.info.backend} {model.info.engine_version}", model.info.compute, checks)


def verify_once(model: Model) -> None:
    """Verify, unless this bundle passed on this device with this engine before.

    Raises:
        ParityError: a check failed; nothing is remembered then.
    """
    name = f"verified/{model.info.fingerprint}-{'-'.join(sorted(model.info.artifacts))}.json"
    if cache.read(name) is not None:
        return
    result = verify(model)
    result.raise_if_failed()
    cache.write(name, json.dumps(asdict(result)).encode())


def _tower(model: Model, golden: Golden, tower: Tower) -> Check:
    artifact = model.info.artifacts[tower]
    inputs = golden.pixels if tower == "image" else golden.ids
    reference = golden.image_embeddings if tower == "image" else golden.text_embeddings
    if len(inputs) == 0:
        return Check(tower, artifact, ["the bundle has no golden vectors for this tower"])
    try:
        encode = model.encode_pixels if tower == "image" else model.encode_ids
        agreement = measure(encode(inputs), reference)
    except NonFiniteError as exc:
        return Check(tower, artifact, [exc.message])
    bounds = bounds_for(model.info.precision, model.info.compute)
    return Check(tower, artifact, agreement.failures(bounds), agreement, bounds)


def _picture(model: Model, golden: Golden) -> Check:
    """Decoding a PNG is exact everywhere, and the resize is integer arithmetic: one step of rounding is the most."""
    pixels = preprocess(golden.picture, model.bundle.manifest.preprocess)
    worst = int(np.abs(pixels.astype(np.int16) - golden.picture_pixels.astype(np.int16)).max())
    failures = [f"a pixel differs by {worst}/255 from the reference"] if worst > 1 else []
    return Check("preprocess", "Pillow", failures)


def _tokens(model: Model, golden: Golden) -> Check:
    ids = model.tokenize(golden.texts)
    wrong = [i for i, same in enumerate((ids == golden.ids).all(axis=1)) if not same]
    failures = [f"golden text {wrong[0]} has other token ids ({len(wrong)} of {len(ids)} differ)"] if wrong else []
    return Check("tokenizer", "tokenizer.json", failures)
