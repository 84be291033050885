"""The parts that both towers are made of, written so that they train fast and export to every engine.

Numbers that overflow half precision are kept away from it: LayerNorm and softmax always compute in float32, and the
causal mask is a finite number that half precision holds.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgeclip.errors import UsageError
from edgeclip.train.models.config import Activation

MASKED = -10000.0
"""What is added to the score of a key that must not be seen: exp() of it is 0, and float16 holds it."""


class LayerNorm(nn.LayerNorm):
    """LayerNorm that computes in float32 and returns the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] to [..., W], same dtype."""
        return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)


class QuickGelu(nn.Module):
    """x · sigmoid(1.702 x), the approximation that OpenAI's weights were trained with. Source: arXiv 1606.08415."""

    def forward(self, x: Tensor) -> Tensor:
        """[...] to [...]."""
        return x * torch.sigmoid(1.702 * x)


def activation_layer(activation: Activation) -> nn.Module:
    """The module of an activation's name."""
    return QuickGelu() if activation == "quick_gelu" else nn.GELU()


class Attention(nn.Module):
    """Multi-head attention of some rows (queries) over all rows (keys and values)."""

    def __init__(self, width: int, heads: int, out_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.explicit = False
        """Always compute as matrix products and softmax, as an export does, rather than by the fused kernel."""
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, out_width or width)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """Queries from `x` [B, M, W], keys and values from `source` [B, N, W]; returns [B, M, out_width].

        `mask` is added to the scores; its shape broadcasts to [B, heads, M, N].
        """
        query, key, value = self._split(self.query(x)), self._split(self.key(source)), self._split(self.value(source))
        explicit = self.explicit or torch.compiler.is_exporting()
        mixed = (attend if explicit else attend_fused)(query, key, value, mask)  # [B, heads, M, W / heads]
        return cast("Tensor", self.out(mixed.transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor) -> Tensor:
        """[B, M, W] to [B, heads, M, W / heads]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q Kᵀ / √d + mask) V in plain operators, the softmax in float32. Source: arXiv 1706.03762.

    The queries are scaled before the product, so that large scores do not overflow in half precision.
    """
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores + mask
    return torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)


def attend_fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The same by PyTorch's fused kernel, which is faster but exports badly."""
    return F.scaled_dot_product_attention(query, key, value, None if mask is None else mask.to(query.dtype))


class Mlp(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, width: int, mlp_width: int, activation: Activation) -> None:
        super().__init__()
        self.expand = nn.Linear(width, mlp_width)
        self.activation = activation_layer(activation)
        self.contract = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] to [..., W]."""
        return cast("Tensor", self.contract(self.activation(self.expand(x))))


class Block(nn.Module):
    """A pre-norm residual block: attention, then MLP."""

    def __init__(self, width: int, heads: int, mlp_width: int, activation: Activation, eps: float) -> None:
        super().__init__()
        self.norm_attention = LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads)
        self.norm_mlp = LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, mlp_width, activation)

    def forward(self, x: Tensor, source: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Update the rows `x` [B, M, W], which attend to `source` [B, N, W] or, without it, to each other."""
        query = self.norm_attention(x)
        x = x + self.attention(query, query if source is None else self.norm_attention(source), mask)
        return cast("Tensor", x + self.mlp(self.norm_mlp(x)))


class Transformer(nn.Module):
    """A stack of blocks that returns one position of each row.

    The last block computes queries and MLP for that position only: nothing reads its other positions, so that the
    result is the same for less work.
    """

    def __init__(self, width: int, layers: int, heads: int, mlp_width: int, activation: Activation, eps: float) -> None:
        super().__init__()
        self.width = width
        self.checkpointing = False
        """Recompute activations in the backward pass instead of keeping them."""
        self.blocks = nn.ModuleList(Block(width, heads, mlp_width, activation, eps) for _ in range(layers))

    def forward(self, x: Tensor, at: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """[B, N, W] to [B, W].

        Args:
            at: [B] int64, the position of each row to return; None means position 0.
            mask: [N, N] float, added to the scores of query (first axis) and key.
        """
        for block in list(self.blocks)[:-1]:
            x = self._run(block, x, None, mask)
        row = None if mask is None or at is None else mask[at][:, None, None, :]  # [B, 1, 1, N]
        return self._run(self.blocks[-1], pick(x, at), x, row).squeeze(1)

    def _run(self, block: nn.Module, *args: Tensor | None) -> Tensor:
        if self.checkpointing and self.training:
            return cast("Tensor", checkpoint(block, *args, use_reentrant=False))
        return cast("Tensor", block(*args))

    def reset_parameters(self) -> None:
        """Draw new weights: the residual branches shrink with depth. Source: github.com/openai/CLIP."""
        std = self.width**-0.5
        shrunk = std * (2 * len(self.blocks)) ** -0.5
        for block in self.blocks:
            for name, weight in block.named_parameters():
                if name.endswith(("out.weight", "contract.weight")):
                    nn.init.normal_(weight, std=shrunk)
                elif name.endswith("expand.weight"):
                    nn.init.normal_(weight, std=(2 * self.width) ** -0.5)
                elif name.endswith(("query.weight", "key.weight", "value.weight")):
                    nn.init.normal_(weight, std=std)
                elif name.startswith(("attention", "mlp")):
                    nn.init.zeros_(weight)


def pick(x: Tensor, at: Tensor | None) -> Tensor:
    """One position of each row: [B, N, W] and [B] to [B, 1, W]; without `at`, position 0."""
    if at is None:
        return x[:, :1]
    return x[torch.arange(x.shape[0], device=x.device), at].unsqueeze(1)


def causal_mask(length: int) -> Tensor:
    """[length, length] float32: 0 where a query (first axis) may see a key, `MASKED` where the key comes later."""
    return torch.full((length, length), MASKED).triu(1)


def to_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose weights are of `dtype`, but for LayerNorm's parameters and the logit scale, which stay float32.

    Raises:
        UsageError: there is batch normalisation, which half precision needs folded.
    """
    module = copy.deepcopy(module)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            raise UsageError("batch normalisation cannot be converted", hint="call fold_batchnorm() first")
        for name, parameter in child.named_parameters(recurse=False):
            if not isinstance(child, LayerNorm) and name != "logit_scale":
                parameter.data = parameter.data.to(dtype)
    return module
