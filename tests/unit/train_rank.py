"""One of several processes that compute the gradients of a batch together: `python -m tests.unit.train_rank FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from edgeclip.train import distributed
from edgeclip.train.data.batch import Batch
from edgeclip.train.distill import Distiller, TeacherBatch
from edgeclip.train.distributed import World
from edgeclip.train.models.clip import Clip
from edgeclip.train.objective import Objective
from edgeclip.train.setup import read_config
from edgeclip.train.step import Step
from tests import training

WEIGHTS = {"affinity": 0.5, "feature": 1.0, "interactive": 0.7, "relational": 0.3}
BATCH = 24
TEACHER_DIM = 6
WIDTHS = [2, 4]


def batch() -> Batch:
    """Twenty-four pairs; some share their caption."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 500, (BATCH, 8), generator=generator, dtype=torch.int32)
    ids[:, -1] = 524
    views = torch.rand(BATCH, 8, generator=generator) * 0.2 + 0.5
    keys = torch.randint(0, 18, (BATCH,), generator=generator)
    sources = torch.arange(BATCH) % 2
    names = [str(i) for i in range(BATCH)]
    pixels = torch.randint(0, 256, (BATCH, 20, 20, 3), generator=generator, dtype=torch.uint8)
    stored = {name: torch.randn(BATCH, TEACHER_DIM, generator=generator) for name in ("image", "text")}
    return Batch(pixels, views, ids, keys, sources, names, names, [stored])


def teach(part: Batch) -> list[TeacherBatch]:
    return [TeacherBatch(part.teachers[0]["image"], part.teachers[0]["text"], torch.tensor(20.0))]


def gradients(folder: Path, world: World, micro_batch: int = 0, contrast: str = "source") -> dict[str, torch.Tensor]:
    """Losses and all gradients of the toy model with four terms of distillation, at three widths."""
    tables = {
        "model": {"architecture": str(folder / "toy.json"), "matryoshka": WIDTHS},
        "distill": {"stored": ["x"], "weights": WEIGHTS},
        "loop": {"steps": 1, "contrast": contrast},
    }
    recipe = training.decode_again(folder, tables)
    torch.manual_seed(0)
    clip = Clip(read_config(recipe.model.architecture))
    objective = Objective(recipe, Distiller(clip, [TEACHER_DIM], WEIGHTS, widths=WIDTHS))
    step = Step(clip, objective, training.preprocess(), world, micro_batch=micro_batch, teach=teach)
    size = BATCH // world.ranks
    losses = step(batch().part(distributed.own(world, size)))
    named = [*clip.named_parameters(), *objective.named_parameters()]
    found = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
    return found | {f"loss.{name}": torch.tensor(value) for name, value in losses.items()}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    with distributed.join("cpu") as here:
        save_file(gradients(target, here), target / f"rank-{here.rank}.safetensors")
