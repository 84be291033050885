"""What the device says of itself: temperatures, throttling and energy, from files as systems have them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgeclip.benchmarks import conditions, device, energy
from edgeclip.benchmarks.conditions import Device
from edgeclip.benchmarks.energy import Rails, Rapl


def write(path: Path, text: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    return path


def test_a_machine_that_tells_nothing_is_described_without(tmp_path: Path) -> None:
    bare = Device(tmp_path)
    assert bare.governor() == "not known"
    assert bare.celsius() is None and bare.clock_mhz() is None
    assert not any(bare.signs().values())


def test_the_hottest_zone_the_fastest_clock_and_the_governor(tmp_path: Path) -> None:
    write(tmp_path / "sys/class/thermal/thermal_zone0/temp", 41000)
    write(tmp_path / "sys/class/thermal/thermal_zone1/temp", 67500)
    for cpu, khz in ((0, 800_000), (1, 2_400_000)):
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq", khz)
    write(tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave")
    found = Device(tmp_path)
    assert (found.celsius(), found.clock_mhz(), found.governor()) == (67.5, 2400.0, "powersave")


def test_a_count_that_grows_is_throttling_and_one_that_stays_is_none(tmp_path: Path) -> None:
    count = write(tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", 3)
    before = Device(tmp_path).signs()
    assert conditions.throttled(before, Device(tmp_path).signs()) == ()
    write(count, 4)
    assert conditions.throttled(before, Device(tmp_path).signs()) == ("CPU throttled, by the kernel's count",)


@pytest.mark.parametrize(
    ("answer", "signs"),
    [
        ("throttled=0x0", []),
        ("throttled=0x50000", []),
        ("throttled=0x50005", ["board under-voltage", "board throttled"]),
        ("throttled=0x8", ["board at the soft temperature limit"]),
    ],
)
def test_a_raspberry_pi_tells_what_slows_it_now(answer: str, signs: list[str]) -> None:
    assert [sign for sign, value in conditions.pi_flags(answer).items() if value] == signs


@pytest.mark.parametrize(
    ("reasons", "signs"),
    [
        (0x1, []),
        (0x4, ["GPU at its power cap"]),
        (0x60, ["GPU slowed by software, hot", "GPU slowed by hardware, hot"]),
        (0x88, ["GPU slowed by hardware", "GPU slowed by the power brake"]),
    ],
)
def test_a_gpu_tells_what_slows_it(reasons: int, signs: list[str]) -> None:
    assert [sign for sign, value in conditions.nvml_flags(reasons).items() if value] == signs


def test_rapl_adds_the_packages_and_counts_on_where_a_counter_begins_anew(tmp_path: Path) -> None:
    zones = [tmp_path / f"intel-rapl:{number}" for number in (0, 1)]
    for zone in zones:
        write(zone / "max_energy_range_uj", 9_999_999)
        write(zone / "energy_uj", 9_000_000)
    found = Rapl(zones)
    assert found.joules() == 0
    write(zones[0] / "energy_uj", 9_500_000)
    write(zones[1] / "energy_uj", 1_000_000)
    assert found.joules() == pytest.approx(0.5 + 2.0)


def test_a_jetsons_rail_is_integrated(tmp_path: Path) -> None:
    rail = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    for number, (label, millivolts, milliamperes) in enumerate((("VDD_IN", 5000, 2000), ("VDD_CPU", 1000, 500)), 1):
        write(rail / f"in{number}_label", label)
        write(rail / f"in{number}_input", millivolts)
        write(rail / f"curr{number}_input", milliamperes)
    started = time.monotonic()
    with energy.counter(tmp_path) as found:
        assert isinstance(found, Rails) and found.name == "rail VDD_IN"
        assert found.watts() == pytest.approx(10.0)
        while found.joules() < 1.0:
            time.sleep(0.01)
        assert found.joules() <= 10.0 * (time.monotonic() - started)


def test_where_nothing_counts_there_is_no_counter(tmp_path: Path) -> None:
    with energy.counter(tmp_path) as found:
        assert found is None


def test_counters_that_only_root_may_read_count_as_none(tmp_path: Path) -> None:
    write(tmp_path / "sys/class/powercap/intel-rapl:0/max_energy_range_uj", 10)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").mkdir()
    with energy.counter(tmp_path) as found:
        assert found is None


def test_the_parts_of_a_package_are_not_counted_twice(tmp_path: Path) -> None:
    for zone in ("intel-rapl:0", "intel-rapl:0:0"):
        write(tmp_path / f"sys/class/powercap/{zone}/max_energy_range_uj", 10_000_000)
        write(tmp_path / f"sys/class/powercap/{zone}/energy_uj", 0)
    with energy.counter(tmp_path) as found:
        assert found is not None
        for zone in ("intel-rapl:0", "intel-rapl:0:0"):
            write(tmp_path / f"sys/class/powercap/{zone}/energy_uj", 3_000_000)
        assert found.joules() == pytest.approx(3.0)


def test_the_fingerprint_is_the_devices_and_not_the_moments() -> None:
    one, other = device.describe(), device.describe()
    assert one.fingerprint == other.fingerprint
    assert one.packages["edgeclip"] and one.memory_mb > 100
