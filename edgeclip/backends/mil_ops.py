"""The operations of ML programs that are carried out here, by name. What is not in this table is refused at load."""

from __future__ import annotations

from edgeclip.backends import mil_constexpr, mil_elementwise, mil_linear, mil_reduction, mil_shapes
from edgeclip.backends.mil_elementwise import Kernel

KERNELS: dict[str, Kernel] = {
    **mil_elementwise.KERNELS,
    **mil_linear.KERNELS,
    **mil_reduction.KERNELS,
    **mil_shapes.KERNELS,
    **mil_constexpr.KERNELS,
}
"""Each takes the operation's inputs by their names in MIL, and returns its output or outputs."""
SEVERAL = frozenset({"concat", "stack", "einsum"})
"""Operations whose `values` are any number of arrays."""
PICKING = frozenset(mil_shapes.KERNELS) | {
    "abs",
    "identity",
    "max_pool",
    "maximum",
    "minimum",
    "reduce_max",
    "reduce_min",
    "relu",
    "select",
}
"""Operations that return values they were given, so that no result is between two numbers of its type."""
