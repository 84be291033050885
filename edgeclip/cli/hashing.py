"""Checking every file of a bundle, with progress."""

from __future__ import annotations

from edgeclip.bundle import Bundle
from edgeclip.cli import progress
from edgeclip.cli.output import Output


def hash_files(output: Output, bundle: Bundle) -> int:
    """Hash every file; returns how many.

    Raises:
        BundleIntegrityError: for the first that differs from the manifest.
    """
    files = bundle.manifest.files
    with progress.bar(output, "hashing", sum(entry.size for entry in files), unit="bytes") as advance:
        for entry in files:
            for piece in bundle.pieces(entry):
                advance(len(piece))
    return len(files)
