"""`doctor --profile` and `bench --profile` as they are used."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgeclip import board
from edgeclip.benchmarks import record, suite
from edgeclip.cli import main
from edgeclip.errors import UsageError
from tests import benching, boards
from tests.cli import document, edgeclip, environment, patched

AS_NANO = """
import platform
from pathlib import Path
from edgeclip import board, cpus
platform.machine, platform.system = lambda: "aarch64", lambda: "Linux"
board.ROOT, cpus._affinity = Path({root!r}), lambda: 8
"""
"""Code for `patched`: the kernel's files are those of a folder."""


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    """The root of a Jetson Orin Nano, as its mode of 25 W sets it."""
    boards.orin_nano(tmp_path / "root")
    return tmp_path / "root"


def doctor(root: Path, *arguments: str, mode: str = "25W") -> Any:
    """`edgeclip doctor` on a device whose files are in a folder."""
    path = boards.nvpmodel(root / "bin", mode)
    env = environment(PATH=f"{path}:{os.environ['PATH']}")
    return patched(AS_NANO.format(root=str(root)), "doctor", *arguments, env=env)


def test_the_device_itself_is_recognised_and_lacks_what_it_lacks(nano: Path) -> None:
    done = doctor(nano, "--profile", "--json")
    found = document(done)
    assert found["profile"]["name"] == "jetson-orin-nano-25w"
    states = {one["what"]: one["state"] for one in found["checks"]}
    settings = ("system", "machine", "device tree", "CPUs", "memory", "power mode", "CPU clock", "GPU clock")
    assert {states[what] for what in (*settings, "rail VDD_IN", "energy")} == {"ok"}
    if states["target tensorrt"] == "ok":
        assert done.returncode == 0
    else:  # the tests' machine has no GPU
        assert done.returncode == found["error"]["exit_code"] == 1
        assert "checks differ from jetson-orin-nano-25w: target tensorrt: tensorrt " in found["error"]["message"]


def test_the_table_says_row_by_row_what_to_do(nano: Path) -> None:
    boards.write(nano / boards.CPUFREQ.format(0, "scaling_cur_freq"), 729_600)
    done = doctor(nano, "--profile", "jetson-orin-nano-7w")
    assert done.returncode == 1
    rows = {line.split("  ")[0]: " ".join(line.split()) for line in done.stdout.splitlines()}
    assert rows["measured"] == "measured not by us: from documents alone"
    assert rows["device tree"].startswith("device tree ✅ ok p3767-0003 or p3767-0005")
    assert rows["power mode"].startswith('power mode ❌ differs 7W 25W sudo nvpmodel -m "$(sed')
    assert rows["CPU clock"] == "CPU clock ❌ differs 960 MHz 1344 MHz sudo jetson_clocks"
    assert rows["program tegrastats"] == "program tegrastats ➖ not known not installed"
    assert "Before measuring" in done.stdout
    assert "power mode: 25W, not 7W; CPU clock: 1344 MHz, not 960 MHz" in done.stderr


def test_the_number_of_a_mode_is_looked_up_by_the_command_that_we_print(tmp_path: Path) -> None:
    from edgeclip import profiles

    conf = tmp_path / "nvpmodel.conf"
    conf.write_text("< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=31 NAME=7W >\n")
    command = profiles.load("jetson-orin-nano-7w").command_for("power mode")
    looked_up = command.replace("sudo nvpmodel -m", "echo").replace("/etc/nvpmodel.conf", str(conf))
    done = subprocess.run(["sh", "-c", looked_up], capture_output=True, text=True, check=True)
    assert done.stdout == "31\n"


def test_another_device_exits_5_and_shows_its_rows_all_the_same() -> None:
    other = "mac-apple-silicon" if board.read().system == "Linux" else "raspberry-pi-5"
    done = edgeclip("doctor", "--profile", other)
    assert done.returncode == 5
    assert f"error: this machine is not {other}: system: " in done.stderr
    assert "❌ differs" in done.stdout and "Before measuring" in done.stdout


def test_doctor_alone_names_the_profile_that_fits_and_the_list_marks_it(nano: Path) -> None:
    found = document(doctor(nano, "--json"))
    assert found["profile"] == "jetson-orin-nano-25w"
    assert found["machine"]["device profile"] == "jetson-orin-nano-25w (not by us: from documents alone)"
    listed = doctor(nano, "--profiles")
    rows = {line.split("  ")[0]: line for line in listed.stdout.splitlines()}
    assert rows["jetson-orin-nano-25w"].endswith("fits")
    assert rows["jetson-orin-nano-7w"].endswith("this device, another mode")
    assert not rows["raspberry-pi-5"].endswith(("fits", "mode"))


def test_a_mode_without_a_profile_is_said_and_the_others_are_named(nano: Path) -> None:
    done = doctor(nano, "--profile", mode="10W")
    assert done.returncode == 5
    assert "error: which profile fits is not known: power mode 10W" in done.stderr
    assert "hint: name one of: jetson-orin-nano-15w, jetson-orin-nano-25w" in done.stderr


def test_this_machine_is_described_as_json_lists_it() -> None:
    listed = document(edgeclip("doctor", "--profiles", "--json"))
    assert len(listed["profiles"]) >= 16
    assert listed["profiles"][0]["recognise"]["machine"] == ["aarch64"]
    assert listed["fitting"] == document(edgeclip("doctor", "--json"))["profile"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("doctor", "--profile", "jetson-orin-nano-25"), 2, "did you mean 'jetson-orin-nano-25w'?"),
        (("doctor", "--profile", "no.toml"), 2, "no.toml: cannot be read"),
        (("doctor", "--profile", "auto", "--profiles"), 2, "--profiles lists all"),
        (("bench", "--profile", "jetson"), 2, "no profile 'jetson'"),
        (("bench", "--quick", "--profile", "bad.toml"), 2, "bad.toml [top]: unknown key 'thread' (did you mean"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(
    arguments: tuple[str, ...], code: int, said: str, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text("thread = 2\n")
    assert main(arguments) == code
    assert said in capsys.readouterr().err.replace("\nhint: ", " (")


def own(folder: Path, **changes: object) -> Path:
    """A profile of whatever machine the tests run on."""
    here = board.read()
    facts = {"name": "own", "title": "Own", "targets": ["onnx"], "threads": 1, "batches": [3]} | changes
    lines = [f"{key} = {json.dumps(value)}" for key, value in facts.items()]
    lines += ["[recognise]", f'system = "{here.system}"', f'machine = ["{here.machine}"]']
    lines += ["[[clocks]]", 'name = "fixed"', f'files = ["{folder}/clock*"]', 'unit = "MHz"']
    path = folder / "own.toml"
    path.write_text("\n".join(lines))
    (folder / "clock0").write_text("1234\n")
    return path


def bench(*arguments: str | Path) -> record.Record:
    """One quick run of the built-in model in ONNX Runtime, whose scenario has batches."""
    quick = ("--quick", "--scenario", "offline", "--target", "onnx", "--json")
    done = patched(benching.TINY, "bench", *quick, *arguments)
    assert done.returncode == 0, done.stderr
    return record.decode(done.stdout.encode())


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> record.Record:
    """A run by a profile that the machine is not set as."""
    return bench("--profile", own(tmp_path_factory.mktemp("own"), cpus=777))


def test_bench_takes_threads_and_batches_of_the_profile(profiled: record.Record) -> None:
    assert profiled.config.threads == 1
    assert {each.batch for one in profiled.results for each in one.throughput} == {3}


def test_the_record_names_the_profile_and_what_of_the_device_is_otherwise(profiled: record.Record) -> None:
    assert profiled.env.profile is not None
    assert profiled.env.profile.name == "own"
    assert profiled.env.profile.differs == (f"CPUs: {board.read().cpus}, not 777",)
    assert profiled.env.profile.clocks_mhz == {"fixed": 1234.0}


def test_the_pages_name_it_too(profiled: record.Record) -> None:
    from edgeclip.benchmarks import tabulated

    assert dict(tabulated.environment(profiled))["profile"] == "own; fixed clock 1234 MHz"
    assert f"Not set as own says: CPUs: {board.read().cpus}, not 777." in tabulated.remarks(profiled)


def test_threads_that_are_asked_for_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def stop(self: suite.Suite) -> None:
        begun.append(self)
        raise UsageError("far enough")

    monkeypatch.setattr(suite.Suite, "run", stop)
    for options, threads in (((), 1), (("--threads", "2"), 2)):
        assert main(["bench", "--quick", "--profile", str(own(tmp_path)), *options]) == 2
        assert (begun[-1].threads, begun[-1].budget.batches) == (threads, (3,))


def test_without_a_profile_the_record_has_none() -> None:
    plain = json.loads(record.encode(benching.record()))
    assert plain["env"]["profile"] is None


def test_a_record_from_before_profiles_is_read() -> None:
    plain = json.loads(record.encode(benching.record()))
    del plain["env"]["profile"]
    assert record.encode(record.decode(json.dumps(plain).encode())) == record.encode(benching.record())


def test_a_profile_of_another_device_is_refused_before_anything_is_timed(capsys: Any) -> None:
    other = "mac-apple-silicon" if board.read().system == "Linux" else "raspberry-pi-5"
    assert main(["bench", "--quick", "--scenario", "multi-stream", "--profile", other]) == 5
    assert f"this machine is not {other}" in capsys.readouterr().err
