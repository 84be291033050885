"""AdamW as CLIP is trained with, its schedule, and the average of weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edgeclip.train.recipe import Optimizer

MAX_LOGIT_SCALE = math.log(100.0)
"""Source: arXiv 2103.00020 §2.5."""


def adamw(modules: list[nn.Module], settings: Optimizer) -> torch.optim.AdamW:
    """Weight decay on matrices and kernels alone. Source: arXiv 2103.00020 §2.5."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )


def learning_rate(step: int, steps: int, settings: Optimizer) -> float:
    """Of the step with this number, from 0: linear warm-up, then half a cosine. Source: arXiv 1608.03983."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    floor = settings.lr * settings.final_lr
    return floor + (settings.lr - floor) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def clamp_scale(logit_scale: Tensor) -> None:
    """Keep exp(t) at 100 or less."""
    logit_scale.clamp_(max=MAX_LOGIT_SCALE)


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights; buffers are the model's own."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


@torch.no_grad()
def estimate_statistics(model: nn.Module, run: Callable[[], None]) -> None:
    """Replace the running statistics of batch normalisation by the plain mean over what `run` shows the model.

    Source: arXiv 2105.07576 §3; that training and test views differ in their statistics, arXiv 1906.06423.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    was = model.training
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    model.train()
    run()
    model.train(was)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


@torch.no_grad()
def take_statistics(average: nn.Module, model: nn.Module) -> None:
    """Give an averaged model the running statistics of the model itself."""
    for ours, theirs in zip(average.buffers(), model.buffers(), strict=True):
        ours.copy_(theirs)
