"""The device as a record describes it, with the fingerprint that tells it from others."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from edgeclip import backends, board
from edgeclip.benchmarks import environment, readiness
from edgeclip.benchmarks.conditions import Device
from edgeclip.benchmarks.record import Environment, Profiled
from edgeclip.cpus import available_cpus
from edgeclip.profiles import Profile
from edgeclip.recognition import others

ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "coremltools", "torch")


def describe(device: Device = Device(), profile: Profile | None = None) -> Environment:  # noqa: B008 (frozen)
    """This machine, now, beside its profile."""
    found = environment.describe(available_cpus())
    power, gpus = device.power(), _gpus()
    packages = {name: version for name, version in found["packages"].items() if version}
    engines = [f"{name} {packages[name]}" for name in ENGINES if name in packages]
    decides = [found["cpu"]["model"], str(found["cpu"]["usable"]), *gpus, found["os"], *engines, power.mode]
    return Environment(
        fingerprint=f"sha256:{hashlib.sha256('|'.join(decides).encode()).hexdigest()}",
        cpu=found["cpu"]["model"],
        isa=tuple(found["cpu"]["isa"]),
        cores=found["cpu"]["cores"] or 0,
        usable_cpus=found["cpu"]["usable"],
        gpus=gpus,
        memory_mb=found["memory_mb"],
        os=found["os"],
        python=found["python"],
        container=_in_container(),
        power=power,
        packages=packages,
        variables=found["variables"],
        profile=_profiled(profile, device) if profile else None,
    )


def _profiled(profile: Profile, device: Device) -> Profiled:
    differing = others(readiness.settings(profile, board.read(device.root), device))
    clocks = readiness.clocks_mhz(profile, device.root)
    return Profiled(name=profile.name, differs=tuple(map(str, differing)), clocks_mhz=clocks)


def _gpus() -> tuple[str, ...]:
    if not backends.ready("tensorrt"):
        return ()
    from edgeclip.backends import cuda

    return tuple(str(cuda.describe(number)) for number in range(cuda.count()))


def _in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or "container" in os.environ
