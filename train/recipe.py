"""Recipes: what a training run is, as TOML, decoded strictly into typed structs.

An unknown key is refused with its table and the nearest known one; a value may be overridden as `table.key=value`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edgeclip.errors import UsageError
from edgeclip.manifest import Rgb
from edgeclip.strict import in_toml, override, read_toml, refuse_unknown
from edgeclip.templates import bare

RECIPES = Path(__file__).parent / "recipes"

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Count = Annotated[int, Meta(ge=1, le=1 << 31)]
Natural = Annotated[int, Meta(ge=0, le=1 << 31)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0, le=1e6)]
NonNegative = Annotated[float, Meta(ge=0.0, le=1e6)]
Side = Annotated[int, Meta(ge=8, le=1024)]
Range = tuple[Positive, Positive]
Term = Literal["affinity", "feature", "cosine", "interactive", "relational", "soft", "ensemble"]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every table of a recipe."""


class Shards(Table, frozen=True, tag="shards", tag_field="kind"):
    """WebDataset tars: each sample is KEY.jpg, png or webp with KEY.json (captions, caption or names) or KEY.txt."""

    urls: Annotated[tuple[Name, ...], Meta(min_length=1)]
    """Paths below `data.root`, with `*` and `{000..127}`; or `pipe:COMMAND`, whose output is the tar."""
    repeat: Positive = 1.0
    """How often an epoch visits each sample. Of a fraction, a different part comes each epoch."""


class Rows(Table, frozen=True, tag="rows", tag_field="kind"):
    """A CSV or Parquet file with one image path and one caption a row."""

    file: Name
    image: Name = "image"
    """The column of paths, relative to the file."""
    caption: Name = "caption"
    repeat: Positive = 1.0


class Folders(Table, frozen=True, tag="folders", tag_field="kind"):
    """A directory with one directory of images for each class, named as the class; `_` stands for a space."""

    folder: Name
    repeat: Positive = 1.0


Source = Shards | Rows | Folders


class Model(Table, frozen=True):
    """What is trained."""

    architecture: Name
    """A known configuration, or a JSON file with one."""
    tokenizer: str = ""
    """A `tokenizer.json`; by default that of `init_from` or, without it, one that is made from the data's captions."""
    init_from: str = ""
    """A checkpoint whose weights the model starts with, as many as fit where it is larger."""
    mean: Rgb = (0.48145466, 0.4578275, 0.40821073)
    """Of the pixels, scaled to [0, 1]. Source: openai/CLIP, clip/clip.py."""
    std: Rgb = (0.26862954, 0.26130258, 0.27577711)
    matryoshka: tuple[Count, ...] = ()
    """How many of the first coordinates are to be an embedding of their own, as `[32, 64, 128]`: losses are computed at
    each of these widths, too. Source: arXiv 2205.13147."""
    licence: str = ""
    """Of the weights; written into the checkpoint."""

    def __post_init__(self) -> None:
        if list(self.matryoshka) != sorted(set(self.matryoshka)):
            raise ValueError(f"matryoshka must ascend, got {list(self.matryoshka)}")


class Data(Table, frozen=True):
    """What it is trained on."""

    sources: Annotated[tuple[Source, ...], Meta(min_length=1)]
    root: str = ""
    """Where relative paths begin: the recipe's folder by default. `$NAME` is taken from the environment."""
    about: str = ""
    """What is said of the data in the checkpoint and in bundles made of it."""
    size: Side = 72
    """Side of the square that an image is decoded to, before augmentation crops it."""
    cache: Literal["memory", "disk", "none"] = "memory"
    """Decode once and keep the pixels, or stream from the shards."""
    cache_dir: str = ""
    """Of the disk cache; a folder beside the run's output by default."""
    captions: Literal["random", "first"] = "random"
    """Which of several captions, names and templates a view has."""
    templates: Annotated[tuple[Name, ...], Meta(min_length=1)] = bare
    """Prompts for class names; `{}` is the name's place."""
    max_bad: Fraction = 0.01
    """Samples, or shards, that may be damaged before training stops."""
    limit: Natural = 0
    """Use only so many samples of each source; 0: all."""
    workers: Natural = 2
    """Processes that read and decode when streaming."""
    shuffle: Count = 4096
    """Samples among which a streaming worker draws."""


class Augment(Table, frozen=True):
    """How a view differs from its image."""

    scale: Range = (0.6, 1.0)
    """Area of the random crop, as a part of the image."""
    ratio: Range = (0.8, 1.25)
    """Width over height of the crop."""
    flip: Fraction = 0.5
    """Probability of a mirrored image."""
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    """Factors are drawn from [1 - x, 1 + x]."""

    def __post_init__(self) -> None:
        if self.scale[0] > self.scale[1] or self.scale[1] > 1.0:
            raise ValueError(f"scale must rise within (0, 1], got {list(self.scale)}")
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"ratio must rise, got {list(self.ratio)}")


class Optimizer(Table, frozen=True):
    """AdamW with a cosine schedule."""

    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.1
    """Not on gains, biases and the temperature."""
    beta1: Fraction = 0.9
    beta2: Fraction = 0.98
    eps: Positive = 1e-6
    warmup: Natural = 100
    """Steps of linear warm-up."""
    final_lr: Fraction = 0.0
    """What is left of `lr` at the end."""
    clip: NonNegative = 0.0
    """Largest norm of the gradient; 0: no limit."""


class Loop(Table, frozen=True):
    """How training runs."""

    batch_size: Count = 512
    """Pairs that are contrasted, over all ranks."""
    micro_batch: Natural = 0
    """Pairs that a rank computes at a time; 0: all of its own. The loss stays that of the whole batch."""
    epochs: NonNegative = 0.0
    steps: Natural = 0
    """Give one of `epochs` and `steps`."""
    sides: tuple[tuple[Fraction, Side], ...] = ()
    """Progressive resizing: from which part of the run on images have which side; none: the model's own throughout.

    For towers that take images of any size. Source: arXiv 2104.00298 §4.
    """
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    multi_positive: bool = True
    """Pairs that share a caption or class are all positives, not each other's negatives."""
    contrast: Literal["batch", "source"] = "batch"
    """Contrast each pair with all of its batch, or with those of its own source: telling sources apart is easy, and
    while a model learns it, it learns little else. Batch normalisation sees the mixture either way."""
    checkpointing: bool = False
    """Recompute transformer activations in the backward pass."""
    ema: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    """Decay of the averaged weights that are saved; 0: the last weights."""
    recalibrate: Natural = 0
    """Batches over which batch normalisation is estimated anew at the end, on whole images as in a test; 0: none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Natural = 0
    """Of PyTorch on the CPU; 0: as it chooses."""
    save_every: Natural = 500
    """Steps between resumable states; 0: only at the end."""
    keep: Count = 2
    """Newest states that are kept."""
    log_every: Count = 10
    tensorboard: bool = False

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.sides]
        if starts and (starts[0] != 0.0 or starts != sorted(set(starts))):
            raise ValueError(f"sides must begin at 0.0 and rise, got {starts}")

    def side(self, done: float) -> int:
        """Of the images once so much of the run is done, in [0, 1); 0: the model's own."""
        return next((side for start, side in reversed(self.sides) if done >= start), 0)


class Distill(Table, frozen=True, kw_only=True):
    """What a teacher adds to the loss."""

    teacher: tuple[Name, ...] = ()
    """Checkpoints that run beside the student, each on the same view."""
    stored: tuple[Name, ...] = ()
    """Folders that `edgeclip reinforce` wrote."""
    weights: dict[Term, NonNegative]
    """Of each loss; see `train/losses/distillation.py`."""
    contrastive: NonNegative = 1.0
    """Weight of the plain contrastive loss."""
    temperature: Positive = 1.0


class Quantize(Table, frozen=True, kw_only=True):
    """Fine-tune `model.init_from` while it computes with the rounding of integers, so that it learns to live with it.

    Batch normalisation and branches are folded first. The teacher, unless one is named, is the model before.
    """

    precision: Literal["w8a8", "w8a16", "w4a16"]
    group: Natural = 0
    """Weights of an output channel that share a scale, at w4a16; where it does not divide them, the largest divisor
    below. 0: all."""
    symmetric: bool = False
    """Activations of w8a8 are int8 with zero point 0, as TensorRT wants them, not uint8."""
    keep: tuple[Name, ...] = ()
    """Layers that stay in floating point, as `image.stem.spatial.conv`."""
    observe_batches: Annotated[int, Meta(ge=1, le=1000)] = 8
    """Over which the ranges of activations are measured before the first step."""
    freeze_after: Fraction = 0.8
    """From which part of the run on scales stay as they are, and weights alone are trained."""

    def __post_init__(self) -> None:
        if self.group and self.precision != "w4a16":
            raise ValueError("`group` is of w4a16: at 8 bits an output channel has one scale on every target")


class Evaluate(Table, frozen=True):
    """What the trained model is tested on, in the layout of CLIP_benchmark."""

    folder: str = ""
    """A folder of data sets; none: no evaluation."""
    sets: tuple[Name, ...] = ()
    """Of them; all by default."""
    limit: Natural = 0
    """Use only so many images of each; 0: all."""
    every: Natural = 0
    """Steps between evaluations; 0: at the end."""


class Recipe(Table, frozen=True, kw_only=True):
    """The root of a recipe."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """Of the model, and of the run's folder."""
    output: str = "runs"
    """Where the run's folder is made."""
    seed: Natural = 0
    model: Model
    data: Data
    augment: Augment = Augment()
    optimizer: Optimizer = Optimizer()
    loop: Loop
    distill: Distill | None = None
    quantize: Quantize | None = None
    evaluate: Evaluate = Evaluate()

    def __post_init__(self) -> None:
        if bool(self.loop.epochs) == bool(self.loop.steps):
            raise ValueError("give one of `loop.epochs` and `loop.steps`")
        if self.loop.epochs and self.data.cache == "none":
            raise ValueError('`loop.epochs` needs `data.cache` of "memory" or "disk": streams have no length')
        if self.by_source and self.data.cache == "none":
            raise ValueError('`loop.contrast = "source"` needs `data.cache` of "memory" or "disk"')
        if self.quantize and not self.model.init_from:
            raise ValueError("[quantize] fine-tunes a trained model: give `model.init_from`")
        if self.quantize and self.loop.recalibrate:
            raise ValueError("[quantize] folds batch normalisation: nothing is left for `loop.recalibrate`")
        if self.distill and not (self.teachers or self.distill.stored):
            raise ValueError("give `teacher` or `stored`")

    @property
    def by_source(self) -> bool:
        """Whether pairs of different sources are not contrasted."""
        return self.loop.contrast == "source"

    @property
    def teachers(self) -> tuple[str, ...]:
        """Checkpoints that run beside the student: those that [distill] names or, with [quantize], the model before."""
        if self.distill is None:
            return ()
        alone = self.quantize is not None and not self.distill.stored
        return self.distill.teacher or ((self.model.init_from,) if alone else ())

    @property
    def plain(self) -> dict[str, Any]:
        """The recipe as JSON has it."""
        tables: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return tables

    @property
    def digest(self) -> str:
        """SHA-256 of the decoded recipe: the same for the same run, however it was written."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()

    @property
    def view_digest(self) -> str:
        """SHA-256 of what decides the views that a seed gives."""
        parts = (self.augment, self.data.templates, self.data.captions, self.data.size)
        return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file, or by its name one that edgeclip brings, with overrides `table.key=value`.

    Raises:
        UsageError: it cannot be read; a key is unknown, missing, or its value of another type.
    """
    file = _locate(str(path))
    tables = read_toml(file)
    for text in overrides:
        override(tables, text)
    return decode(tables, file.name, base=file.parent)


def decode(tables: dict[str, Any], where: str, *, base: Path) -> Recipe:
    """Plain tables as a recipe; relative paths in it start at `base`."""
    refuse_unknown(tables, Recipe, "", where)
    try:
        recipe = msgspec.convert(tables, Recipe)
    except (msgspec.ValidationError, ValueError) as exc:
        raise UsageError(f"{where}: {in_toml(str(exc))}") from exc
    return _with_root(recipe, base)


def resolve(path: str, base: str | Path = ".") -> Path:
    """A path of a recipe, `$NAME` replaced from the environment.

    Raises:
        UsageError: the variable is not set.
    """
    expanded = os.path.expandvars(path)
    if missing := re.search(r"\$\{?(\w+)", expanded):
        raise UsageError(f"{path}: {missing[1]} is not set", hint=f"export {missing[1]}=... or override the key")
    return Path(base) / Path(expanded).expanduser()


def _locate(path: str) -> Path:
    brought = RECIPES / f"{path}.toml"
    if not Path(path).exists() and brought.is_file():
        return brought
    if not Path(path).is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise UsageError(f"{path}: no such recipe", hint=f"a TOML file, or one of: {known}")
    return Path(path)


def _with_root(recipe: Recipe, base: Path) -> Recipe:
    root = recipe.data.root or str(base)
    resolved = str(resolve(root, base))
    if "$" in root:
        return recipe  # A recipe that is kept or published names the variable, not this machine's folder.
    return msgspec.structs.replace(recipe, data=msgspec.structs.replace(recipe.data, root=resolved))
