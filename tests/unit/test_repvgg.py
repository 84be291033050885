"""Towers whose branches fold away, and the architectures for the edge."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgeclip.errors import UsageError
from edgeclip.train.checkpoints import build, read_checkpoint, save_checkpoint
from edgeclip.train.checkpoints.infer import openai_preprocess
from edgeclip.train.models import (
    Clip,
    ClipConfig,
    RepVgg,
    RepVggConfig,
    fold_batchnorm,
    list_configs,
    list_published,
    load_config,
    to_precision,
)
from edgeclip.train.models.clip import image_tower
from edgeclip.train.models.config import Branch
from edgeclip.train.models.repvgg import RepBlock

EDGE = [name for name in list_configs() if name not in list_published()]
BRANCHES: list[tuple[Branch, ...]] = [
    (),
    ("skip",),
    ("identity",),
    ("pointwise",),
    ("pointwise", "identity"),
    ("pointwise", "identity", "skip"),
]


def config(**changes: object) -> RepVggConfig:
    plain = RepVggConfig(stem=8, widths=(8, 16), depths=(2, 2), strides=(1, 2), branches=("pointwise", "identity"))
    return msgspec.structs.replace(plain, **changes)


def trained(module: nn.Module) -> nn.Module:
    """With statistics and gains that do something, as after training; in evaluation mode."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            nn.init.uniform_(norm.running_mean, -1.0, 1.0)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -1.0, 1.0)
    return module.eval()


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("branches", BRANCHES, ids="+".join)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_folded_block_computes_the_same(branches: tuple[Branch, ...], stride: int) -> None:
    block = trained(RepBlock(8, 8, stride, branches))
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(fold_batchnorm(block)(x), block(x), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["average", "attention"])
@pytest.mark.parametrize("branches", BRANCHES, ids="+".join)
def test_a_folded_tower_computes_the_same(branches: tuple[Branch, ...], pool: str, pixels: Tensor) -> None:
    tower = trained(RepVgg(config(branches=branches, pool=pool), 32, 12))
    expected = tower(pixels)
    assert expected.shape == (2, 12)
    torch.testing.assert_close(fold_batchnorm(tower)(pixels), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_a_folded_tower_has_nothing_but_plain_convolutions() -> None:
    tower = fold_batchnorm(RepVgg(config(branches=("pointwise", "identity", "skip")), 32, 12))
    kernels = [module.kernel_size for module in tower.modules() if isinstance(module, nn.Conv2d)]
    assert kernels == [(3, 3)] * 5
    assert not any(isinstance(module, nn.BatchNorm2d) for module in tower.modules())
    assert not any(module.skip for module in tower.modules() if isinstance(module, RepBlock))


def test_folding_twice_is_folding_once(pixels: Tensor) -> None:
    once = fold_batchnorm(trained(RepVgg(config(branches=("identity", "skip")), 32, 12)))
    torch.testing.assert_close(fold_batchnorm(once)(pixels), once(pixels), atol=0, rtol=0)


def test_folding_leaves_the_original_alone() -> None:
    tower = RepVgg(config(), 32, 12)
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    fold_batchnorm(tower)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.state_dict().items())


def test_half_precision_agrees(pixels: Tensor) -> None:
    tower = trained(RepVgg(config(), 32, 12))
    half = to_precision(fold_batchnorm(tower), torch.float16)(pixels)
    assert half.dtype == torch.float16
    assert torch.cosine_similarity(half.float(), tower(pixels)).min() > 0.9999


def test_branches_that_keep_the_input_exist_only_where_its_shape_stays() -> None:
    tower = RepVgg(config(branches=("identity",)), 32, 12)
    blocks = [(name, block) for name, block in tower.named_modules() if isinstance(block, RepBlock)]
    assert [name for name, block in blocks if block.identity is not None] == ["stages.0.0", "stages.0.1", "stages.1.1"]


def test_every_parameter_gets_a_gradient(pixels: Tensor) -> None:
    tower = RepVgg(config(branches=("pointwise", "identity", "skip"), pool="attention"), 32, 12).train()
    torch.autograd.backward(tower(pixels).square().sum())
    assert [name for name, parameter in tower.named_parameters() if parameter.grad is None] == []


def test_checkpointing_leaves_the_gradient_alone(pixels: Tensor) -> None:
    tower = RepVgg(config(), 32, 12).train()
    gradients = []
    for checkpointing in (False, True):
        tower.zero_grad()
        tower.checkpointing = checkpointing
        torch.autograd.backward(tower(pixels).square().sum())
        gradients.append(tower.stem.spatial.conv.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (2,)}, "2 widths, 1 depths and 2 strides: each stage needs one of each"),
        ({"branches": ("skip", "skip")}, "a branch is named twice: skip, skip"),
        ({"heads": 3}, "3 heads do not divide a width of 16"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_the_stride_must_divide_the_image() -> None:
    with pytest.raises(ValueError, match="a stride of 4 does not divide an image_size of 30"):
        ClipConfig(name="odd", embed_dim=8, image_size=30, image=config(), text=load_config("edge-s").text)


def test_the_architectures_for_the_edge_are_listed() -> None:
    assert EDGE == ["edge-s", "edge-t", "edge-vit-s"]


@pytest.mark.parametrize("name", EDGE)
def test_edge_architectures_take_small_images_and_short_texts(name: str) -> None:
    config = load_config(name)
    assert (config.name, config.image_size) == (name, 64)
    assert (config.text.context_length, config.text.vocab_size) == (32, 4096)


@pytest.mark.parametrize("name", EDGE)
def test_edge_architectures_read_back(name: str, tmp_path: Path) -> None:
    clip = Clip(load_config(name)).eval()
    save_checkpoint(clip, tmp_path / "c", openai_preprocess(64))
    again = build(read_checkpoint(tmp_path / "c"))
    assert again.config == clip.config
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again.encode_image(pixels), clip.encode_image(pixels), atol=0, rtol=0)


def test_the_student_has_at_most_six_million_parameters() -> None:
    with torch.device("meta"):
        clip = Clip(load_config("edge-s"))
    assert sum(parameter.numel() for parameter in clip.parameters()) <= 6_000_000


def test_the_students_images_cost_at_most_a_quarter_of_the_teachers() -> None:
    costs = {}
    for name in ("edge-s", "edge-t"):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            image_tower(load_config(name)).eval()(torch.zeros(1, 3, 64, 64))
        costs[name] = counter.get_total_flops()
    assert costs["edge-s"] <= costs["edge-t"] / 4


def test_the_teacher_fits_in_25_megabytes_at_half_precision() -> None:
    with torch.device("meta"):
        clip = Clip(load_config("edge-t"))
    assert 2 * sum(tensor.numel() for tensor in clip.state_dict().values()) <= 25_000_000


def test_both_kinds_of_names_are_suggested() -> None:
    with pytest.raises(UsageError, match=r"unknown architecture 'edge-x' \(did you mean 'edge-[st]'\?\)"):
        load_config("edge-x")
