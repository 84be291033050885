"""Devices that nobody here has: the files by which their kernels would describe them, in a folder."""

from __future__ import annotations

from pathlib import Path

ORIN_NANO = (
    "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
    "nvidia,p3768-0000+p3767-0005-super",
    "nvidia,p3767-0005",
    "nvidia,tegra234",
)
"""Model and compatible strings."""
RASPBERRY_PI_5 = ("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712")
CPUFREQ = "sys/devices/system/cpu/cpu{}/cpufreq/{}"
GPU = "sys/devices/platform/17000000.gpu/devfreq_dev/cur_freq"
RAIL = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"


def write(path: Path, text: object) -> Path:
    """A file that ends as the kernel's do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    return path


def board(
    root: Path, names: tuple[str, ...], *, cpus: int, memory_kb: int, khz: int, governor: str = "schedutil"
) -> None:
    """An Arm board with a device tree."""
    tree = root / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(names[0].encode() + b"\0")
    (tree / "compatible").write_bytes(b"".join(name.encode() + b"\0" for name in names[1:]))
    write(root / "proc/meminfo", f"MemTotal:       {memory_kb} kB\nMemFree:         1000000 kB")
    write(root / "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd evtstrm asimdhp asimddp")
    write(root / "sys/devices/system/cpu/online", f"0-{cpus - 1}")
    for cpu in range(cpus):
        write(root / CPUFREQ.format(cpu, "scaling_cur_freq"), khz)
    write(root / CPUFREQ.format(0, "scaling_governor"), governor)
    write(root / "sys/class/thermal/thermal_zone0/temp", 45000)


def orin_nano(root: Path, *, cpus: int = 6, khz: int = 1_344_000, gpu_hz: int = 918_000_000) -> None:
    """A Jetson Orin Nano of 8 GB, by default as its mode of 25 W and `jetson_clocks` set it."""
    board(root, ORIN_NANO, cpus=cpus, memory_kb=7_802_364, khz=khz)
    write(root / GPU, gpu_hz)
    for number, label in enumerate(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), 1):
        write(root / RAIL / f"in{number}_label", label)
        write(root / RAIL / f"in{number}_input", 5000)
        write(root / RAIL / f"curr{number}_input", 1000)


def nvpmodel(folder: Path, mode: str) -> Path:
    """A program that answers as `nvpmodel -q` does; its folder, for `PATH`."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvpmodel"
    program.write_text(f'#!/bin/sh\n[ "$1" = -q ] || exit 9\necho "NV Power Mode: {mode}"\necho 1\n')
    program.chmod(0o755)
    return folder
