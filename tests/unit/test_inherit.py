"""Smaller models that begin with a teacher's weights."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from edgeclip.errors import UsageError
from edgeclip.train.axes import axes_of
from edgeclip.train.inherit import Width, inherit, pick_depths
from edgeclip.train.models import Clip, ClipConfig, RepVggConfig, ResNetConfig, TextConfig, VitConfig

TEXT = TextConfig(width=64, layers=4, heads=4, context_length=12, vocab_size=100, mlp_width=128, activation="gelu")
SMALL_TEXT = TextConfig(width=32, layers=2, heads=2, context_length=8, vocab_size=100, mlp_width=48, activation="gelu")
IMAGES: dict[str, tuple[Any, Any]] = {
    "vit": (
        VitConfig(width=64, layers=5, heads=4, patch=16, mlp_width=96, activation="gelu"),
        VitConfig(width=48, layers=3, heads=3, patch=16, mlp_width=64, activation="gelu"),
    ),
    "resnet": (
        ResNetConfig(width=16, layers=(2, 2, 3, 1), heads=8),
        ResNetConfig(width=8, layers=(1, 2, 2, 1), heads=4),
    ),
    "repvgg": (
        RepVggConfig(
            stem=16,
            widths=(16, 32),
            depths=(2, 3),
            strides=(1, 2),
            branches=("pointwise", "identity"),
            pool="attention",
        ),
        RepVggConfig(
            stem=8, widths=(8, 24), depths=(2, 2), strides=(1, 2), branches=("pointwise", "identity"), pool="attention"
        ),
    ),
}


def config(image: Any, text: TextConfig = TEXT, *, embed_dim: int = 32, image_size: int = 32) -> ClipConfig:
    return ClipConfig(name="tiny", embed_dim=embed_dim, image_size=image_size, image=image, text=text)


@pytest.fixture(scope="module", params=sorted(IMAGES))
def pair(request: pytest.FixtureRequest) -> tuple[Clip, ClipConfig]:
    """A teacher, and a student's configuration that is smaller in every way."""
    torch.manual_seed(0)
    large, small = IMAGES[request.param]
    return Clip(config(large)), config(small, SMALL_TEXT, embed_dim=24)


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("teacher", "student", "picked"),
    [(12, 4, [0, 4, 7, 11]), (12, 12, list(range(12))), (5, 1, [0]), (3, 2, [0, 2])],
)
def test_layers_are_spread_from_first_to_last(teacher: int, student: int, picked: list[int]) -> None:
    assert pick_depths(teacher, student) == picked


def test_every_weight_has_its_axes(pair: tuple[Clip, ClipConfig]) -> None:
    teacher, _ = pair
    state = {name: tensor.dim() for name, tensor in teacher.state_dict().items() if tensor.dim()}
    assert {name: len(axes) for name, axes in axes_of(teacher.config).items()} == state


def test_the_same_sizes_give_the_same_model(pair: tuple[Clip, ClipConfig]) -> None:
    teacher, _ = pair
    student = inherit(teacher, teacher.config)
    for name, tensor in teacher.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize("width", ["magnitude", "prefix"])
def test_the_student_computes(pair: tuple[Clip, ClipConfig], width: Width, pixels: Tensor) -> None:
    teacher, small = pair
    image, text, _ = inherit(teacher, small, width=width).eval()(pixels, torch.ones(2, 8, dtype=torch.int32))
    assert image.shape == text.shape == (2, 24)
    assert torch.isfinite(image).all()


def test_every_weight_is_the_teacher_s(pair: tuple[Clip, ClipConfig]) -> None:
    teacher, small = pair
    known = {value for tensor in teacher.state_dict().values() for value in tensor.flatten().tolist()}
    for name, tensor in inherit(teacher, small).state_dict().items():
        assert known.issuperset(tensor.flatten().tolist()), name


@torch.no_grad()
def test_channels_that_do_nothing_are_left_out(pair: tuple[Clip, ClipConfig], pixels: Tensor) -> None:
    """A teacher that is a smaller model padded with zeros gives that model back, wherever the padding lies."""
    small = msgspec.structs.replace(pair[0].config, embed_dim=24)
    first = inherit(pair[0], small)
    padded = Clip(pair[0].config)
    state = padded.state_dict()
    rows = torch.tensor([i for i in range(32) if i % 4])
    for name, tensor in first.state_dict().items():
        joint = [dim for dim, axis in enumerate(axes_of(small).get(name, ())) if axis == "joint"]
        state[name] = tensor if not joint else torch.zeros_like(state[name]).index_copy(joint[0], rows, tensor)
    padded.load_state_dict(state)
    again = inherit(padded, small)
    torch.testing.assert_close(again.eval().encode_image(pixels), first.eval().encode_image(pixels))


@torch.no_grad()
def test_both_towers_keep_the_same_directions_of_the_joint_space() -> None:
    teacher = Clip(config(IMAGES["vit"][0]))
    for tower in (teacher.image, teacher.text):
        tower.projection.weight.copy_(torch.arange(32.0)[:, None].expand(-1, 64))
    student = inherit(teacher, config(IMAGES["vit"][0], embed_dim=4))
    for tower in (student.image, student.text):
        assert tower.projection.weight[:, 0].tolist() == [28.0, 29.0, 30.0, 31.0]


@torch.no_grad()
def test_the_heads_that_weigh_most_are_kept_whole() -> None:
    teacher = Clip(config(IMAGES["vit"][0]))
    attention = teacher.text.transformer.blocks[0].attention
    attention.query.weight[16:32] *= 100  # the second head
    attention.key.bias.copy_(torch.arange(64.0))
    student = inherit(teacher, config(IMAGES["vit"][0], msgspec.structs.replace(TEXT, heads=1, width=16)))
    assert student.text.transformer.blocks[0].attention.key.bias.tolist() == list(range(16, 32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 90}, r"token_embedding\.weight: 90 entries, the teacher has 100.*prune the teacher's vocab"),
        ({"layers": 5}, r"text\.transformer\.blocks: 5 layers, the teacher has 4"),
        ({"mlp_width": 256}, r"mlp\.expand\.weight: 256 channels, the teacher has 128"),
        ({"heads": 8}, r"attention\.\w+\.\w+: 8 heads of 8, the teacher has 4 of 16"),
        ({"context_length": 99}, r"position_embedding: 99 channels, the teacher has 12"),
    ],
)
def test_a_student_that_is_larger_somewhere_is_refused(change: dict[str, Any], message: str) -> None:
    image = IMAGES["vit"][0]
    with pytest.raises(UsageError, match=message):
        inherit(Clip(config(image)), config(image, msgspec.structs.replace(TEXT, **change)))


def test_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a ResNet cannot inherit from a Vit"):
        inherit(Clip(config(IMAGES["vit"][0])), config(IMAGES["resnet"][0]))


def test_other_strides_are_refused() -> None:
    large, small = IMAGES["repvgg"]
    with pytest.raises(UsageError, match=r"strides \(2, 2\), the teacher's are \(1, 2\)"):
        inherit(Clip(config(large)), config(msgspec.structs.replace(small, strides=(2, 2))))


def test_other_branches_are_refused() -> None:
    large, small = IMAGES["repvgg"]
    bare = Clip(config(msgspec.structs.replace(large, branches=("skip",))))
    with pytest.raises(UsageError, match=r"stem\.pointwise\.conv\.weight: the teacher has no .*same branches"):
        inherit(bare, config(small))
