"""Several processes as one: who we are, and the few collective operations that training needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edgeclip.errors import TargetUnavailableError, UsageError

_BUCKET = 25 << 20
"""Bytes of gradients that go at a time."""


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    ranks: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and reports."""
        return self.rank == 0


@contextmanager
def join(device: str) -> Iterator[World]:
    """Meet the other processes that `torchrun` has started; alone without it.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        TargetUnavailableError: `cuda` is asked for, and there is none.
    """
    chosen = _device(device)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


def _device(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise TargetUnavailableError("no CUDA device is available to PyTorch", hint="loop.device=cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def split(batch_size: int, world: World) -> int:
    """Pairs of a batch that are a rank's.

    Raises:
        UsageError: the ranks do not divide the batch.
    """
    if batch_size % world.ranks:
        raise UsageError(f"{world.ranks} ranks do not divide loop.batch_size = {batch_size}")
    return batch_size // world.ranks


def gather(tensor: Tensor, world: World) -> Tensor:
    """[B, …] of each rank to [ranks · B, …], in the order of ranks. No gradient passes."""
    if world.ranks == 1:
        return tensor
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(world.ranks)]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def own(world: World, size: int) -> slice:
    """This rank's rows of what was gathered from parts of `size` rows."""
    return slice(world.rank * size, (world.rank + 1) * size)


def sum_over_ranks(tensors: Iterable[Tensor | None], world: World) -> None:
    """Add each tensor over the ranks, in place, many at a time."""
    if world.ranks == 1:
        return
    for bucket in _buckets([tensor for tensor in tensors if tensor is not None]):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype, up to some size."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(t.nbytes for t in bucket) + tensor.nbytes
        if bucket and (tensor.dtype != bucket[0].dtype or size > _BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@torch.no_grad()
def same_everywhere(module: nn.Module, world: World) -> None:
    """Give every rank the first one's weights, and all of them the mean of their running statistics."""
    if world.ranks == 1:
        return
    whole = [buffer for buffer in module.buffers() if not buffer.is_floating_point()]
    for tensor in (*(parameter.data for parameter in module.parameters()), *whole):
        dist.broadcast(tensor, 0)
    mean_statistics(module, world)


@torch.no_grad()
def mean_statistics(module: nn.Module, world: World) -> None:
    """Batch normalisation sees a rank's own pairs: what it has learned of them is averaged."""
    floating = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    sum_over_ranks(floating, world)
    for buffer in floating if world.ranks > 1 else ():
        buffer.div_(world.ranks)


def wait(world: World) -> None:
    """Until all ranks are here."""
    if world.ranks > 1:
        dist.barrier()
