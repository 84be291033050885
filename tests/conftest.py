"""Fixtures that every kind of test shares."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a cache directory of its own, so that none sees another's engines."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EDGECLIP_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session", autouse=True)
def no_device_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models that many tests share are not loaded by what the user has tuned either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECLIP_TUNED", str(tmp_path_factory.mktemp("no-tuned")))
        yield


@pytest.fixture(autouse=True)
def private_device_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a folder of its own for what `edgeclip tune` keeps, so that none loads what the user has tuned."""
    folder = tmp_path_factory.mktemp("tuned")
    monkeypatch.setenv("EDGECLIP_TUNED", str(folder))
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real images and captions, at `EDGECLIP_DATA`; skips where they are absent."""
    path = Path(os.environ.get("EDGECLIP_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not (path / "eval").is_dir():
        pytest.skip(f"EDGECLIP_DATA: no data folder at {path}")
    return path


@pytest.fixture(scope="session")
def bpe_path() -> Path:
    """OpenAI's BPE merges, which `make setup` fetches; skips where they are absent."""
    path = ROOT / "build" / "tokenizer" / "open_clip" / "bpe_simple_vocab_16e6.txt.gz"
    if not path.is_file():
        pytest.skip(f"no BPE merges at {path}: run `make setup`")
    with gzip.open(path) as file:
        file.read(1)
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP checkpoint in Hugging Face form, with its tokenizer."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("tiny") / "tiny-clip"
    tiny.checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle: both targets, fp32 and fp16. Tests must not write to it."""
    from tests import tiny

    output = tmp_path_factory.mktemp("bundle") / "tiny.edgeclip"
    tiny.bundle(tiny_checkpoint, output)
    return output
