"""A process that has the device to itself: whether it stays as fast for long, and how much energy an image takes."""

from __future__ import annotations

import time

import numpy as np

from edgeclip.benchmarks import energy, percentiles
from edgeclip.benchmarks.conditions import Device, throttled
from edgeclip.benchmarks.energy import Counter
from edgeclip.benchmarks.record import Energy, Moment, Sustained
from edgeclip.benchmarks.summary import DRIFTED
from edgeclip.benchmarks.workers import Worker

STAGE = "image_encode"
MOMENTS = 120
"""At most, in a record."""
IDLE_SHARE = 0.25
"""Of the time that energy is measured for: how long the idle device is."""


def sustain(worker: Worker, device: Device, seconds: float) -> Sustained:
    """Single images one after the other; clock and temperature are read from outside, between moments."""
    before, started = device.signs(), time.monotonic()
    step = max(1.0, seconds / MOMENTS)
    moments: list[Moment] = []
    count, told = 0, dict[str, int]()
    while (at := time.monotonic() - started) < seconds:
        found = worker.sustain(STAGE, 1, min(step, seconds - at))
        count += len(found)
        moments.append(
            Moment(
                at_s=at, p50_ms=float(np.median(found)) * 1e3, clock_mhz=device.clock_mhz(), celsius=device.celsius()
            )
        )
        told = {sign: max(value, told.get(sign, 0)) for sign, value in device.signs().items()}
    medians = [moment.p50_ms for moment in moments]
    tenth = max(1, len(medians) // 10)
    return Sustained(
        seconds=time.monotonic() - started,
        n=count,
        first_ms=float(np.median(medians[:tenth])),
        last_ms=float(np.median(medians[-tenth:])),
        moments=tuple(moments),
        throttled=throttled(before, told),
        flags=_flags(moments),
    )


def image_energy(worker: Worker, counter: Counter | None, seconds: float) -> Energy:
    """Energy of one image, above that of the idle device."""
    if counter is None:
        return Energy(counter=energy.NONE)
    idle_s = IDLE_SHARE * seconds
    before, began = counter.joules(), time.monotonic()
    time.sleep(idle_s)
    idle_w = (counter.joules() - before) / (time.monotonic() - began)
    before, began = counter.joules(), time.monotonic()
    count = len(worker.sustain(STAGE, 1, seconds))
    taken = counter.joules() - before - idle_w * (time.monotonic() - began)
    return Energy(counter=counter.name, image_mj=1e3 * taken / count, idle_w=idle_w, n=count)


def _flags(moments: list[Moment]) -> tuple[str, ...]:
    change = percentiles.drift([one.at_s for one in moments], [one.p50_ms for one in moments])
    return ("drift",) if abs(change) > DRIFTED else ()
