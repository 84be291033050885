"""Tiny towers of every kind as Core ML packages, what the reference executor computes of them, and what is in them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeclip.export.golden import reference
from edgeclip.export.source import Source
from edgeclip.export.to_coreml import Traced, to_coreml
from edgeclip.golden import Golden
from edgeclip.manifest import ModelSpec, Precision, Provenance, TokenizerSpec
from edgeclip.outcome import Job, draft, open_session
from edgeclip.quantize.deployment import deployment
from edgeclip.quantize.made import Made
from edgeclip.quantize.mlprogram import quantize_package
from edgeclip.train.models import Clip
from tests import towers
from tests.mil import proto
from tests.towers import CONTEXT, EOT, PREPROCESS, VOCABULARY, Kind, tower_of

COUNT = 16
Package = dict[str, bytes]


@cache
def source(kind: Kind) -> Source:
    """A model whose image tower is of this kind; for `text`, whose text tower is looked at."""
    return source_of(towers.clip_of(kind))


def source_of(clip: Clip) -> Source:
    return Source(
        clip=clip,
        preprocess=PREPROCESS,
        tokenizer=b"",
        tokenizer_spec=TokenizerSpec(
            file="tokenizer.json", context_length=CONTEXT, vocab_size=VOCABULARY, sot_id=EOT - 1, eot_id=EOT, pad_id=EOT
        ),
        model=ModelSpec(
            name="tiny",
            embed_dim=clip.config.embed_dim,
            logit_scale=14.5,
            activation="gelu",
            image_architecture="any",
            text_architecture="any",
        ),
        provenance=Provenance(source_format="edgeclip", source_sha256=hashlib.sha256(b"").hexdigest(), licence="MIT"),
    )


@cache
def golden(kind: Kind) -> Golden:
    """Inputs, and what PyTorch makes of them in fp32."""
    return golden_of(source(kind))


def golden_of(model: Source) -> Golden:
    pixels, ids = towers.samples("vit", COUNT), towers.samples("text", COUNT)
    return Golden(
        pixels=pixels,
        image_embeddings=reference(model, "image", pixels),
        texts=[],
        ids=ids,
        text_embeddings=reference(model, "text", ids),
        picture=b"",
        picture_pixels=pixels[0],
    )


def floating(kind: Kind, *, half: bool = True, system: str = "iOS17") -> Package:
    return _floating(kind, half, system)


@cache
def _floating(kind: Kind, half: bool, system: str) -> Package:
    return to_coreml(traced(kind), half=half, deployment=system)


@cache
def traced(kind: Kind) -> Traced:
    return Traced(source(kind), golden(kind), tower_of(kind))


@cache
def integer(kind: Kind, precision: Precision, keep: frozenset[str] = frozenset()) -> Made:
    package = floating(kind, system=deployment(precision))
    samples = towers.samples(kind, 32, seed=1)
    return quantize_package(package, towers.export(kind), tower_of(kind), precision, samples=samples, keep=keep)


def run(package: Mapping[str, bytes], kind: Kind, inputs: NDArray[Any], width: int = 32) -> NDArray[np.float32]:
    """Embeddings by the reference executor."""
    job = Job(tower_of(kind), "coreml", "fp16")
    files = {f"{job.folder}/{name}": data for name, data in package.items()}
    artifact = draft(job, files, PREPROCESS, width, CONTEXT, opset=None, libraries=())
    session = open_session(artifact, files)
    try:
        return session.run(inputs)
    finally:
        session.close()


def cosines(package: Mapping[str, bytes], kind: Kind, vectors: Golden | None = None) -> NDArray[np.float64]:
    """Of the golden inputs' embeddings with those of PyTorch in fp32."""
    found = vectors or golden(kind)
    if tower_of(kind) == "text":
        return towers.cosines(run(package, kind, found.ids), found.text_embeddings)
    return towers.cosines(run(package, kind, found.pixels), found.image_embeddings)


def specification(package: Mapping[str, bytes]) -> Any:
    """The model as protobuf has it."""
    (name,) = (name for name in package if name.endswith(".mlmodel"))
    return proto.Model_pb2.Model.FromString(package[name])


def operations(package: Mapping[str, bytes]) -> list[Any]:
    (block,) = specification(package).mlProgram.functions["main"].block_specializations.values()
    return list(block.operations)


def with_weights(model: Source, change: Any) -> Source:
    """A copy of a model whose weights a function has changed."""
    clip = copy.deepcopy(model.clip)
    with torch.no_grad():
        change(clip)
    return replace(model, clip=clip)
