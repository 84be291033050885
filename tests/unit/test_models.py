"""The PyTorch CLIP: its sizes, its shortcuts, its half precision, its export."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeclip.errors import UsageError
from edgeclip.train.models import (
    Clip,
    ClipConfig,
    ModifiedResNet,
    ResNetConfig,
    TextConfig,
    VisionTransformer,
    VitConfig,
    fold_batchnorm,
    list_published,
    load_config,
    to_precision,
)
from edgeclip.train.models.layers import Attention, LayerNorm, QuickGelu, attend, attend_fused, causal_mask
from edgeclip.train.models.text import end_positions

PARAMETERS = {
    "RN50": 102_007_137,
    "RN101": 119_688_033,
    "RN50x4": 178_300_601,
    "RN50x16": 290_979_217,
    "RN50x64": 623_258_305,
    "ViT-B-16": 149_620_737,
    "ViT-B-32": 151_277_313,
    "ViT-L-14": 427_616_513,
    "ViT-L-14-336": 427_944_193,
}
"""Of the published models. Source: openai/CLIP, and OpenCLIP's profile to its two decimals of a million."""

TEXT = TextConfig(
    width=80, layers=3, heads=5, context_length=16, vocab_size=300, mlp_width=200, activation="quick_gelu"
)
IMAGES: dict[str, VitConfig | ResNetConfig] = {
    "vit": VitConfig(width=96, layers=2, heads=6, patch=16, mlp_width=200, activation="gelu"),
    "resnet": ResNetConfig(width=16, layers=(1, 2, 1, 1), heads=8),
}


@pytest.fixture(params=sorted(IMAGES))
def clip(request: pytest.FixtureRequest) -> Clip:
    torch.manual_seed(0)
    clip = Clip(ClipConfig(name="tiny", embed_dim=48, image_size=64, image=IMAGES[request.param], text=TEXT)).eval()
    return _with_statistics(clip)


def _with_statistics(clip: Clip) -> Clip:
    """Batch normalisation that does something, as after training."""
    for module in clip.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, buffer in module.named_buffers():
                if name.startswith("running"):
                    nn.init.uniform_(buffer, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return clip


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def ids() -> Tensor:
    """Three texts of different lengths, padded with 0."""
    return torch.tensor([[298, 5, 9, 299, 0, 0, 0], [298, 7, 7, 7, 7, 299, 0], [298, 299, 0, 0, 0, 0, 0]]).int()


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_count_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        clip = Clip(load_config(name))
    assert sum(p.numel() for p in clip.parameters()) == PARAMETERS[name]


def test_the_nine_published_architectures_are_listed() -> None:
    assert list_published() == tuple(sorted(PARAMETERS))


@pytest.mark.parametrize(("alias", "name"), [("ViT-B/32", "ViT-B-32"), ("ViT-L/14@336px", "ViT-L-14-336")])
def test_upstream_spellings_are_understood(alias: str, name: str) -> None:
    assert load_config(alias).name == name


def test_unknown_architecture_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown architecture 'ViT-B-23' \(did you mean 'ViT-B-32'\?\)"):
        load_config("ViT-B-23")


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="7 heads do not divide a width of 96"):
        VitConfig(width=96, layers=2, heads=7, patch=16, mlp_width=200, activation="gelu")


def test_unknown_key_of_a_config_is_refused() -> None:
    raw = msgspec.to_builtins(load_config("RN50")) | {"dropout": 0.1}
    with pytest.raises(msgspec.ValidationError, match="unknown field `dropout`"):
        msgspec.convert(raw, ClipConfig)


def test_features_have_the_width_of_the_joint_space(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    assert clip.encode_image(pixels).shape == clip.encode_text(ids).shape == (3, 48)


def test_forward_normalises_and_exponentiates(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    image, text, scale = clip(pixels, ids)
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(3))
    assert scale.item() == pytest.approx(1 / 0.07)


def _whole(clip: Clip, x: Tensor, at: Tensor, mask: Tensor | None) -> Tensor:
    """Every block in full, then one position."""
    tower = clip.text if mask is not None else clip.image
    assert not isinstance(tower, ModifiedResNet)
    for block in tower.transformer.blocks:
        x = block(x, None, mask)
    pooled: Tensor = tower.projection(tower.norm_post(x[torch.arange(len(x)), at]))
    return pooled


@pytest.mark.parametrize("clip", ["vit"], indirect=True)
def test_the_last_image_block_loses_nothing(clip: Clip, pixels: Tensor) -> None:
    tower = clip.image
    assert isinstance(tower, VisionTransformer)
    patches = tower.patch_embedding(pixels).flatten(2).mT
    x = torch.cat([tower.class_embedding.expand(3, 1, -1), patches], dim=1) + tower.position_embedding
    whole = _whole(clip, tower.norm_pre(x), torch.zeros(3, dtype=torch.int64), None)
    torch.testing.assert_close(clip.encode_image(pixels), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("clip", ["vit"], indirect=True)
def test_the_last_text_block_loses_nothing(clip: Clip, ids: Tensor) -> None:
    x = clip.text.token_embedding(ids) + clip.text.position_embedding[: ids.shape[1]]
    whole = _whole(clip, x, torch.tensor([3, 5, 1]), causal_mask(ids.shape[1]))
    torch.testing.assert_close(clip.encode_text(ids), whole, atol=1e-5, rtol=0)


def test_what_follows_the_end_of_text_changes_nothing(clip: Clip, ids: Tensor) -> None:
    padded = F.pad(ids, (0, 9))
    torch.testing.assert_close(clip.encode_text(ids), clip.encode_text(padded), atol=1e-5, rtol=0)


def test_what_precedes_the_end_of_text_does_matter(clip: Clip, ids: Tensor) -> None:
    changed = ids.clone()
    changed[0, 1] = 6
    assert not torch.allclose(clip.encode_text(ids)[0], clip.encode_text(changed)[0], atol=1e-3)


@pytest.mark.parametrize(("eot_id", "expected"), [(None, [2, 0]), (7, [1, 3])])
def test_the_first_end_of_text_counts(eot_id: int | None, expected: list[int]) -> None:
    ids = torch.tensor([[5, 7, 9, 7, 9], [8, 3, 3, 7, 7]], dtype=torch.int32)
    assert end_positions(ids, eot_id).tolist() == expected


def test_ids_that_half_precision_cannot_tell_apart_are_told_apart() -> None:
    assert end_positions(torch.tensor([[49406, 320, 49407, 49407]]), None).tolist() == [2]


@pytest.mark.parametrize("rows", [5, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_equals_fused_attention(rows: int, masked: bool) -> None:
    query, key, value = torch.randn(2, 3, rows, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    mask = causal_mask(5)[:rows] if masked else None
    torch.testing.assert_close(attend(query, key, value, mask), attend_fused(query, key, value, mask))


def test_explicit_attention_gives_the_same_features(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    fused = clip.encode_image(pixels), clip.encode_text(ids)
    for module in clip.modules():
        if isinstance(module, Attention):
            module.explicit = True
    torch.testing.assert_close((clip.encode_image(pixels), clip.encode_text(ids)), fused, atol=1e-5, rtol=0)


def test_plain_attention_survives_scores_beyond_half_precision() -> None:
    x = torch.full((1, 1, 2, 4096), 8.0, dtype=torch.float16)  # unscaled scores are 262144, float16 ends at 65504
    assert attend(x, x, x, None).tolist() == x.tolist()


def test_the_mask_is_finite_in_half_precision() -> None:
    assert torch.isfinite(causal_mask(4).half()).all()


def test_layer_norm_computes_in_float32() -> None:
    x = torch.tensor([[300.0, -300.0, 301.0, -299.0]], dtype=torch.float16)  # squares overflow float16
    result = LayerNorm(4)(x)
    assert result.dtype == torch.float16
    torch.testing.assert_close(result.float(), F.layer_norm(x.float(), (4,)), atol=1e-3, rtol=0)


def test_quick_gelu_is_a_scaled_sigmoid_gate() -> None:
    assert QuickGelu()(torch.tensor(1.0)).item() == pytest.approx(0.845795, abs=1e-6)


def test_folding_batch_normalisation_changes_nothing(clip: Clip, pixels: Tensor) -> None:
    folded = fold_batchnorm(clip.image)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(pixels), clip.encode_image(pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize("clip", ["resnet"], indirect=True)
def test_folding_leaves_the_original_alone(clip: Clip) -> None:
    fold_batchnorm(clip)
    assert any(isinstance(module, nn.BatchNorm2d) for module in clip.modules())


@pytest.mark.parametrize("clip", ["resnet"], indirect=True)
def test_half_precision_needs_folded_batch_normalisation(clip: Clip) -> None:
    with pytest.raises(UsageError, match=r"call fold_batchnorm\(\) first"):
        to_precision(clip, torch.float16)


def test_half_precision_agrees_with_float32(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    half = to_precision(fold_batchnorm(clip), torch.float16)
    assert isinstance(half, Clip)
    for small, full in (
        (half.encode_image(pixels), clip.encode_image(pixels)),
        (half.encode_text(ids), clip.encode_text(ids)),
    ):
        assert small.dtype == torch.float16
        assert F.cosine_similarity(small.float(), full).min() > 0.9999


def test_half_precision_keeps_the_norms_in_float32(clip: Clip) -> None:
    half = to_precision(fold_batchnorm(clip), torch.float16)
    single = {name for name, parameter in half.named_parameters() if parameter.dtype == torch.float32}
    assert single
    assert all("norm" in name or name == "logit_scale" for name in single)


@pytest.mark.parametrize("clip", ["vit"], indirect=True)
def test_checkpointing_leaves_the_gradient_alone(clip: Clip, ids: Tensor) -> None:
    clip.train()
    gradients = []
    for checkpointing in (False, True):
        clip.zero_grad()
        clip.text.transformer.checkpointing = checkpointing
        torch.autograd.backward(clip.encode_text(ids).square().sum())
        gradients.append(clip.text.token_embedding.weight.grad)
    torch.testing.assert_close(*gradients)


def test_every_parameter_gets_a_gradient(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    image, text, scale = clip.train()(pixels, ids)
    torch.autograd.backward((scale * image @ text.T).log_softmax(dim=-1).trace())
    assert [name for name, parameter in clip.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_towers_export_with_dynamic_axes(
    clip: Clip, tower: str, dtype: torch.dtype, pixels: Tensor, ids: Tensor, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module = getattr(to_precision(fold_batchnorm(clip), dtype), tower)
    inputs = pixels if tower == "image" else ids
    session = onnxruntime.InferenceSession(_to_onnx(module, inputs))
    fewer = inputs[:1] if tower == "image" else inputs[:2, :6]
    (result,) = session.run(None, {session.get_inputs()[0].name: fewer.numpy()})
    expected = clip.encode_image(fewer) if tower == "image" else clip.encode_text(fewer)
    assert F.cosine_similarity(torch.from_numpy(result).float(), expected).min() > 0.9999


def _to_onnx(module: nn.Module, inputs: Tensor) -> bytes:
    axes = (0,) if inputs.ndim == 4 else (0, 1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it says that torchvision is absent
    with warnings.catch_warnings():
        # torch.onnx itself still calls a name that torch deprecated.
        warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)`", FutureWarning)
        shapes = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
        program: Any = torch.onnx.export(module, (inputs,), dynamo=True, dynamic_shapes=shapes, opset_version=18)
    serialised: bytes = program.model_proto.SerializeToString()
    return serialised
