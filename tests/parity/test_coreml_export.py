"""Core ML packages of towers of every kind: what they say of themselves, and that they compute what PyTorch computes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from edgeclip.errors import ExportError
from edgeclip.export import coreml_graph, half_range
from edgeclip.export.to_coreml import Traced, to_coreml
from edgeclip.manifest import Precision
from edgeclip.parity import bounds_for
from edgeclip.quantize import mil_process
from edgeclip.quantize.deployment import SYSTEMS
from edgeclip.quantize.layers import LayerInfo
from edgeclip.train.models.text import end_positions
from tests import packages, towers
from tests.packages import cosines, floating, golden, integer, operations, source, specification
from tests.towers import CONTEXT, KINDS, SIDE, Kind, tower_of

HALF, SINGLE = 10, 11
"""Types of values, as protobuf numbers them."""
FEW = ("stem.0.conv", "stem.1.conv", "stages.0.0.reduce.conv", "stages.0.0.expand.conv", "stages.0.0.shortcut.conv")
"""Layers of the ResNet with less than 256 weights, or as many."""


@pytest.fixture(scope="module", autouse=True)
def _children_stay() -> Iterator[None]:
    """As in an export: coremltools is imported once."""
    with mil_process.staying():
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_computes_what_pytorch_computes(kind: Kind) -> None:
    assert cosines(floating(kind), kind).min() > 0.9999


def test_single_precision_computes_the_same() -> None:
    assert cosines(floating("vit", half=False), "vit").min() > 1 - 1e-6


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("vit", "w8a16"),
        ("resnet", "w8a16"),
        ("repvgg", "w8a16"),
        ("vit", "w4a16"),
        *(pytest.param(kind, "w4a16", marks=pytest.mark.nightly) for kind in ("repvgg", "text")),
        *(pytest.param(kind, "w8a8", marks=pytest.mark.nightly) for kind in KINDS),
        *(pytest.param(kind, "w6a16", marks=pytest.mark.nightly) for kind in ("vit", "repvgg", "text")),
    ],
)
def test_integers_pass_their_gate(kind: Kind, precision: Precision) -> None:
    """But for the ResNet in 6 and 4 bits: there, random weights lose more than the gate allows."""
    made = integer(kind, precision)
    assert cosines(made.files, kind).min() > bounds_for(precision).cosine_min
    assert made.quantized == {layer.name for layer in towers.layers(kind) if is_rounded(kind, precision, layer)}


def is_rounded(kind: Kind, precision: Precision, layer: LayerInfo) -> bool:
    """Layers with weights, but those so few that scales would take up what integers save; and no pixels."""
    sees_pixels = layer.name in ("patch_embedding", "stem.0.conv", "stem.spatial.conv")
    few = kind == "resnet" and layer.name in FEW
    return layer.weighted and not few and not (sees_pixels and precision == "w8a8")


def type_of(value: Any) -> int:
    return int(value.type.tensorType.dataType)


def test_an_image_tower_takes_a_picture() -> None:
    described = specification(floating("vit")).description
    (feature,) = described.input
    image = feature.type.imageType
    assert (feature.name, image.width, image.height) == ("pixels", SIDE, SIDE)
    assert image.colorSpace == image.ColorSpace.Value("RGB")
    (output,) = described.output
    array = output.type.multiArrayType
    assert (output.name, list(array.shape)) == ("embeddings", [1, 32])
    assert array.dataType == array.ArrayDataType.Value("FLOAT32")


def test_a_text_tower_takes_one_to_eight_rows_of_the_whole_context() -> None:
    (feature,) = specification(floating("text")).description.input
    array = feature.type.multiArrayType
    assert feature.name == "ids"
    assert array.dataType == array.ArrayDataType.Value("INT32")
    shapes = [tuple(shape.shape) for shape in array.enumeratedShapes.shapes]
    assert shapes == [(rows, CONTEXT) for rows in range(1, 9)]


def test_embeddings_have_length_1_and_do_not_depend_on_the_batch() -> None:
    ids = golden("text").ids
    together = packages.run(floating("text"), "text", ids[:8])
    alone = np.concatenate([packages.run(floating("text"), "text", row[None]) for row in ids[:8]])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(together, alone, atol=1e-3)


def test_a_package_says_what_it_is() -> None:
    described = specification(floating("text")).description
    about = described.metadata
    assert "text tower of tiny" in about.shortDescription
    assert about.author.startswith("edgeclip ") and about.license == "MIT" and about.versionString
    assert "Token ids" in described.input[0].shortDescription
    assert "length 1" in described.output[0].shortDescription
    user = dict(about.userDefined)
    assert user["edgeclip.tower"] == "text"
    assert json.loads(user["edgeclip.tokenizer"])["context_length"] == CONTEXT
    assert json.loads(user["edgeclip.preprocess"])["size"] == SIDE


def test_a_package_is_of_the_system_that_is_asked_for() -> None:
    assert specification(floating("vit")).specificationVersion == SYSTEMS["iOS17"]
    assert specification(floating("vit", system="iOS18")).specificationVersion == SYSTEMS["iOS18"]


def test_a_package_has_three_files_and_nothing_of_the_machine_or_the_day() -> None:
    package = floating("vit")
    assert sorted(name.partition("/")[2] for name in package) == [
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
        "Manifest.json",
    ]
    model = next(data for name, data in package.items() if name.endswith(".mlmodel"))
    for secret in (rb"conversion_date", rb"/tmp", rb"\.py\b", rb"20\d\d-\d\d-\d\d"):
        assert not re.search(secret, model), secret


def test_the_same_source_gives_the_same_bytes() -> None:
    again = to_coreml(Traced(source("vit"), golden("vit"), "image"), half=True, deployment="iOS17")
    assert again == floating("vit")


def test_layers_have_the_names_that_they_have_in_onnx() -> None:
    kept = frozenset({"transformer.blocks.1.mlp.expand"})
    made = integer("vit", "w8a16", keep=kept)
    names = {node.name for node in towers.layers("vit") if node.weighted}
    assert made.quantized == names - kept


def test_pixels_are_never_below_8_bits() -> None:
    stored = {op.outputs[0].name: op.type for op in operations(integer("vit", "w4a16").files)}
    assert stored["p_tower_patch_embedding_weight_to_fp16_quantized"] == "constexpr_blockwise_shift_scale"


def test_half_precision_is_left_where_embeddings_are_normalised() -> None:
    computed = [op for op in operations(floating("vit")) if op.type not in ("const", "cast")]
    types = {op.outputs[0].name: type_of(op.outputs[0]) for op in computed}
    assert [name for name, kind in types.items() if kind == SINGLE] == [
        "outside__mul",
        "outside__add",
        "outside__mul_3",
        "outside__sum_1",
        "outside__sqrt",
        "embeddings",
    ]
    assert set(types.values()) == {HALF, SINGLE}


def loud(clip: Any) -> None:
    """Residuals of a few hundred thousand, which half precision does not hold."""
    clip.image.transformer.blocks[0].mlp.contract.weight.mul_(1e6)


def sharp(clip: Any) -> None:
    """Scores of a few hundred thousand, from queries and keys that half precision does hold."""
    for linear in (clip.image.transformer.blocks[0].attention.query, clip.image.transformer.blocks[0].attention.key):
        linear.weight.mul_(400)


@pytest.mark.parametrize("change", [loud, pytest.param(sharp, marks=pytest.mark.nightly)])
def test_numbers_that_half_precision_does_not_hold_stay_in_single(
    change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packages.with_weights(source("vit"), change)
    vectors = packages.golden_of(model)
    safe = to_coreml(Traced(model, vectors, "image"), half=True, deployment="iOS17")
    assert cosines(safe, "vit", vectors).min() > 0.999
    monkeypatch.setattr(half_range, "LIMIT", np.inf)
    naive = to_coreml(Traced(model, vectors, "image"), half=True, deployment="iOS17")
    with np.errstate(all="ignore"):
        assert not cosines(naive, "vit", vectors).min() > 0.9


def test_the_end_of_text_is_found_as_pytorch_finds_it() -> None:
    text = towers.clip_of("text").text
    rows = torch.from_numpy(towers.samples("text", 64, seed=3))
    rows[0] = rows[0, 0]  # every position has the highest id
    pooled = coreml_graph.PooledText(text)
    assert torch.equal(pooled._end(rows).argmax(dim=-1), end_positions(rows, text.eot_id))
    assert torch.equal(pooled._end(rows).sum(dim=-1), torch.ones(64))
    text.eot_id = 7  # which some rows lack
    try:
        assert torch.equal(pooled._end(rows).argmax(dim=-1), end_positions(rows, 7))
    finally:
        text.eot_id = None


def test_a_crash_of_the_converter_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mil_process, "OPTIONS", "elsewhere.json")  # which the child does not find
    with pytest.raises(ExportError, match=r"coremltools: failed: FileNotFoundError: .*options\.json"):
        to_coreml(packages.traced("vit"), half=True, deployment="iOS17")


def test_tower_is_named_where_pytorch_cannot_trace_it() -> None:
    from edgeclip.export.coreml_program import trace

    class Untraceable(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels if float(pixels.sum()) > 0 else -pixels

    with pytest.raises(ExportError, match="image tower: PyTorch cannot trace it"):
        trace(Untraceable(), torch.zeros(1, 3, 4, 4), tower_of("vit"))
