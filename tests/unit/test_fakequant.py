"""Quantizers on a model: attached, observed, frozen, read, taken away again."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgeclip.errors import UsageError
from edgeclip.quantize.fakequant import Scheme, attach, detach, freeze, learned, learned_scales, observe, round_weights
from edgeclip.quantize.fakequant import quantized_layers as layers_of

W4, W8A8 = Scheme("w4a16"), Scheme("w8a8")
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))


def observed(model: nn.Sequential) -> nn.Sequential:
    with observe(model):
        model(X)
    return model


def test_weights_keep_their_names_and_bits() -> None:
    plain = net()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    state = attach(plain, W4).state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert sorted(state.keys() - before.keys()) == ["0.weight_quantizer.log_scale", "3.weight_quantizer.log_scale"]


def test_detached_it_is_the_model_of_before() -> None:
    plain = net()
    expected, before = plain(X), {name: value.clone() for name, value in plain.state_dict().items()}
    attached = attach(plain, W8A8)
    rounded = observed(attached)(X)
    assert not torch.equal(rounded, expected)
    detach(attached)
    assert torch.equal(plain(X), expected) and plain.state_dict().keys() == before.keys()
    assert [type(module) for module in plain] == [nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear]
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_it_computes_with_the_rounded_weights() -> None:
    model = attach(net(), W4)
    rounded = net()
    with torch.no_grad():
        for index in (0, 3):
            rounded[index].weight.copy_(model[index].weight_quantizer(model[index].weight))
    assert torch.equal(model(X), rounded(X))


def test_rounded_weights_stay_when_they_are_rounded_again() -> None:
    model = attach(net(), W4)
    expected = model(X)
    once = {name: value.clone() for name, value in round_weights(model).state_dict().items()}
    assert not torch.equal(once["0.weight"], net().state_dict()["0.weight"])
    assert torch.equal(model(X), expected) and torch.equal(
        round_weights(model).state_dict()["0.weight"], once["0.weight"]
    )
    assert torch.equal(detach(model)(X), expected)


def test_what_is_kept_stays() -> None:
    model = attach(net(), W4, frozenset({"3"}))
    assert list(layers_of(model)) == ["0"] and type(model[3]) is nn.Linear


def test_a_layer_that_is_not_there_cannot_be_kept() -> None:
    model = nn.ModuleDict({"expand": nn.Linear(2, 2)})
    with pytest.raises(UsageError, match="keep: no layer is named 'expend' .did you mean 'expand'"):
        attach(model, W4, frozenset({"expend"}))
    assert type(model["expand"]) is nn.Linear


def test_batch_normalisation_has_to_be_folded_first() -> None:
    with pytest.raises(UsageError, match="batch normalisation cannot be quantized .call fold_batchnorm"):
        attach(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), W4)


def test_quantizers_are_not_attached_twice() -> None:
    with pytest.raises(UsageError, match="has quantizers already"):
        attach(attach(net(), W4), W4)


def test_a_copy_is_independent() -> None:
    model = attach(net(), W4)
    twin = copy.deepcopy(model)
    detach(twin)
    assert len(layers_of(model)) == 2 and torch.equal(twin(X), net()(X))


def test_a_state_is_put_back_with_its_scales() -> None:
    model, other = observed(attach(net(), W8A8)), attach(net(), W8A8)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), model(X))


def test_a_layer_that_saw_nothing_is_named() -> None:
    model = attach(net(), W8A8)
    with pytest.raises(UsageError, match="no activations of 0 were observed"), observe(model):
        model[3](torch.ones(1, 288))
    with pytest.raises(UsageError, match="no activations of 0 were observed"):
        learned_scales(model)


def test_frozen_scales_get_no_gradient() -> None:
    model = observed(attach(net(), W8A8))
    freeze(model)
    model(X).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_scales_are_read_by_layer() -> None:
    scales = learned_scales(observed(attach(net(), Scheme("w8a8", group=9))))
    assert list(scales) == ["0", "3"]
    assert scales["0"].weight_scale.shape == (8, 3) and scales["0"].bits == 8
    assert scales["3"].activation_scale is not None and scales["3"].zero_point == 0  # behind a ReLU


def test_scales_of_weights_alone_say_nothing_of_activations() -> None:
    one = learned_scales(attach(net(), W4))["3"]
    assert one.bits == 4 and one.activation_scale is None and one.zero_point is None


def test_training_moves_weights_and_scales() -> None:
    model = attach(net(), W4)
    before = learned(model, W4).layers["0"].weight_scale.copy()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    target = net()(X).detach()
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (model(X) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert not np.array_equal(learned(model, W4).layers["0"].weight_scale, before)
