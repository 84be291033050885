"""Checkpoints from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeclip.errors import CheckpointError, TargetUnavailableError

PREFIX = "hf-hub:"

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
    repository, _, revision = reference.removeprefix(PREFIX).partition("@")
    folder = _fetch(repository, revision or None, _DESCRIPTIONS)
    for patterns in _WEIGHTS:
        folder = _fetch(repository, revision or None, patterns)
        if any(next(folder.glob(pattern), None) for pattern in patterns):
            return folder
    raise CheckpointError(f"{reference}: no weights in the repository", hint="is it a CLIP model?")


def _fetch(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as exc:
        if exc.name != "huggingface_hub":
            raise
        raise TargetUnavailableError(
            "huggingface_hub is not installed", hint="pip install 'edgeclip[hub]', or pass a local directory"
        ) from exc
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except Exception as exc:  # the hub's errors and its HTTP client's have no common root
        raise CheckpointError(
            f"{PREFIX}{repository}: {_first_line(exc)}",
            hint="check the name, the revision and the network, or pass a local directory",
        ) from exc


def _first_line(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0] or type(exc).__name__
