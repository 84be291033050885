"""CPUs are those of the container, not of the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclip import cpus


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "_affinity", lambda: 16)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000", 16),
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("400000 100000", 4),
        ("1 100000", 1),
        ("odd", 16),
    ],
)
def test_a_quota_of_cgroup_v2(tmp_path: Path, text: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert cpus.available_cpus(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("200000", 2)])
def test_a_quota_of_cgroup_v1(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert cpus.available_cpus(tmp_path) == expected


def test_no_cgroup_is_no_limit(tmp_path: Path) -> None:
    assert cpus.available_cpus(tmp_path) == 16
