"""Views: what they draw, and that one resampling makes the crop, the mirror image and the colours that they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeclip.train.data import augment
from edgeclip.train.data.seeds import key_ids, view_seeds
from edgeclip.train.recipe import Augment
from tests import training

SEEDS = view_seeds(0, key_ids(str(i) for i in range(4000)), 0)
WHOLE = [0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def view(**changes: float) -> Tensor:
    """One view, of the whole image where nothing is changed."""
    values = dict(zip(augment.COLUMNS, WHOLE, strict=True)) | changes
    return torch.tensor([[values[name] for name in augment.COLUMNS]])


def picture(side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, side, side, 3), generator=generator, dtype=torch.uint8)


def planes(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float()


def test_crops_lie_in_the_image_and_span_the_scale() -> None:
    drawn = augment.draw(Augment(scale=(0.3, 0.9), ratio=(0.8, 1.25)), SEEDS).numpy()
    x, y, width, height = drawn[:, :4].T
    for centre, length in ((x, width), (y, height)):
        assert (centre - length / 2 > -1e-6).all() and (centre + length / 2 < 1 + 1e-6).all()
    area = width * height
    assert area.min() >= 0.3 - 1e-3 and area.max() <= 0.9 + 1e-3
    assert area.mean() == pytest.approx(0.6, abs=0.02)
    assert np.corrcoef(x, y)[0, 1] == pytest.approx(0.0, abs=0.05)


def test_mirrors_and_colours_come_as_often_and_as_strongly_as_asked() -> None:
    drawn = augment.draw(Augment(flip=0.25, brightness=0.4, saturation=0.1), SEEDS)
    mirror, brightness, contrast, saturation = drawn[:, 4:].unbind(1)
    assert (mirror < 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert 0.6 <= brightness.min() < 0.62 and 1.38 < brightness.max() <= 1.4
    assert (contrast == 1).all() and saturation.std() > 0.05


def test_the_whole_image_comes_back_as_it_is() -> None:
    pixels = picture()
    torch.testing.assert_close(augment.apply(pixels, view(), 8), planes(pixels), atol=1e-3, rtol=0)


def test_a_mirror_image_is_one() -> None:
    pixels = picture()
    torch.testing.assert_close(augment.apply(pixels, view(mirror=-1.0), 8), planes(pixels).flip(3), atol=1e-3, rtol=0)


def test_a_crop_is_that_part_of_the_image() -> None:
    pixels = picture()
    part = augment.apply(pixels, view(centre_x=0.25, centre_y=0.75, width=0.5, height=0.5), 4)
    torch.testing.assert_close(part, planes(pixels)[:, :, 4:, :4], atol=1e-3, rtol=0)


def test_an_enlarged_crop_is_interpolated_as_pytorch_does() -> None:
    pixels = picture()
    expected = F.interpolate(planes(pixels), size=16, mode="bilinear", align_corners=False)
    found = augment.apply(pixels, view(), 16)
    torch.testing.assert_close(found[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-3, rtol=0)


def test_colours_by_hand() -> None:
    pixels = torch.tensor([[[[100, 50, 200]] * 2] * 2], dtype=torch.uint8)
    grey = 0.299 * 100 + 0.587 * 50 + 0.114 * 200
    bright = augment.apply(pixels, view(brightness=1.5), 2)[0, :, 0, 0]
    assert bright.tolist() == pytest.approx([150.0, 75.0, 255.0], abs=1e-3)
    plain = augment.apply(pixels, view(saturation=0.0), 2)[0, :, 0, 0]
    assert plain.tolist() == pytest.approx([grey] * 3, abs=1e-3)
    flat = augment.apply(picture(), view(contrast=0.0), 8)
    assert float(flat.std()) < 1e-3


def test_pixels_are_normalised_as_the_exported_graph_does() -> None:
    spec = training.preprocess()
    image = torch.tensor([0.0, 127.5, 255.0]).view(1, 3, 1, 1)
    assert augment.normalise(image, spec).flatten().tolist() == pytest.approx([-2.0, 0.0, 2.0])


def test_the_result_is_channels_last() -> None:
    assert augment.apply(picture(), view(), 8).is_contiguous(memory_format=torch.channels_last)
