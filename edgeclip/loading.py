"""`edgeclip.load`: from a bundle to a model that runs. The order is fixed: verify every byte, then import an engine."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeclip.bundle import Bundle
from edgeclip.errors import BundleNotFoundError, UsageError
from edgeclip.manifest import Compute, Precision, Tower
from edgeclip.request import Request
from edgeclip.resources import exhaustion
from edgeclip.selection import select
from edgeclip.tuned import settle

if TYPE_CHECKING:
    from edgeclip.model import Model

BUILT_IN = Path(__file__).parent / "assets" / "built-in.edgeclip"


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    backend: str = "auto",
    precision: Precision | None = None,
    tower: Tower | None = None,
    device: str | None = None,
    compute: Compute = "f32",
    threads: int | None = None,
    verify: bool = False,
    expect_digest: str | None = None,
    text_cache: bool = True,
    tuned: bool = True,
) -> Model:
    """Open a bundle and load its towers into an engine.

    Every file that is used is checked against its sha256 before an engine is imported, and the engine gets the very
    bytes that were checked.

    Where `edgeclip tune` has measured this bundle on this device, its device file says what is used: backend,
    precision, threads, and images per run. What the caller names always wins:

    - `backend`, `precision`, `device` or `compute`: the file is set aside altogether, for what it says was measured
      of its own choice of these and of no other.
    - `threads`: the rest of the file holds, since what an artifact loses does not depend on them.
    - `batch_size` of a call: the rest holds, too.

    The file is also set aside where the bundle, the CPU, the number of CPUs, the GPU or the engine's version is not
    that of its measurement. `Model.info.reason` says what was done and why.

    Args:
        path: a `.edgeclip` file or an unpacked bundle; None is the built-in model.
        backend: `auto`, `tensorrt`, `openvino`, `onnxruntime`, `coreml` or `coreml-reference`. `auto` takes the first
            in that order, but not the reference, whose library and device are here and for which the bundle has an
            artifact; one that is named is used or is an error.
        precision: of the artifact; None takes the most precise.
        tower: load only `image` or only `text`.
        device: as the backend names it; None is the CPU, for `tensorrt` the first GPU, for `coreml` all units.
        compute: the engine's arithmetic: `f32`, `bf16` or `f16`, where the device has it.
        threads: CPU threads of the engine; None takes those that this process may use.
        verify: run the golden vectors first, once per bundle, engine and device; the result is remembered.
        expect_digest: `sha256:…` of the manifest, as `edgeclip inspect` prints it.
        text_cache: keep the embeddings of classifiers' prompts on disk.
        tuned: go by the device file, where there is one.

    Raises:
        BundleError: the bundle is missing, malformed or changed.
        TargetError: the backend or device cannot run it.
        UsageError: an unknown name, or the bundle lacks the artifact.
        DeviceFileError: the device file would be used, and is damaged.
        ParityError: `verify` found a difference beyond the bounds.
    """
    location = Path(path) if path is not None else _built_in()
    model = open_model(
        Request(location, backend, precision, tower, device, compute, threads, expect_digest, text_cache, tuned)
    )
    if verify:
        from edgeclip.verify import verify_once

        verify_once(model)
    return model


def open_model(request: Request) -> Model:
    """Carry out a request."""
    with exhaustion(f"load {request.path}"):
        return _open_model(request)


def _open_model(request: Request) -> Model:
    """Hash the files on threads; hashing frees Python's lock, so that NumPy, Pillow and tokenizers load meanwhile."""
    if request.threads is not None and request.threads < 1:
        raise UsageError(f"threads must be at least 1, got {request.threads}")
    bundle = Bundle.open(request.path, expect_digest=request.expect_digest)
    request, aside = settle(request, bundle)
    selection = select(
        bundle.manifest,
        backend=request.backend,
        precision=request.precision,
        towers=(request.tower,) if request.tower else None,
        device=request.device,
    )
    reason = request.because or selection.reason
    selection = replace(selection, reason=f"{reason}; {aside}" if aside else reason)
    with ThreadPoolExecutor(len(selection.artifacts), "edgeclip-verify") as pool:
        jobs = {tower: pool.submit(bundle.files, artifact) for tower, artifact in selection.artifacts.items()}
        from edgeclip import assembly

        files = {tower: job.result() for tower, job in jobs.items()}
    return assembly.assemble(request, open_model, bundle, selection, files)


def _built_in() -> Path:
    if not BUILT_IN.is_file():
        raise BundleNotFoundError(
            "this build of edgeclip carries no built-in model", hint="give the path of a bundle: edgeclip.load(PATH)"
        )
    return BUILT_IN
