"""Memory of one tensor, twice: in pinned memory of the host, and on the GPU."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
from cuda.bindings import runtime

from edgeclip.backends.base import Array
from edgeclip.backends.cuda import check


class Mirror:
    """Room for the largest shape of a tensor, at addresses that never change. Of the thread's current GPU."""

    def __init__(self, largest: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._host = self.device = 0
        size = math.prod(largest) * dtype.itemsize
        try:
            self._host = int(check(runtime.cudaMallocHost(size)))
            self.device = int(check(runtime.cudaMalloc(size)))
        except BaseException:
            self.free()
            raise
        self._bytes = memoryview((ctypes.c_uint8 * size).from_address(self._host))

    def host(self, shape: tuple[int, ...]) -> Array:
        """The host's memory, seen as a tensor of this shape; valid until `free`."""
        flat: Array = np.frombuffer(self._bytes, self._dtype, math.prod(shape))
        return flat.reshape(shape)

    def upload(self, shape: tuple[int, ...], stream: Any) -> None:
        """Copy a tensor of this shape to the GPU, in the stream's order."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(runtime.cudaMemcpyAsync(self.device, self._host, self._size(shape), kind, stream))

    def download(self, shape: tuple[int, ...], stream: Any) -> None:
        """Copy a tensor of this shape from the GPU, in the stream's order."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(runtime.cudaMemcpyAsync(self._host, self.device, self._size(shape), kind, stream))

    def free(self) -> None:
        """Give the memory back. A second call does nothing."""
        host, self._host = self._host, 0
        device, self.device = self.device, 0
        if host:
            runtime.cudaFreeHost(host)
        if device:
            runtime.cudaFree(device)

    def _size(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self._dtype.itemsize
