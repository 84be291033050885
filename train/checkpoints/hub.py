"""Checkpoints from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from edgeclip import hub
from edgeclip.errors import CheckpointError
from edgeclip.hub import PREFIX

__all__ = ["PREFIX", "download"]

_DESCRIPTIONS = [
    "edgeclip.json", "open_clip_config.json", "config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "vocab.json", "merges.txt", "README.md", "*.safetensors.index.json",
]  # fmt: skip
_WEIGHTS = (
    ["open_clip_model.safetensors"],
    ["model.safetensors", "model-*-of-*.safetensors"],
    ["open_clip_pytorch_model.bin"],
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"],
)
"""Asked for one after the other until there is one, since many repositories hold the same weights in several forms."""


def download(reference: str) -> Path:
    """The local directory of `hf-hub:org/name[@revision]`, with its weights in one form and what describes them.

    Raises:
        TargetUnavailableError: huggingface_hub is not installed.
        CheckpointError: there is no such repository or revision, it holds no weights, or the hub cannot be reached.
    """
    repository, revision = hub.split_reference(reference)
    folder = hub.fetch(repository, revision, _DESCRIPTIONS, CheckpointError)
    for patterns in _WEIGHTS:
        folder = hub.fetch(repository, revision, patterns, CheckpointError)
        if any(next(folder.glob(pattern), None) for pattern in patterns):
            return folder
    raise CheckpointError(f"{reference}: no weights in the repository", hint="is it a CLIP model?")
