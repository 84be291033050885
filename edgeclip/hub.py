"""Repositories of the Hugging Face hub: models and data sets, from its cache where they are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgeclip.errors import EdgeClipError, TargetUnavailableError

PREFIX = "hf-hub:"


def split_reference(reference: str) -> tuple[str, str | None]:
    """`hf-hub:org/name[@revision]` as repository and revision."""
    repository, _, revision = reference.removeprefix(PREFIX).partition("@")
    return repository, revision or None


def fetch(
    repository: str,
    revision: str | None,
    patterns: Sequence[str],
    failure: type[EdgeClipError],
    *,
    kind: Literal["model", "dataset"] = "model",
) -> Path:
    """The local directory of a repository, with the files that match the patterns.

    Raises:
        TargetUnavailableError: huggingface_hub is not installed.
        EdgeClipError: a `failure`: there is no such repository or revision, or the hub cannot be reached.
    """
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as exc:
        if exc.name != "huggingface_hub":
            raise
        raise TargetUnavailableError(
            "huggingface_hub is not installed", hint="pip install 'edgeclip[hub]', or pass a local directory"
        ) from exc
    try:
        return Path(snapshot_download(repository, repo_type=kind, revision=revision, allow_patterns=list(patterns)))
    except Exception as exc:  # the hub's errors and its HTTP client's have no common root
        raise failure(
            f"{PREFIX}{repository}: {_first_line(exc)}",
            hint="check the name, the revision and the network, or pass a local directory",
        ) from exc


def _first_line(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0] or type(exc).__name__
