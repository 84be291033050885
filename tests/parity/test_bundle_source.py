"""PyTorch models made of ONNX again: the same weights, of towers of every kind."""

from __future__ import annotations

import copy

import pytest
import torch

from edgeclip.bundle import Bundle
from edgeclip.export.bundle_source import source_of, weights_of
from edgeclip.export.golden import reference
from edgeclip.export.graph import example, tower_graph
from edgeclip.export.to_onnx import to_onnx
from edgeclip.golden import Golden
from edgeclip.loading import BUILT_IN
from edgeclip.parity import measure
from edgeclip.train.models import fold_batchnorm
from tests import towers
from tests.towers import PREPROCESS, Kind, tower_of


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_every_weight_comes_back(kind: Kind) -> None:
    """Of those that differ, as trained ones do: ONNX has equal ones once."""
    model = copy.deepcopy(towers.clip_of(kind))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    tower = fold_batchnorm(getattr(model, tower_of(kind)))
    onnx = to_onnx(tower_graph(model, tower_of(kind), PREPROCESS), tower_of(kind), example(model, tower_of(kind)))
    found = weights_of(tower, onnx)
    assert found.keys() == tower.state_dict().keys()
    for name, value in tower.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_the_built_in_model_is_what_its_golden_vectors_say() -> None:
    bundle = Bundle.open(BUILT_IN)
    model, vectors = source_of(bundle, ["image", "text"]), Golden.from_bytes(bundle.read("golden.safetensors"))
    assert measure(reference(model, "image", vectors.pixels), vectors.image_embeddings).cosine_min > 0.99999
    assert measure(reference(model, "text", vectors.ids), vectors.text_embeddings).cosine_min > 0.99999
