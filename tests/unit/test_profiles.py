"""Device profiles: what is refused and how, which machine is which, and whether it is set as its profile says."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgeclip import board, cpuinfo, cpus, profiles, recognition
from edgeclip.benchmarks import readiness
from edgeclip.benchmarks.conditions import Device
from edgeclip.board import Board
from edgeclip.errors import TargetUnavailableError, UsageError
from edgeclip.profiles import Profile
from edgeclip.recognition import Check
from tests import boards

GOOD = """
name = "my-board"
title = "My board"
targets = ["onnx"]
[recognise]
system = "Linux"
machine = ["aarch64"]
"""
X86 = Board("Linux", "x86_64", (), ("avx2", "avx512f", "avx512_vnni"), 2, 24.0, "unknown")
NANO = Board("Linux", "aarch64", boards.ORIN_NANO, ("asimd",), 6, 7.44, "25W")


def written(folder: Path, text: str) -> str:
    path = folder / "p.toml"
    path.write_text(text)
    return str(path)


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process runs on an Arm CPU with eight cores, as far as it can tell."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(cpus, "_affinity", lambda: 8)


def states(checks: list[Check]) -> dict[str, str]:
    return {check.what: check.state for check in checks}


@pytest.mark.parametrize("name", profiles.names())
def test_a_profile_that_we_bring_parses_and_is_named_as_its_file(name: str) -> None:
    profile = profiles.load(name)
    assert profile.name == name
    assert set(profile.recognise.features) <= set(cpuinfo.FLAGS)
    assert "https://" in (profiles.PROFILES / f"{name}.toml").read_text() or profile.measured_by_us


def test_there_are_profiles_of_jetsons_a_pi_a_mac_and_the_machine_we_measure_on() -> None:
    brought = {profile.name: profile for profile in profiles.shipped()}
    assert {"jetson-orin-nano-7w", "jetson-orin-nx-16gb-25w", "jetson-agx-orin-maxn"} <= set(brought)
    assert {"raspberry-pi-5", "mac-apple-silicon"} <= set(brought)
    assert [name for name, profile in brought.items() if profile.measured_by_us] == ["x86-vnni-2cpu"]


def test_what_a_power_mode_or_a_governor_is_set_by_is_said_wherever_one_is_wanted() -> None:
    for profile in profiles.shipped():
        assert not profile.power_mode or profile.command_for("power mode").startswith("sudo nvpmodel -m")
        assert not profile.governor or profile.command_for("governor")
        assert profile.governor or not any(clock.max_mhz for clock in profile.clocks) or profile.command_for("clocks")


def test_a_file_of_ones_own_needs_little(tmp_path: Path) -> None:
    profile = profiles.load(written(tmp_path, GOOD))
    assert (profile.name, profile.threads, profile.batches, profile.measured_by_us) == (
        "my-board",
        None,
        (8, 32),
        False,
    )


def test_the_example_in_the_documentation_is_a_profile(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "devices.md").read_text()
    [example] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    profile = profiles.load(written(tmp_path, example))
    assert profile.command_for("power mode") == "sudo nvpmodel -m 0"
    assert profile.clocks[0].max_mhz == 612


def test_the_documentation_names_every_profile_that_we_bring() -> None:
    page = (Path(__file__).parents[2] / "docs" / "devices.md").read_text()
    named = re.findall(r"^\| `(.*?)…?` \|", page, re.MULTILINE)
    assert all(any(name.startswith(stem) for stem in named) for name in profiles.names())
    assert all(any(name.startswith(stem) for name in profiles.names()) for stem in named)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("title =", "titel ="), "p.toml [top]: unknown key 'titel' (did you mean 'title'?)"),
        (("machine =", "machines ="), "p.toml [recognise]: unknown key 'machines' (did you mean 'machine'?)"),
        (('targets = ["onnx"]', 'targets = ["metal"]'), "p.toml: Invalid enum value 'metal' - at `targets[0]`"),
        (('targets = ["onnx"]', "targets = []"), "p.toml: Expected `array` of length >= 1 - at `targets`"),
        (('name = "my-board"', 'name = "My Board"'), "p.toml: Expected a string matching regex"),
        (('name = "my-board"', "name = 3"), "p.toml: Expected a string, got an integer - at `name`"),
        (("title =", "threads = 0\ntitle ="), "p.toml: Expected an integer >= 1 - at `threads`"),
        (("title =", "batches = [8, 2.5]\ntitle ="), "p.toml: Expected an integer, got a number - at `batches[1]`"),
        (("title =", 'counters = ["sys/x"]\ntitle ='), "at `counters[0]`"),
        (('system = "Linux"', 'system = "BeOS"'), "p.toml: Invalid enum value 'BeOS' - at `recognise.system`"),
        (('system = "Linux"', ""), "p.toml: Object missing required field `system` - at `recognise`"),
        (("name =", "name"), "p.toml: not TOML:"),
    ],
)
def test_what_is_no_profile_is_refused_with_its_file_and_its_field(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        profiles.load(written(tmp_path, GOOD.replace(*change)))


def test_an_unknown_key_of_a_clock_is_refused_with_its_table(tmp_path: Path) -> None:
    clock = '\n[[clocks]]\nname = "CPU"\nfiles = ["/sys/x"]\nunit = "kHz"\nmax_hz = 3\n'
    with pytest.raises(UsageError, match=re.escape("p.toml [clocks]: unknown key 'max_hz' (did you mean 'max_mhz'?)")):
        profiles.load(written(tmp_path, GOOD + clock))


def test_a_file_that_is_not_there_is_said() -> None:
    with pytest.raises(UsageError, match=r"no\.toml: cannot be read"):
        profiles.load("no.toml")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("jetson-orin-nano-25", "did you mean 'jetson-orin-nano-25w'?"), ("zx", "one of: jetson-agx-orin-15w, ")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"no profile '{name}'") as caught:
        profiles.load(name)
    assert hint in caught.value.hint and ".toml" in caught.value.hint


def test_a_machine_is_read_from_what_its_kernel_says(
    tmp_path: Path, arm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards.orin_nano(tmp_path)
    path = boards.nvpmodel(tmp_path / "bin", "25W")
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    found = board.read(tmp_path)
    assert found == replace(NANO, features=("asimd", "asimdhp", "asimddp"), memory_gb=found.memory_gb)
    assert found.memory_gb == pytest.approx(7.44, abs=0.01)


@pytest.mark.parametrize(("online", "expected"), [("0-3", 4), ("0,2-3", 3), ("0-11", 8), ("odd", None)])
def test_cpus_that_are_off_or_kept_from_us_do_not_count(
    tmp_path: Path, arm: None, online: str, expected: int | None
) -> None:
    boards.write(tmp_path / "sys/devices/system/cpu/online", online)
    assert board.read(tmp_path).cpus == (expected or min(8, os.cpu_count() or 1))


def test_a_machine_without_any_of_these_files_is_read_too(tmp_path: Path) -> None:
    found = board.read(tmp_path)
    assert found.device_tree == () and found.features == () and found.cpus >= 1
    assert found.system == platform.system()


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (X86, "x86-vnni-2cpu"),
        (replace(X86, cpus=64), None),
        (replace(X86, features=("avx2",)), None),
        (replace(X86, system="Windows"), None),
        (NANO, "jetson-orin-nano-25w"),
        (replace(NANO, power_mode="7W", cpus=4), "jetson-orin-nano-7w"),
        (replace(NANO, power_mode="10W"), None),
        (replace(NANO, power_mode="unknown"), None),
        (replace(NANO, device_tree=("nvidia,p3767-0004",)), None),
        (replace(NANO, device_tree=("x", "nvidia,p3768-0000+p3767-0000"), power_mode="40W"), "jetson-orin-nx-16gb-40w"),
        (replace(NANO, device_tree=("x", "nvidia,p3737-0000+p3701-0005"), power_mode="MAXN"), "jetson-agx-orin-maxn"),
        (replace(NANO, device_tree=boards.RASPBERRY_PI_5, power_mode="unknown"), "raspberry-pi-5"),
        (Board("Darwin", "arm64", (), (), 10, 16.0, "unknown"), "mac-apple-silicon"),
        (Board("Darwin", "x86_64", (), (), 8, 16.0, "unknown"), None),
    ],
)
def test_the_profile_that_fits_is_that_of_the_device_in_its_power_mode(machine: Board, name: str | None) -> None:
    found = recognition.fitting(machine)
    assert (found.name if found else None) == name


def test_where_the_power_mode_does_not_tell_the_device_the_candidates_are_named() -> None:
    with pytest.raises(TargetUnavailableError, match="which profile fits is not known: power mode 10W") as caught:
        recognition.choose("auto", replace(NANO, power_mode="10W"))
    assert "jetson-orin-nano-15w, jetson-orin-nano-25w, jetson-orin-nano-7w" in caught.value.hint


def test_where_nothing_fits_the_machine_is_described() -> None:
    unknown = replace(NANO, device_tree=("A board",), power_mode="unknown")
    with pytest.raises(TargetUnavailableError, match="no profile fits this machine: Linux on aarch64, A board, 6 CPUs"):
        recognition.choose("auto", unknown)


def test_another_device_is_refused_with_all_that_differs() -> None:
    profile = profiles.load("jetson-orin-nano-25w")
    recognition.refuse_another(profile, NANO)
    said = "not jetson-orin-nano-25w: machine: x86_64, not aarch64; device tree: no device tree, not p3767-0003"
    with pytest.raises(TargetUnavailableError, match=re.escape(said)):
        recognition.refuse_another(profile, X86)


def nano_settings(root: Path, machine: Board = NANO) -> dict[str, str]:
    return states(readiness.settings(profiles.load("jetson-orin-nano-25w"), machine, Device(root)))


def test_a_jetson_that_is_set_as_its_profile_says_is_ok_throughout(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path)
    assert nano_settings(tmp_path) == dict.fromkeys(("CPUs", "memory", "power mode", "CPU clock", "GPU clock"), "ok")


@pytest.mark.parametrize(
    ("changes", "machine", "differs"),
    [
        ({"khz": 729_600}, NANO, "CPU clock"),
        ({"khz": 1_728_000}, NANO, "CPU clock"),
        ({"gpu_hz": 306_000_000}, NANO, "GPU clock"),
        ({}, replace(NANO, cpus=4), "CPUs"),
        ({}, replace(NANO, power_mode="15W"), "power mode"),
        ({}, replace(NANO, memory_gb=3.7), "memory"),
        ({}, replace(NANO, memory_gb=15.3), "memory"),
    ],
)
def test_each_setting_that_is_otherwise_differs_alone(
    tmp_path: Path, changes: dict[str, int], machine: Board, differs: str
) -> None:
    boards.orin_nano(tmp_path, **changes)
    found = nano_settings(tmp_path, machine)
    assert [what for what, state in found.items() if state != "ok"] == [differs]
    assert found[differs] == "differs"


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    mute = replace(NANO, power_mode="unknown", memory_gb=None)
    found = nano_settings(tmp_path, mute)
    assert found.pop("CPUs") == "ok"
    assert set(found.values()) == {"not known"} and len(found) == 4


def test_a_setting_that_differs_names_the_command_that_sets_it(tmp_path: Path) -> None:
    boards.board(tmp_path, boards.RASPBERRY_PI_5, cpus=4, memory_kb=8_000_000, khz=1_500_000, governor="ondemand")
    pi = replace(NANO, device_tree=boards.RASPBERRY_PI_5, cpus=4)
    found = {one.what: one for one in readiness.settings(profiles.load("raspberry-pi-5"), pi, Device(tmp_path))}
    assert str(found["governor"]) == "governor: ondemand, not performance"
    assert found["governor"].fix == "sudo cpufreq-set -r -g performance"
    assert (found["CPU clock"].state, found["CPU clock"].found) == ("differs", "1500 MHz")


def test_a_clock_without_a_limit_is_shown_and_judged_by_nothing(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path, khz=1_728_000)
    maxn = profiles.load("jetson-orin-nano-maxn-super")
    found = {one.what: one for one in readiness.settings(maxn, NANO, Device(tmp_path))}
    assert (found["CPU clock"].state, found["CPU clock"].found) == ("ok", "1728 MHz")
    assert readiness.clocks_mhz(maxn, tmp_path) == {"CPU": 1728.0, "GPU": 918.0}


def test_the_older_place_of_a_clock_is_read_where_the_newer_is_not_there(tmp_path: Path) -> None:
    boards.write(tmp_path / "sys/devices/17000000.ga10b/devfreq/17000000.ga10b/cur_freq", 612_000_000)
    assert readiness.clocks_mhz(profiles.load("jetson-orin-nano-15w"), tmp_path) == {"GPU": 612.0}


def test_rails_counters_and_energy_of_a_jetson_are_found(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path)
    found = {one.what: one for one in readiness.means(profiles.load("jetson-orin-nano-25w"), Device(tmp_path))}
    assert {found[f"rail {name}"].state for name in ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")} == {"ok"}
    assert found["counter /sys/class/thermal/thermal_zone*/temp"].found == "1 there"
    assert (found["energy"].state, found["energy"].found) == ("ok", "rail VDD_IN")
    assert found["program jetson_clocks"].state == "not known"


def test_sensors_that_are_not_there_are_not_known_and_no_fault(tmp_path: Path) -> None:
    found = states(readiness.means(profiles.load("jetson-orin-nano-25w"), Device(tmp_path)))
    assert found["rail VDD_IN"] == found["counter /sys/class/thermal/thermal_zone*/temp"] == "not known"


def engines(monkeypatch: pytest.MonkeyPatch, *present: str, **changes: object) -> list[Check]:
    """The checks of engines, on a machine that has these backends."""
    monkeypatch.setattr("edgeclip.backends.missing", lambda name: [] if name in present else [f"'{name}'"])
    monkeypatch.setattr("edgeclip.backends.ready", lambda name: name in present)
    profile: Profile = profiles.load("x86-vnni-2cpu")
    return [one for one in readiness.means(profile, Device(Path("/nowhere"))) if one.what.startswith("target")]


def test_an_engine_that_is_missing_matters_unless_a_preferred_one_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.state for one in engines(monkeypatch, "openvino", "onnxruntime")] == ["ok", "ok"]
    only_first = engines(monkeypatch, "openvino")
    assert [one.state for one in only_first] == ["ok", "ok"]
    assert only_first[1].found == "onnxruntime lacks 'onnxruntime'; not needed beside openvino"
    only_second = engines(monkeypatch, "onnxruntime")
    assert [one.state for one in only_second] == ["differs", "ok"]
    assert only_second[0].fix == "pip install 'edgeclip[openvino]'"
    assert [one.state for one in engines(monkeypatch)] == ["differs", "differs"]
