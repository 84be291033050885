"""How good a model is: zero-shot top-1, and recall of images by captions and of captions by images, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeclip.errors import UsageError
from edgeclip.manifest import Preprocess
from edgeclip.train.checkpoints import build, read_checkpoint
from edgeclip.train.data.augment import normalise
from edgeclip.train.data.testset import TestSet, list_test_sets, read_test_set
from edgeclip.train.data.text import Texts, open_tokenizer
from edgeclip.train.models.clip import Clip

BATCH = 256
RANKS = (1, 5, 10)
_Z95 = 1.959964


@dataclass(frozen=True)
class Score:
    """One measured share, with the interval that holds the true one in 95 of 100 cases."""

    data: str
    metric: str
    """`top1`, `image_to_text_r1` (a caption of the image is found first), `text_to_image_r1`, …"""
    value: float
    low: float
    high: float
    n: int
    """Images that were tested."""


@dataclass
class Evaluator:
    """The test sets of a folder, decoded once."""

    folder: Path
    preprocess: Preprocess
    texts: Texts
    sets: Sequence[str] = ()
    limit: int = 0
    """Images of each set; 0: all."""
    _read: dict[str, TestSet] = field(default_factory=dict)

    def __call__(self, clip: Clip) -> list[Score]:
        """Scores of a model, which is put into evaluation mode meanwhile.

        Raises:
            DataError: a test set is missing or damaged.
            UsageError: there is no set of a name.
        """
        with evaluating(clip):
            return [score for name in self._names() for score in self._score(clip, self._open(name))]

    def _names(self) -> list[str]:
        known = list_test_sets(self.folder)
        for name in self.sets:
            if name not in known:
                raise UsageError(f"no test set {name!r} in {self.folder}", hint=f"known: {', '.join(known)}")
        return list(self.sets) or known

    def _open(self, name: str) -> TestSet:
        if name not in self._read:
            self._read[name] = read_test_set(self.folder / name, self.preprocess, limit=self.limit)
        return self._read[name]

    def _score(self, clip: Clip, data: TestSet) -> list[Score]:
        images = embed_images(clip, data, self.preprocess)
        if data.labels is None:
            return retrieval(data.name, images, *self._embed_captions(clip, data))
        weights = classifier(clip, self.texts, data.classes, data.templates)
        labels = torch.from_numpy(data.labels).to(images.device)
        right = (images @ weights.T).argmax(1) == labels
        return [score(data.name, "top1", float(right.float().mean()), len(images))]

    def _embed_captions(self, clip: Clip, data: TestSet) -> tuple[Tensor, Tensor]:
        """[M, D] of all captions, and int64 [M], the image of each."""
        captions = [caption for of_image in data.captions for caption in of_image]
        owners = [i for i, of_image in enumerate(data.captions) for _ in of_image]
        embedded = embed_texts(clip, self.texts, captions)
        return embedded, torch.tensor(owners, device=embedded.device)


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


def embed_images(clip: Clip, data: TestSet, preprocess: Preprocess) -> Tensor:
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


def classifier(clip: Clip, texts: Texts, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """float32 [classes, D]: the mean of each class's prompts. Source: arXiv 2103.00020 §3.1.4."""
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    embedded = embed_texts(clip, texts, prompts).view(len(classes), len(templates), -1)
    return F.normalize(embedded.mean(1), dim=-1)


def retrieval(name: str, images: Tensor, captions: Tensor, owners: Tensor) -> list[Score]:
    """Recall at 1, 5 and 10 both ways.

    Args:
        images: [N, D]; captions: [M, D].
        owners: int64 [M], the image that each caption belongs to.
    """
    similarity = images @ captions.T
    mine = owners[None, :] == torch.arange(len(images), device=owners.device)[:, None]  # [N, M]
    best_caption = torch.where(mine, similarity, -torch.inf).amax(1, keepdim=True)
    to_text = ((similarity > best_caption) & ~mine).sum(1)  # how many captions of others come before
    own_image = similarity.gather(0, owners[None, :])
    to_image = (similarity > own_image).sum(0)
    found = [("image_to_text", to_text), ("text_to_image", to_image)]
    return [
        score(name, f"{way}_r{rank}", float((before < rank).float().mean()), len(images))
        for way, before in found
        for rank in RANKS
    ]


def score(data: str, metric: str, value: float, n: int) -> Score:
    """A share of n with Wilson's interval. Captions of one image are not independent: n is the number of images.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    spread = _Z95**2 / n
    centre = (value + spread / 2) / (1 + spread)
    half = math.sqrt(value * (1 - value) * spread + spread**2 / 4) / (1 + spread)
    return Score(data, metric, value, max(0.0, centre - half), min(1.0, centre + half), n)
