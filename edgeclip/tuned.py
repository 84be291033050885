"""What `load` takes from the device file, and when it sets the file aside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeclip import backends, devicefile
from edgeclip.bundle import Bundle
from edgeclip.devicefile import REMOVE, DeviceFile
from edgeclip.errors import DeviceFileError
from edgeclip.request import Request


def settle(request: Request, bundle: Bundle) -> tuple[Request, str]:
    """Carry out `Request.tuned`: the request without it, and why a device file that is there was set aside.

    Raises:
        DeviceFileError: the file would be used, and is damaged.
    """
    path = devicefile.path_of(bundle.digest) if request.tuned else None
    request = replace(request, tuned=False)
    if path is None:
        return request, ""
    if named := _named(request):
        return request, f"{', '.join(named)} named, so that the device file is set aside" if path.exists() else ""
    file = devicefile.read(path)
    if file is None:
        return request, ""
    if unlike := _unlike(file, bundle):
        return request, f"the device file {path} is set aside: {unlike}"
    _require_artifacts(file, bundle, path)
    return _taken(request, file), ""


def _named(request: Request) -> list[str]:
    """What the caller named that a device file chooses. With another of these, nothing in it was measured."""
    return [
        name
        for name, usual in (("backend", "auto"), ("precision", None), ("device", None), ("compute", "f32"))
        if getattr(request, name) != usual
    ]


def _unlike(file: DeviceFile, bundle: Bundle) -> str:
    """What it was measured of that is not what is here."""
    if file.bundle != bundle.digest:
        return f"it is of another bundle, {file.bundle}"
    if file.backend not in backends.BACKENDS:
        return f"there is no backend {file.backend}"
    then, now = file.machine, devicefile.machine(file.backend)
    found = [(name, getattr(then, name), getattr(now, name)) for name in then.__struct_fields__]
    return "; ".join(f"{_words(name)} was {a or 'none'}, is {b or 'none'}" for name, a, b in found if a != b)


def _taken(request: Request, file: DeviceFile) -> Request:
    threads = "" if request.threads is None else f" with threads={file.threads}, where {request.threads} was asked for"
    return replace(
        request,
        backend=file.backend,
        precision=file.precision,
        device=file.device,
        compute=file.compute,
        threads=request.threads or file.threads,
        batch=file.batch,
        because=f"`edgeclip tune` chose it for {file.goal} on {file.created[:10]}{threads}: {file.rule}",
    )


def _require_artifacts(file: DeviceFile, bundle: Bundle, path: Path) -> None:
    runs = file.target in backends.entry(file.backend).targets
    if not runs or not bundle.artifacts(target=file.target, precision=file.precision):
        raise DeviceFileError(
            f"{path}: names {file.target} {file.precision} on {file.backend}, which the bundle does not hold",
            hint=REMOVE,
        )


def _words(name: str) -> str:
    return {"cpu": "the CPU", "cpus": "the number of CPUs"}.get(name, f"the {name.replace('_', ' ')}")
