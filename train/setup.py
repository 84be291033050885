"""From a recipe to what training needs: data, tokenizer, model, teachers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

from edgeclip.errors import UsageError
from edgeclip.manifest import Preprocess
from edgeclip.train.checkpoints import build, read_checkpoint
from edgeclip.train.data.batch import TeacherStore
from edgeclip.train.data.cached import CachedData, load_cached
from edgeclip.train.data.captions import every_text
from edgeclip.train.data.loader import CachedLoader, Loader, Share, Views
from edgeclip.train.data.sample import Shard
from edgeclip.train.data.sources import open_shards
from edgeclip.train.data.stream import StreamLoader
from edgeclip.train.data.text import Texts, open_tokenizer
from edgeclip.train.distributed import World
from edgeclip.train.models.clip import Clip
from edgeclip.train.models.config import ClipConfig, load_config
from edgeclip.train.models.layers import Transformer
from edgeclip.train.models.repvgg import AveragePool
from edgeclip.train.recipe import Distill, Recipe, resolve

if TYPE_CHECKING:
    from edgeclip.train.checkpoints import Checkpoint
    from edgeclip.train.distill import Distiller
    from edgeclip.train.teachers import Teachers

Begin = Callable[[str], None]
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    clip: Clip
    preprocess: Preprocess
    tokenizer: bytes
    texts: Texts
    loader: Loader
    teachers: Teachers | None = None
    distiller: Distiller | None = None


def assemble(recipe: Recipe, folder: Path, world: World, begin: Begin) -> Parts:
    """Read, decode, build.

    Args:
        folder: the run's, where a tokenizer may lie since an earlier start.
        begin: called with the name of each stage.

    Raises:
        EdgeClipError: as the parts do.
    """
    torch.manual_seed(recipe.seed)
    begin("finding the data")
    shards = open_shards(recipe.data.sources, resolve(recipe.data.root), limit=recipe.data.limit)
    config = read_config(recipe.model.architecture)
    start = read_checkpoint(str(resolve(recipe.model.init_from))) if recipe.model.init_from else None
    data = None if recipe.data.cache == "none" else decode(recipe, shards, world, begin)
    begin("making the tokenizer")
    tokenizer = find_tokenizer(recipe, folder, config, start, data)
    texts = Texts(open_tokenizer(tokenizer, config.text, recipe.model.tokenizer or TOKENIZER))
    begin("building the model")
    clip = build_model(recipe, config, start)
    preprocess = Preprocess(size=config.image_size, mean=recipe.model.mean, std=recipe.model.std)
    stores, teachers, distiller = _taught(recipe, clip, world, begin)
    views = Views(recipe, texts, stores)
    share = Share(world.rank, world.ranks)
    loader: Loader = StreamLoader(shards, views, share) if data is None else CachedLoader(data, views, share)
    return Parts(clip, preprocess, tokenizer, texts, loader, teachers, distiller)


def read_config(architecture: str) -> ClipConfig:
    """A known configuration, or a JSON file.

    Raises:
        UsageError: there is none of the name, or the file is no configuration.
    """
    if not architecture.endswith(".json"):
        return load_config(architecture)
    try:
        return msgspec.json.decode(resolve(architecture).read_bytes(), type=ClipConfig)
    except (OSError, msgspec.MsgspecError, ValueError) as exc:
        raise UsageError(f"{architecture}: not a model's configuration: {exc}") from exc


def decode(recipe: Recipe, shards: Sequence[Shard], world: World, begin: Begin) -> CachedData:
    """All images as pixels, in memory or on the disk."""
    folder = None
    if recipe.data.cache == "disk":
        folder = resolve(recipe.data.cache_dir) if recipe.data.cache_dir else Path(recipe.output) / "cache"
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        begin(f"decoding images: {done}")

    return load_cached(shards, recipe.data.size, max_bad=recipe.data.max_bad, folder=folder, progress=progress)


def find_tokenizer(
    recipe: Recipe, folder: Path, config: ClipConfig, start: Checkpoint | None, data: CachedData | None
) -> bytes:
    """The bytes of a `tokenizer.json`: the recipe's, this run's own of before, that of `init_from`, or a new one.

    Raises:
        UsageError: it cannot be read, or there is nothing to make one from.
    """
    named = resolve(recipe.model.tokenizer) if recipe.model.tokenizer else folder / TOKENIZER
    if recipe.model.tokenizer or named.is_file():
        try:
            return named.read_bytes()
        except OSError as exc:
            raise UsageError(f"{named}: cannot be read: {exc.strerror}") from exc
    if start is not None and start.tokenizer is not None and start.tokenizer.is_file():
        return start.tokenizer.read_bytes()
    if data is None:
        raise UsageError(
            "a tokenizer can be made only from data that is decoded beforehand", hint="set model.tokenizer to a file"
        )
    from edgeclip.train.vocabulary import train_bpe

    return train_bpe(every_text(data.samples, recipe.data.templates), config.text.vocab_size)


def build_model(recipe: Recipe, config: ClipConfig, start: Checkpoint | None) -> Clip:
    """New weights, or those of a checkpoint: all where it is of the same sizes, else as many as fit.

    Raises:
        UsageError: the recipe asks for what the architecture or the checkpoint does not allow.
    """
    if recipe.quantize is not None:
        from edgeclip.train.qat import prepare

        assert start is not None  # a recipe with [quantize] has `init_from`
        clip = prepare(build(start), config, recipe.quantize)
    elif start is not None and start.config.folded:
        raise UsageError(
            f"{recipe.model.init_from}: its batch normalisation is folded away",
            hint="only [quantize] goes on from such a checkpoint; take the one before",
        )
    elif start is None:
        clip = Clip(config)
    elif start.config == config:
        clip = build(start)
    else:
        from edgeclip.train.inherit import inherit

        clip = inherit(build(start), config)
    if recipe.loop.sides and not isinstance(getattr(clip.image, "pool", None), AveragePool):
        raise UsageError(
            f"loop.sides: the image tower of {config.name} takes images of one size only",
            hint="leave it out, or take an architecture with average pooling",
        )
    if recipe.model.matryoshka and recipe.model.matryoshka[-1] >= config.embed_dim:
        raise UsageError(
            f"model.matryoshka: {recipe.model.matryoshka[-1]} of the {config.embed_dim} coordinates of {config.name}",
            hint="all together are always trained: name smaller numbers",
        )
    for module in clip.modules():
        if isinstance(module, Transformer):
            module.checkpointing = recipe.loop.checkpointing
    return clip.train()


def _taught(
    recipe: Recipe, clip: Clip, world: World, begin: Begin
) -> tuple[list[TeacherStore], Teachers | None, Distiller | None]:
    """Stores of embeddings, teachers that run, and what compares the student with them."""
    if recipe.distill is None:
        return [], None, None
    begin("reading the teachers")
    from edgeclip.train.teachers import open_teachers

    teachers = open_teachers(recipe, world)
    return list(teachers.stores), teachers, _distiller(recipe, recipe.distill, clip, teachers)


def _distiller(recipe: Recipe, settings: Distill, clip: Clip, teachers: Teachers) -> Distiller:
    from edgeclip.train.distill import Distiller

    weights: dict[str, float] = {name: weight for name, weight in settings.weights.items() if weight}
    widths = recipe.model.matryoshka
    return Distiller(clip, teachers.dims, weights, temperature=settings.temperature, widths=widths)
