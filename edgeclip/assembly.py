"""From verified bytes to a model: engine, tokenizer and caches put together."""

from __future__ import annotations

from collections.abc import Callable

from edgeclip import backends
from edgeclip.backends.base import Files, Options, Session
from edgeclip.bundle import Bundle
from edgeclip.cpus import available_cpus
from edgeclip.manifest import Tower
from edgeclip.model import BATCH_SIZE, Model, ModelInfo
from edgeclip.request import Request
from edgeclip.selection import Selection
from edgeclip.textcache import TextCache
from edgeclip.tokenizer import Tokenizer


def assemble(
    request: Request,
    reopen: Callable[[Request], Model],
    bundle: Bundle,
    selection: Selection,
    files: dict[Tower, Files],
) -> Model:
    """Import the engine and load each tower's verified files into it; `files` is consumed.

    Raises:
        TargetError: the engine is missing or refuses.
        BundleError: the tokenizer is not what the manifest says.
    """
    tokenizer = _tokenizer(bundle, selection)
    device = request.device or backends.entry(selection.backend).device
    options = Options(device, request.threads or available_cpus(), request.compute)
    sessions = _sessions(selection, files, options)
    info = _info(request, bundle, selection, sessions)
    cache = TextCache(info.fingerprint, info.embed_dim) if request.text_cache else None
    return Model(request, reopen, bundle, info, sessions, tokenizer, cache)


def _tokenizer(bundle: Bundle, selection: Selection) -> Tokenizer | None:
    spec = bundle.manifest.tokenizer
    return Tokenizer(bundle.read(spec.file), spec) if spec and "text" in selection.artifacts else None


def _sessions(selection: Selection, files: dict[Tower, Files], options: Options) -> dict[Tower, Session]:
    engine = backends.get(selection.backend)
    return {tower: engine.open(artifact, files.pop(tower), options) for tower, artifact in selection.artifacts.items()}


def _info(request: Request, bundle: Bundle, selection: Selection, sessions: dict[Tower, Session]) -> ModelInfo:
    engine = next(iter(sessions.values())).engine
    spec = bundle.manifest.model
    return ModelInfo(
        name=spec.name,
        bundle=bundle.digest,
        embed_dim=spec.embed_dim,
        logit_scale=spec.logit_scale,
        random_weights=spec.random_weights,
        backend=selection.backend,
        engine_version=engine.version,
        device=engine.device,
        precision=selection.precision,
        compute=engine.compute,
        threads=engine.threads,
        artifacts={tower: artifact.file for tower, artifact in selection.artifacts.items()},
        reason=selection.reason,
        batch=request.batch or BATCH_SIZE,
    )
