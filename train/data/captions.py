"""Which text goes with an image, and when two pairs say the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeclip.train.data.batch import Seeds
from edgeclip.train.data.sample import Sample
from edgeclip.train.data.seeds import key_id, uniform
from edgeclip.train.recipe import Data

_STREAM = 2


def choose_all(samples: Sequence[Sample], seeds: Seeds, data: Data) -> list[str]:
    """A text for each sample's view: one of its captions, or a template filled with one of its names."""
    draws = uniform(seeds, 2, _STREAM) if data.captions == "random" else np.zeros((len(samples), 2))
    return [choose(sample, data.templates, *draw) for sample, draw in zip(samples, draws.tolist(), strict=True)]


def choose(sample: Sample, templates: Sequence[str], which: float, how: float) -> str:
    """One text; both numbers are in [0, 1)."""
    if sample.captions:
        return _at(sample.captions, which)
    return _at(templates, how).replace("{}", _at(sample.names, which))


def caption_keys(samples: Sequence[Sample], texts: Sequence[str]) -> NDArray[np.int64]:
    """int64 [B], equal where two pairs have the same class or, without one, the same caption.

    A class is known by its first name, so that synonyms match, and a caption that is just that name does too.
    """
    said = [sample.names[0] if sample.names else text for sample, text in zip(samples, texts, strict=True)]
    return np.array([key_id(text.casefold().strip(" .")) for text in said], np.uint64).view(np.int64)


def every_text(samples: Sequence[Sample], templates: Sequence[str]) -> list[str]:
    """All texts that `choose` may give, each once, sorted: what a vocabulary is made from."""
    captions = {text for sample in samples for text in sample.captions}
    names = {name for sample in samples if not sample.captions for name in sample.names}
    return sorted(captions | {template.replace("{}", name) for name in names for template in templates})


def _at(options: Sequence[str], u: float) -> str:
    return options[int(u * len(options))]
