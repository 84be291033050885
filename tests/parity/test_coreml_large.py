"""Core ML packages of models of real sizes: what they compute, and how large they are. With `-s`, both are printed."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeclip.bundle import Bundle
from edgeclip.export.golden import pictures, reference
from edgeclip.export.graph import example, tower_graph
from edgeclip.export.source import Source, open_source
from edgeclip.export.to_coreml import Traced, to_coreml
from edgeclip.export.to_onnx import to_onnx
from edgeclip.golden import Golden
from edgeclip.loading import BUILT_IN
from edgeclip.manifest import Precision, TokenizerSpec, Tower
from edgeclip.outcome import Job, draft, open_session
from edgeclip.parity import Agreement, bounds_for, measure
from edgeclip.quantize import graphs
from edgeclip.quantize.deployment import deployment
from edgeclip.quantize.layers import OPS
from edgeclip.quantize.mlprogram import quantize_package
from edgeclip.quantize.widen import widen
from edgeclip.train.checkpoints.infer import openai_preprocess
from edgeclip.train.models import Clip, fold_batchnorm, load_config
from edgeclip.train.models.resnet import Bottleneck
from tests import packages
from tests.conftest import ROOT

pytestmark = pytest.mark.nightly

TOWERS: list[tuple[str, Tower]] = [
    ("edge-s", "image"),
    ("edge-s", "text"),
    ("edge-t", "image"),
    ("edge-t", "text"),
    ("RN50", "image"),
    ("ViT-B-32", "image"),
    ("ViT-B-32", "text"),
]
"""The built-in model, its teacher, and two of OpenAI's architectures with random weights."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "w8a16", "w8a8", "w6a16", "w4a16")
UNTRAINED = ("RN50", "ViT-B-32")
"""Random weights are hard to round: of integers, their figures are printed, but not held against the gate."""
SHARES: dict[Precision, float] = {"fp16": 0.51, "w8a16": 0.27, "w6a16": 0.2, "w4a16": 0.15}
"""Of the fp32 package's size, what a package of ViT-B/32's image tower may have."""


@pytest.mark.parametrize(
    ("name", "tower", "precision"),
    [(name, tower, precision) for name, tower in TOWERS for precision in PRECISIONS],
)
def test_a_tower_passes_its_gate(name: str, tower: Tower, precision: Precision) -> None:
    package = made(name, tower, precision)
    found = agreement(package, name, tower)
    share = packages.size(package) / packages.size(made(name, tower, "fp32"))
    print(
        f"\n| {name} | {tower} | {precision} | {packages.size(package) / 1e6:.2f} | {share:.3f} | "
        f"{found.cosine_mean:.7f} | {found.cosine_min:.7f} | {found.top1_agreement:.3f} |",
        flush=True,
    )
    if name not in UNTRAINED or precision in ("fp32", "fp16"):
        assert not found.failures(bounds_for(precision))
    if (name, tower) == ("ViT-B-32", "image"):
        assert share <= SHARES.get(precision, 1.0)


@lru_cache(maxsize=8)
def made(name: str, tower: Tower, precision: Precision) -> dict[str, bytes]:
    package = floating(name, tower, precision != "fp32", deployment(precision))
    if precision in ("fp32", "fp16"):
        return package
    vectors = golden(name)
    samples = vectors.pixels if tower == "image" else vectors.ids
    return quantize_package(package, portable(name, tower), tower, precision, samples=samples).files


@lru_cache(maxsize=3)
def floating(name: str, tower: Tower, half: bool, system: str) -> dict[str, bytes]:
    return to_coreml(traced(name, tower), half=half, deployment=system)


@lru_cache(maxsize=1)
def traced(name: str, tower: Tower) -> Traced:
    return Traced(source(name), golden(name), tower)


@lru_cache(maxsize=1)
def portable(name: str, tower: Tower) -> bytes:
    model = source(name)
    return to_onnx(tower_graph(model.clip, tower, model.preprocess), tower, example(model.clip, tower))


def agreement(package: dict[str, bytes], name: str, tower: Tower) -> Agreement:
    """With the fp32 model in PyTorch, on the golden inputs, by the reference executor."""
    model, vectors = source(name), golden(name)
    job = Job(tower, "coreml", "fp16")
    files = {f"{job.folder}/{file}": data for file, data in package.items()}
    width, context = model.clip.config.embed_dim, model.tokenizer_spec.context_length
    session = open_session(draft(job, files, model.preprocess, width, context, opset=None, libraries=()), files)
    inputs, rows = (
        (vectors.pixels, vectors.image_embeddings) if tower == "image" else (vectors.ids, vectors.text_embeddings)
    )
    try:
        return measure(session.run(inputs), rows)
    finally:
        session.close()


@lru_cache(maxsize=1)
def source(name: str) -> Source:
    if name == "edge-t":
        return open_source(ROOT / "models" / "edge-t")
    clip = student() if name == "edge-s" else untrained(name)
    text = clip.config.text
    spec = TokenizerSpec(
        file="tokenizer.json",
        context_length=text.context_length,
        vocab_size=text.vocab_size,
        sot_id=text.vocab_size - 2,
        eot_id=text.vocab_size - 1,
        pad_id=0,
    )
    plain = packages.source("vit")
    return Source(clip, openai_preprocess(clip.config.image_size), b"", spec, plain.model, plain.provenance)


def untrained(name: str) -> Clip:
    """Random weights; batch normalisation with the statistics of noise, which keeps a ResNet's numbers in range."""
    torch.manual_seed(0)
    clip = Clip(load_config(name)).train()
    norms = [module for module in clip.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        norm.momentum = None
    for block in clip.modules():
        if isinstance(block, Bottleneck) and isinstance(block.expand.norm, nn.BatchNorm2d):
            nn.init.uniform_(block.expand.norm.weight, 0.05, 0.2)  # residuals that do not grow, as in training
    if norms:
        with torch.no_grad():
            clip.encode_image(torch.randn(4, 3, clip.config.image_size, clip.config.image_size))
    return clip.eval()


def student() -> Clip:
    """The built-in model in PyTorch, from its ONNX, which keeps the names of parameters and of layers."""
    bundle = Bundle.open(BUILT_IN)
    clip = Clip(load_config(bundle.manifest.model.name))
    clip.image = fold_batchnorm(clip.image)
    state = clip.state_dict()
    for tower in ("image", "text"):
        (artifact,) = bundle.artifacts(tower=tower, target="onnx", precision="fp16")
        graph = graphs.parse(widen(bundle.read(artifact.file))).graph
        tensors = {tensor.name: graphs.to_array(tensor) for tensor in graph.initializer}
        found = {name.removeprefix("tower."): value for name, value in tensors.items() if name.startswith("tower.")}
        for node in graph.node:
            if node.op_type in OPS and node.input[1] in tensors and f"{node.name}.weight" not in found:
                found[f"{node.name}.weight"] = np.ascontiguousarray(tensors[node.input[1]].T)
        state |= {f"{tower}.{name}": torch.tensor(value) for name, value in found.items() if name != "mask"}
    clip.load_state_dict(state)
    return clip.eval()


def test_the_student_in_pytorch_is_the_built_in_model() -> None:
    """Which the figures of it depend on."""
    vectors = Golden.from_bytes(Bundle.open(BUILT_IN).read("golden.safetensors"))
    for tower, inputs, rows in (
        ("image", vectors.pixels, vectors.image_embeddings),
        ("text", vectors.ids, vectors.text_embeddings),
    ):
        assert measure(reference(source("edge-s"), tower, inputs), rows).cosine_min > 0.99999


@cache
def golden(name: str) -> Golden:
    model = source(name)
    pixels, ids = pictures(model.preprocess.size), sentences(model.tokenizer_spec)
    return Golden(
        pixels=pixels,
        image_embeddings=reference(model, "image", pixels),
        texts=[],
        ids=ids,
        text_embeddings=reference(model, "text", ids),
        picture=b"",
        picture_pixels=pixels[0],
    )


def sentences(spec: TokenizerSpec) -> Any:
    """int32 [16, C]: ids drawn at random, of lengths from a few to the whole context."""
    rng = np.random.default_rng(0)
    ids = np.full((16, spec.context_length), spec.pad_id, np.int32)
    for row, length in zip(ids, np.linspace(3, spec.context_length, 16).astype(int), strict=True):
        row[:length] = rng.integers(1, spec.sot_id, length)
        row[0], row[length - 1] = spec.sot_id, spec.eot_id
    return ids
