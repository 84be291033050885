"""The cache of compiled Core ML packages. What compiles is a plain copy here: the cache does not look into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeclip import cache
from edgeclip.backends import coreml_compiled
from edgeclip.backends.coreml_compiled import compiled
from edgeclip.backends.coreml_package import Package, read
from tests import bundles

FACTS = ("9.0, macOS 15.1", "arm64")


class Compiler:
    """Copies, and counts."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, package: Path, target: Path) -> None:
        self.runs += 1
        shutil.copytree(package, target)


@pytest.fixture
def package() -> Package:
    return read("coreml-fp16/image.mlpackage/Manifest.json", bundles.files())


@pytest.fixture
def compiler() -> Compiler:
    return Compiler()


def kept(private_cache: Path) -> list[str]:
    return sorted(path.name for path in (private_cache / "coreml").iterdir())


def test_second_time_is_taken_from_the_cache(package: Package, compiler: Compiler) -> None:
    first, second = compiled(package, FACTS, compiler), compiled(package, FACTS, compiler)
    assert compiler.runs == 1 and first.path == second.path
    assert first.path.name == "image.mlmodelc"
    assert (first.path / package.model).read_bytes() == package.specification
    first.close()
    assert first.path.is_dir()


def test_other_versions_and_other_packages_are_compiled_anew(package: Package, compiler: Compiler) -> None:
    compiled(package, FACTS, compiler)
    compiled(package, ("9.1, macOS 15.1", "arm64"), compiler)
    compiled(Package(package.name, package.model, dict(package.files) | {package.model: b"other"}), FACTS, compiler)
    assert compiler.runs == 3


def change(path: Path) -> None:
    path.write_bytes(b"x" + path.read_bytes()[1:])


def link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize(
    "harm",
    [
        change,
        Path.unlink,
        link,
        lambda path: path.with_name("more").write_bytes(b""),
        lambda path: shutil.rmtree(path.parents[2]),
    ],
)
def test_what_was_changed_is_made_again(package: Package, compiler: Compiler, harm: Callable[[Path], object]) -> None:
    path = compiled(package, FACTS, compiler).path
    harm(path / package.model)
    again = compiled(package, FACTS, compiler).path
    assert compiler.runs == 2
    assert (again / package.model).read_bytes() == package.specification
    assert compiled(package, FACTS, compiler).path == again and compiler.runs == 2


def test_compiler_that_fails_leaves_nothing(package: Package, private_cache: Path) -> None:
    def fail(package: Path, target: Path) -> None:
        target.mkdir()
        (target / "half").write_bytes(b"")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        compiled(package, FACTS, fail)
    assert kept(private_cache) == []


def test_folders_that_nothing_names_are_swept_after_a_day(
    package: Package, compiler: Compiler, private_cache: Path
) -> None:
    path = compiled(package, FACTS, compiler).path
    old, young = private_cache / "coreml" / "old", private_cache / "coreml" / "young"
    old.mkdir()
    young.mkdir()
    for folder in (old, path.parent):
        os.utime(folder, (0, 0))
    compiled(package, ("another", "machine"), compiler)
    assert not old.exists() and young.exists() and path.exists()


def test_without_a_cache_it_lives_as_long_as_the_session(
    package: Package, compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(cache.CacheWarning):
        made = compiled(package, FACTS, compiler)
    assert (made.path / package.model).is_file()
    made.close()
    assert not made.path.exists()


def test_names_in_the_cache_are_fingerprints(package: Package, compiler: Compiler, private_cache: Path) -> None:
    path = compiled(package, FACTS, compiler).path
    assert path.is_relative_to(private_cache) and path.parent.stat().st_mode & 0o077 == 0
    assert path.suffix == coreml_compiled.SUFFIX
