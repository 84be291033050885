"""Quantization-aware training: the model computes with rounded weights and activations, and learns to live with it.

    checkpoint → fold → attach quantizers → observe activations → train weights and scales → train weights alone

Source: arXiv 1712.05877 §3, here with batch normalisation folded from the beginning and with learned scales. The loss
is the recipe's, as a rule against the model before, as in arXiv 1802.05668 §3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import msgspec

from edgeclip.errors import UsageError
from edgeclip.quantize.fakequant import Scheme, activation_quantizers, attach, detach, learned, observe, round_weights
from edgeclip.quantize.scales import Learned
from edgeclip.train.data.batch import Batch
from edgeclip.train.evaluate import evaluating
from edgeclip.train.models.clip import Clip
from edgeclip.train.models.config import ClipConfig
from edgeclip.train.models.folding import Foldable, fold_in_place
from edgeclip.train.recipe import Quantize

Encode = Callable[[Batch], object]


def prepare(clip: Clip, config: ClipConfig, settings: Quantize) -> Clip:
    """A trained model with quantizers, in place. Activations are still to be observed.

    Args:
        clip: in evaluation mode, folded or not.
        config: what the recipe calls for.

    Raises:
        UsageError: the model is of another architecture, or a layer to keep does not exist.
    """
    folds = any(isinstance(module, Foldable) for module in clip.modules())
    folded = msgspec.structs.replace(clip.config, folded=folds)
    if folded != msgspec.structs.replace(config, folded=folds):
        raise UsageError(
            f"[quantize]: init_from is a {clip.config.name}, not a {config.name}",
            hint="set model.architecture to that of the checkpoint",
        )
    fold_in_place(clip)
    clip.config = folded
    return attach(clip, scheme(settings), frozenset(settings.keep))


def initialise(clip: Clip, batches: Iterable[Batch], encode: Encode) -> None:
    """Measure the ranges of activations, where they are rounded, while `encode` shows batches to the model."""
    if not activation_quantizers(clip):
        return
    with evaluating(clip), observe(clip):
        for batch in batches:
            encode(batch)


def split(clip: Clip, settings: Quantize) -> tuple[Clip, Learned]:
    """The model without its quantizers, its weights rounded, and their scales. The model itself is not changed."""
    scales = learned(clip, scheme(settings))
    return detach(round_weights(copy.deepcopy(clip))), scales


def scheme(settings: Quantize) -> Scheme:
    """What a recipe asks for."""
    return Scheme(settings.precision, settings.group, settings.symmetric)
