"""How good a model is: embeds test sets in PyTorch; what is made of the embeddings is `edgeclip.scores`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeclip import scores, zeroshot
from edgeclip.backends.base import Embeddings
from edgeclip.errors import UsageError
from edgeclip.manifest import Preprocess
from edgeclip.scores import Score
from edgeclip.testset import Decoded, choose_test_sets, read_test_set
from edgeclip.train.checkpoints import build, read_checkpoint
from edgeclip.train.data.augment import normalise
from edgeclip.train.data.text import Texts, open_tokenizer
from edgeclip.train.models.clip import Clip

__all__ = ["Evaluator", "Score", "evaluate_checkpoint"]

BATCH = 256


@dataclass
class Evaluator:
    """The test sets of a folder, decoded once."""

    folder: Path
    preprocess: Preprocess
    texts: Texts
    sets: Sequence[str] = ()
    limit: int = 0
    """Images of each set; 0: all."""
    _read: dict[str, Decoded] = field(default_factory=dict)

    def __call__(self, clip: Clip) -> list[Score]:
        """Scores of a model, which is put into evaluation mode meanwhile.

        Raises:
            DataError: a test set is missing or damaged.
            UsageError: there is no set of a name.
        """
        names = choose_test_sets(self.folder, self.sets)
        with evaluating(clip):
            return [score for name in names for score in self._score(clip, self._open(name))]

    def _open(self, name: str) -> Decoded:
        if name not in self._read:
            self._read[name] = read_test_set(self.folder / name, self.preprocess, limit=self.limit)
        return self._read[name]

    def _score(self, clip: Clip, data: Decoded) -> list[Score]:
        images = _array(embed_images(clip, data, self.preprocess))
        if data.labels is None:
            captions = [caption for of_image in data.captions for caption in of_image]
            owners = np.repeat(np.arange(len(images)), [len(of_image) for of_image in data.captions])
            return scores.retrieval(data.name, images, _array(embed_texts(clip, self.texts, captions)), owners)
        prompts = zeroshot.prompts(data.classes, data.templates, repeats=True)
        weights = zeroshot.ensemble(_array(embed_texts(clip, self.texts, prompts)), len(data.classes))
        return [scores.top1(data.name, images, weights, data.labels)]


def evaluate_checkpoint(
    path: str | Path, folder: str | Path, sets: Sequence[str] = (), *, limit: int = 0
) -> list[Score]:
    """Scores of a checkpoint that brings its tokenizer.

    Raises:
        CheckpointError: it cannot be read.
        UsageError: it has no `tokenizer.json`.
        DataError: a test set is missing or damaged.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.tokenizer is None or not checkpoint.tokenizer.is_file():
        raise UsageError(f"{path}: the checkpoint brings no tokenizer.json", hint="put it into its folder")
    tokenizer = open_tokenizer(checkpoint.tokenizer.read_bytes(), checkpoint.config.text, path)
    return Evaluator(Path(folder), checkpoint.preprocess, Texts(tokenizer), sets, limit)(build(checkpoint))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients."""
    was = module.training
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        module.train(was)


def embed_images(clip: Clip, data: Decoded, preprocess: Preprocess) -> Tensor:
    """float32 [N, D], L2-normalised."""
    device = clip.logit_scale.device
    parts = []
    for start in range(0, len(data.pixels), BATCH):
        pixels = torch.from_numpy(data.pixels[start : start + BATCH]).to(device).permute(0, 3, 1, 2).float()
        parts.append(F.normalize(clip.encode_image(normalise(pixels, preprocess)).float(), dim=-1))
    return torch.cat(parts)


def embed_texts(clip: Clip, texts: Texts, captions: Sequence[str]) -> Tensor:
    """float32 [M, D], L2-normalised."""
    device = clip.logit_scale.device
    parts = [
        F.normalize(clip.encode_text(texts(captions[start : start + BATCH]).to(device)).float(), dim=-1)
        for start in range(0, len(captions), BATCH)
    ]
    return torch.cat(parts)


def _array(embedded: Tensor) -> Embeddings:
    array: Embeddings = embedded.cpu().numpy()
    return array
