"""The optimizer's groups and schedule, the temperature's clamp, and the average of weights."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from edgeclip.train import optimizer
from edgeclip.train.models.clip import Clip
from edgeclip.train.recipe import Optimizer
from tests import training


def test_gains_biases_and_the_temperature_do_not_decay() -> None:
    clip = Clip(training.toy_config())
    decaying, others = optimizer.adamw([clip], Optimizer(weight_decay=0.2)).param_groups
    assert decaying["weight_decay"] == 0.2 and others["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decaying["params"]) and all(p.ndim < 2 for p in others["params"])
    assert any(p is clip.logit_scale for p in others["params"])
    assert len(decaying["params"]) + len(others["params"]) == len(list(clip.parameters()))


def test_the_rate_rises_then_falls_by_half_a_cosine() -> None:
    settings = Optimizer(lr=1.0, warmup=10, final_lr=0.1)
    rates = [optimizer.learning_rate(step, 110, settings) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_the_temperature_is_held_at_100() -> None:
    t = torch.tensor(9.0)
    optimizer.clamp_scale(t)
    assert math.exp(t) == pytest.approx(100.0)


def test_the_average_follows_the_weights_and_takes_the_statistics() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(model[0].weight, 0.0)
    average = optimizer.averaged(model, 0.75)
    average.update_parameters(model)
    nn.init.constant_(model[0].weight, 1.0)
    average.update_parameters(model)
    assert average.module[0].weight.item() == pytest.approx(0.25)
    model[1].running_mean.fill_(5.0)
    optimizer.take_statistics(average.module, model)
    assert average.module[1].running_mean.item() == 5.0
