"""Checkpoints of OpenAI, OpenCLIP, Hugging Face and edgeclip: `read_checkpoint`, `build`, `save_checkpoint`."""

from edgeclip.train.checkpoints.checkpoint import Checkpoint, Format, Origin, build
from edgeclip.train.checkpoints.own import save_checkpoint
from edgeclip.train.checkpoints.read import read_checkpoint

__all__ = ["Checkpoint", "Format", "Origin", "build", "read_checkpoint", "save_checkpoint"]
