"""The device as a record describes it, with the fingerprint that tells it from others."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from edgeclip import backends
from edgeclip.benchmarks import environment
from edgeclip.benchmarks.conditions import Device
from edgeclip.benchmarks.record import Environment
from edgeclip.cpus import available_cpus

ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "coremltools", "torch")


def describe(device: Device = Device()) -> Environment:  # noqa: B008 (frozen)
    """This machine, now."""
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
    )


def _gpus() -> tuple[str, ...]:
    if not backends.ready("tensorrt"):
        return ()
    from edgeclip.backends import cuda

    return tuple(str(cuda.describe(number)) for number in range(cuda.count()))


def _in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or "container" in os.environ
