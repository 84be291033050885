"""A checkpoint of any architecture, random weights: `python -m edgeclip.export.random_checkpoint NAME FOLDER`.

For measuring what does not depend on training: sizes, build times, whether an engine takes the graph. So that rounding
costs about what it costs a trained model, batch normalisation has the statistics of real passes, and the residual
branches add little to what they are added to.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from edgeclip.cli.group import Command
from edgeclip.cli.output import Output
from edgeclip.export.demo_checkpoint import MEAN, STD
from edgeclip.export.golden import pictures
from edgeclip.export.vocabulary import find_tokenizer
from edgeclip.manifest import Preprocess
from edgeclip.train.checkpoints.own import save_checkpoint
from edgeclip.train.models.clip import Clip
from edgeclip.train.models.config import ClipConfig, load_config
from edgeclip.train.models.resnet import Bottleneck

GAINS = (0.5, 1.5)
BRANCH_GAINS = (0.0, 0.4)
"""Of the last normalisation in a residual branch: training begins it at 0."""
BIAS_STD = 0.2


@click.command("random_checkpoint", cls=Command)
@click.argument("architecture")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tokenizer", help="tokenizer.json, a folder that has one, or OpenAI's merges.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.pass_obj
def command(output: Output, /, architecture: str, folder: Path, tokenizer: str | None, seed: int) -> None:
    """Write a checkpoint of ARCHITECTURE, as RN50 or ViT-B-32, with random weights to FOLDER, which must not exist."""
    write_random_checkpoint(folder, load_config(architecture), tokenizer=tokenizer, seed=seed)
    output.line(str(folder))


def write_random_checkpoint(folder: Path, config: ClipConfig, *, tokenizer: str | None = None, seed: int = 0) -> None:
    """Write a checkpoint in edgeclip's own form.

    Args:
        tokenizer: see `find_tokenizer`.
        seed: the same one gives the same weights.

    Raises:
        UsageError: no tokenizer is found.
        ExportExistsError: `folder` exists.
    """
    text = config.text
    data, _ = find_tokenizer(None, tokenizer, vocab_size=text.vocab_size, context_length=text.context_length)
    torch.manual_seed(seed)
    clip = Clip(config)
    settle(clip)
    with tempfile.TemporaryDirectory(prefix="edgeclip-") as scratch:
        file = Path(scratch, "tokenizer.json")
        file.write_bytes(data)
        save_checkpoint(clip.eval(), folder, Preprocess(size=config.image_size, mean=MEAN, std=STD), file)


@torch.no_grad()
def settle(clip: Clip) -> None:
    """Give batch normalisation gains, biases, and the statistics of a pass over drawn pictures; in place."""
    norms = [module for module in clip.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        nn.init.uniform_(norm.weight, *GAINS)
        nn.init.normal_(norm.bias, std=BIAS_STD)
        norm.momentum = None  # the mean over all passes
    for block in clip.modules():
        if isinstance(block, Bottleneck) and isinstance(block.expand.norm, nn.BatchNorm2d):
            nn.init.uniform_(block.expand.norm.weight, *BRANCH_GAINS)
    clip.train()
    clip.encode_image(_normalised(clip.config.image_size))


def _normalised(size: int) -> Tensor:
    """[16, 3, S, S]."""
    pixels = torch.from_numpy(pictures(size)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


if __name__ == "__main__":
    from edgeclip.cli import main

    sys.exit(main(command=command, name="python -m edgeclip.export.random_checkpoint"))
