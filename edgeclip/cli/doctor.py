"""`edgeclip doctor`: which engines run on this machine, and what the others need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click

from edgeclip import board, recognition
from edgeclip.cli import machine, profile, progress
from edgeclip.cli.group import Command, examples
from edgeclip.cli.output import Output
from edgeclip.errors import EdgeClipError, TargetUnavailableError, UsageError

EXTRAS = {
    "export": ("torch", "onnx", "onnxscript"),
    "coreml": ("coremltools",),
    "parquet": ("pyarrow",),
    "hub": ("huggingface_hub",),
    "eval": ("scikit-learn",),
    "quantize": ("nncf", "scipy"),
    "train": ("torch", "webdataset"),
    "search": ("usearch", "jinja2"),
    "bench": ("psutil", "jinja2"),
}
"""Names of distributions, of the extras that are no engines."""
PACKAGES = ("edgeclip", "numpy", "pillow", "tokenizers", "msgspec", "safetensors", "click", "rich")


@dataclass(frozen=True)
class Report:
    """What is known of a backend on this machine."""

    backend: str
    usable: bool
    version: str = ""
    computes: Mapping[str, Sequence[str]] | None = None
    """Device -> arithmetic that it has."""
    devices: Mapping[str, str] | None = None
    """Device -> what it is, in words."""
    reason: str = ""
    fix: str = ""


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip doctor",
        "edgeclip doctor --json",
        "edgeclip doctor --profiles",
        "edgeclip doctor --profile",
        "edgeclip doctor --profile jetson-orin-nano-25w",
        "edgeclip doctor --profile my-board.toml --json",
    ),
)
@click.option(
    "--profile",
    "name",
    metavar="[NAME|FILE.toml|auto]",
    is_flag=False,
    flag_value=recognition.AUTO,
    help="Compare this machine with a device profile; without a name, with the one that fits.",
)
@click.option("--profiles", "listed", is_flag=True, help="List the device profiles.")
@click.pass_obj
def command(output: Output, /, name: str | None, listed: bool) -> None:
    """Show which backends run here, on which devices and in which arithmetic, and what the others need.

    With --profile: whether this machine is a known device, whether it is set as measuring needs, and what to type. The
    exit code is 5 where it is another device, and 1 where it is set otherwise.
    """
    if listed and name:
        raise UsageError("--profiles lists all; --profile is about one", hint="give one of them")
    if listed:
        profile.show_all(output)
    elif name:
        profile.examine(output, name)
    else:
        show_backends(output)


def show_backends(output: Output) -> None:
    """Print what `doctor` shows of engines and of the machine.

    Raises:
        TargetUnavailableError: no engine runs here.
    """
    with progress.steps(output) as begin:
        reports = []
        for name in _backends():
            begin(f"looking at {name}")
            reports.append(examine(name))
    here = board.read()
    fitting = recognition.fitting(here)
    facts = machine.facts() | {"device profile": profile.in_words(here)}
    extras = {name: _extra(name, modules) for name, modules in EXTRAS.items()}
    packages = {name: machine.version_of(name) or "not installed" for name in PACKAGES}
    output.document |= {"backends": reports, "machine": facts, "extras": extras, "packages": packages}
    output.document["profile"] = fitting.name if fitting else None
    _show_backends(output, reports)
    output.facts("Machine", facts)
    output.facts("Extras", extras)
    output.facts("Packages", packages)
    if not any(report.usable for report in reports if _is_engine(report.backend)):
        raise TargetUnavailableError(
            "no backend runs here", hint="pip install 'edgeclip[onnx]' or pip install 'edgeclip[openvino]'"
        )


def examine(name: str) -> Report:
    """Load a backend's library and ask it for its devices; never raises."""
    from edgeclip import backends

    versions = {library: machine.version_of(library) for library in backends.entry(name).libraries}
    named = len(versions) > 1  # which of them it is, matters
    version = next((f"{lib} {number}" if named else number for lib, number in versions.items() if number), "")
    try:
        engine = backends.get(name)
        computes = {device: engine.computes(device) for device in engine.devices()}
        devices = {device: engine.describe(device) for device in computes}
    except EdgeClipError as exc:
        return Report(name, False, version, reason=exc.message, fix=exc.hint)
    except Exception as exc:  # a broken library can raise anything, and to say so is what this command is for
        text = " ".join(str(exc).split())[:200]
        return Report(name, False, version, reason=f"{type(exc).__name__}: {text}", fix="install the library again")
    if not computes:
        return Report(name, False, version, computes, reason="no device found")
    return Report(name, True, version, computes, devices)


def _backends() -> tuple[str, ...]:
    from edgeclip.backends import BACKENDS

    return tuple(BACKENDS)


def _is_engine(name: str) -> bool:
    """A reference always runs, and is no engine for a device."""
    from edgeclip.backends import entry

    return entry(name).automatic


def _extra(name: str, modules: tuple[str, ...]) -> str:
    missing = [module for module in modules if machine.version_of(module) is None]
    if missing:
        return f"lacks {', '.join(missing)}: pip install 'edgeclip[{name}]'"
    return ", ".join(f"{module} {machine.version_of(module)}" for module in modules)


def _device(report: Report, device: str, types: Sequence[str]) -> str:
    words = (report.devices or {}).get(device)
    return f"{device} ({', '.join(types)}){f': {words}' if words else ''}"


def _show_backends(output: Output, reports: list[Report]) -> None:
    rows = []
    for report in reports:
        devices = "; ".join(_device(report, device, types) for device, types in (report.computes or {}).items())
        status = output.status("ok" if report.usable else "failed")
        rows.append([report.backend, status, report.version, devices, report.reason, report.fix])
    output.table("Backends", ("backend", "status", "version", "devices (compute)", "reason", "fix"), rows)
