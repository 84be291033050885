"""A checkpoint in half the space: `python -m edgeclip.train.checkpoints.half runs/teacher/checkpoint models/edge-t`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edgeclip.errors import EdgeClipError, UsageError
from edgeclip.train.checkpoints import build, read_checkpoint, save_checkpoint


def halve(source: str | Path, folder: Path) -> Path:
    """Write any checkpoint in edgeclip's form, its weights in float16.

    Raises:
        CheckpointError: it cannot be read, or a weight is beyond what float16 holds.
        ExportExistsError: `folder` exists.
    """
    read = read_checkpoint(source)
    return save_checkpoint(
        build(read),
        folder,
        read.preprocess,
        read.tokenizer,
        origin=read.origin,
        half=True,
        scales=read.scales,
        matryoshka=read.matryoshka,
    )


def main(arguments: Sequence[str]) -> int:
    """Halve the first into the second."""
    try:
        if len(arguments) != 2:
            raise UsageError("give a checkpoint and the folder to write")
        print(halve(arguments[0], Path(arguments[1])))
    except EdgeClipError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
