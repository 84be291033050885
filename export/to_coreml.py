"""Target `coreml`: an ML Program in a package that an app can use as it is.

The image program takes an RGB picture as apps have it, not an array; the text program whole rows of token ids. Tracing
is done here, converting in a child process: coremltools is heavy, and a crash or a hang of it is not our end.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from edgeclip import __version__
from edgeclip.export.coreml_graph import MAX_TEXTS, coreml_example, coreml_graph
from edgeclip.export.coreml_program import trace
from edgeclip.export.half_range import too_large_for_half
from edgeclip.export.source import Source
from edgeclip.golden import Golden
from edgeclip.manifest import Precision, Tower
from edgeclip.outcome import INPUT, OUTPUT, Job
from edgeclip.quantize import mil_process

CHILD = "edgeclip.export.coreml_child"
PROGRAM = "program.pt2"


class Traced:
    """A tower as PyTorch sees it, to be converted at any precision and for any system.

    Args:
        golden: inputs on which the range of numbers is looked at: what half precision may not hold stays in float32.

    Raises:
        ExportError: PyTorch cannot trace the tower.
    """

    def __init__(self, source: Source, golden: Golden, tower: Tower) -> None:
        self.tower: Tower = tower
        self.program = trace(
            coreml_graph(source.clip, tower, source.preprocess), coreml_example(source.clip, tower), tower
        )
        self.shape = _shape(source, tower)
        self.about = _about(source, tower)
        self._golden = golden

    @cached_property
    def float32(self) -> list[str]:
        """Names of the operators that stay in float32 where the others are in half precision."""
        return too_large_for_half(self.program, _inputs(self._golden, self.tower))


def to_coreml(traced: Traced, *, half: bool, deployment: str) -> dict[str, bytes]:
    """Convert a tower.

    Args:
        half: compute in half precision.
        deployment: the oldest system that shall run it: see `edgeclip.quantize.deployment`.

    Returns:
        The files of `{tower}.mlpackage`, by name; the same source gives the same bytes.

    Raises:
        TargetUnavailableError: coremltools is not installed.
        ExportError: coremltools failed.
    """
    options = {
        "tower": traced.tower,
        "input": INPUT[traced.tower],
        "output": OUTPUT,
        "half": half,
        "float32": traced.float32 if half else [],
        "deployment": deployment,
        "shape": traced.shape,
        "batches": MAX_TEXTS if traced.tower == "text" else 1,
        "about": traced.about,
    }
    with tempfile.TemporaryDirectory(prefix="edgeclip-") as name:
        folder = Path(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(traced.program, folder / PROGRAM)
        return mil_process.run(CHILD, folder, options)


class Packages:
    """The Core ML package of each tower, type and system, made once, of towers that are traced once."""

    def __init__(self, source: Source, golden: Golden, jobs: Sequence[Job]) -> None:
        self._source, self._golden = source, golden
        self._systems = {job.precision: job.deployment for job in jobs if job.deployment}
        self._traced: dict[Tower, Traced] = {}
        self._made: dict[tuple[Tower, bool, str], dict[str, bytes]] = {}

    def __call__(self, tower: Tower, precision: Precision) -> dict[str, bytes]:
        """Of an integer precision, the package in half precision that it is made from."""
        half, system = precision != "fp32", self._systems[precision]
        if (tower, half, system) not in self._made:
            self._made[tower, half, system] = to_coreml(self._trace(tower), half=half, deployment=system)
        return self._made[tower, half, system]

    def _trace(self, tower: Tower) -> Traced:
        if tower not in self._traced:
            self._traced[tower] = Traced(self._source, self._golden, tower)
        return self._traced[tower]


def _inputs(golden: Golden, tower: Tower) -> Iterator[Tensor]:
    """The golden inputs as the graph takes them, in batches."""
    if tower == "text":
        return (torch.from_numpy(golden.ids[i : i + MAX_TEXTS]) for i in range(0, len(golden.ids), MAX_TEXTS))
    return (torch.from_numpy(picture).permute(2, 0, 1)[None].float() for picture in golden.pixels)


def _shape(source: Source, tower: Tower) -> list[int]:
    """Of the input, without the batch."""
    size = source.preprocess.size
    return [source.tokenizer_spec.context_length] if tower == "text" else [3, size, size]


def _about(source: Source, tower: Tower) -> dict[str, Any]:
    """What Xcode shows of the package, and what an app may read from it."""
    model, size = source.model, source.preprocess.size
    texts = f"Token ids, one row a text, 1 to {MAX_TEXTS} rows: start, text, end, then padding up to the whole context."
    picture = f"An RGB picture of {size} x {size} pixels: the short side resized, the centre cut out."
    untrained = " Its weights were never trained." if model.random_weights else ""
    return {
        "author": f"edgeclip {__version__}, from {source.provenance.source or model.name}",
        "license": source.provenance.licence or "As the checkpoint's, which does not say.",
        "version": __version__,
        "description": f"The {tower} tower of {model.name}, a CLIP model.{untrained}",
        "input": texts if tower == "text" else picture,
        "output": "The embedding, of length 1: cosines of two of them are their dot product.",
        "user": {
            "edgeclip.version": __version__,
            "edgeclip.model": model.name,
            "edgeclip.tower": tower,
            "edgeclip.logit_scale": f"{model.logit_scale:g}",
            "edgeclip.preprocess": json.dumps(msgspec.to_builtins(source.preprocess), sort_keys=True),
            "edgeclip.tokenizer": json.dumps(msgspec.to_builtins(source.tokenizer_spec), sort_keys=True),
            "edgeclip.source_sha256": source.provenance.source_sha256,
        },
    }
