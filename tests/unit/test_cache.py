"""The user's cache: never a reason to fail, never trusted further than its digests."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgeclip import cache
from edgeclip.textcache import TextCache, key


def test_what_is_written_is_read(private_cache: Path) -> None:
    cache.write("a/b.bin", b"payload")
    assert cache.read("a/b.bin") == b"payload"
    assert cache.read("absent") is None
    assert not list(private_cache.rglob(".tmp-*"))


@pytest.mark.parametrize("damage", [b"", b"x", b"\0" * 39])
def test_a_damaged_entry_is_no_entry(private_cache: Path, damage: bytes) -> None:
    cache.write("a.bin", b"payload")
    (private_cache / "a.bin").write_bytes(damage)
    assert cache.read("a.bin") is None


def test_one_changed_byte_is_found(private_cache: Path) -> None:
    cache.write("a.bin", b"payload")
    data = bytearray((private_cache / "a.bin").read_bytes())
    data[-1] ^= 1
    (private_cache / "a.bin").write_bytes(data)
    assert cache.read("a.bin") is None


def test_a_directory_that_others_can_write_to_is_not_used(private_cache: Path) -> None:
    cache.write("a.bin", b"payload")
    private_cache.chmod(0o777)
    with pytest.warns(cache.CacheWarning, match=r"can be written by other users \(chmod go-w"):
        assert cache.read("a.bin") is None


def test_a_directory_of_another_user_is_not_used(private_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: private_cache.stat().st_uid + 1)
    with pytest.warns(cache.CacheWarning, match="belongs to another user"):
        assert cache.directory() is None


def test_a_place_that_cannot_be_made_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(cache.CacheWarning, match="working without a cache: .*Not a directory"):
        cache.write("a.bin", b"payload")


def test_no_home_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECLIP_CACHE")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.warns(cache.CacheWarning, match="no home directory"):
        assert cache.directory() is None


def test_a_model_loads_without_a_cache_and_warns_once(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code = "import sys, edgeclip\nm = edgeclip.load(sys.argv[1])\nfor _ in range(3): m.classifier(['cat', 'dog'])\nprint('fine')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bundle)],
        capture_output=True, text=True, check=True, env=os.environ | {"EDGECLIP_CACHE": str(tmp_path / "file" / "x")},
    )  # fmt: skip
    assert done.stdout == "fine\n"
    assert done.stderr.count("CacheWarning: working without a cache") == 1


def rows(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    return rng.integers(0, 99, (n, 7), dtype=np.int32), rng.normal(size=(n, 5)).astype(np.float32)


def test_text_embeddings_come_back_as_they_were() -> None:
    ids, embeddings = rows(4)
    one = TextCache("f", 5)
    assert one.get(ids) == {}
    one.put(zip(map(key, ids), embeddings, strict=True))
    found = TextCache("f", 5).get(ids)
    assert all(np.array_equal(found[key(i)], e) for i, e in zip(ids, embeddings, strict=True))


def test_text_embeddings_of_another_model_do_not() -> None:
    ids, embeddings = rows(2)
    TextCache("f", 5).put(zip(map(key, ids), embeddings, strict=True))
    assert TextCache("g", 5).get(ids) == {}
    assert TextCache("f", 6).get(ids) == {}


def test_a_torn_text_cache_is_made_anew(private_cache: Path) -> None:
    ids, embeddings = rows(2)
    one = TextCache("f", 5)
    (private_cache / "text").mkdir()
    (private_cache / "text" / "f.sqlite").write_bytes(b"not a database, and long enough to tell" * 40)
    assert one.get(ids) == {}
    one.put(zip(map(key, ids), embeddings, strict=True))  # drops the file
    one.put(zip(map(key, ids), embeddings, strict=True))
    assert len(one.get(ids)) == len({key(i) for i in ids})


def test_many_threads_share_a_text_cache() -> None:
    one = TextCache("f", 5)

    def work(seed: int) -> None:
        ids, embeddings = rows(20, seed)
        one.put(zip(map(key, ids), embeddings, strict=True))
        assert len(one.get(ids)) == 20

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(one.get(rows(20, seed)[0])) == 20 for seed in range(8))


def test_compiled_forms_are_kept_where_compiling_is_slow(
    tiny_bundle: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgeclip
    from edgeclip.backends import ov

    monkeypatch.setattr(ov, "COMPILES_FAST", set())  # as if the CPU were an accelerator
    pixels = np.random.default_rng(0).integers(0, 256, (1, 60, 60, 3), dtype=np.uint8)
    with edgeclip.load(tiny_bundle, backend="openvino", tower="image") as model:
        first = model.encode_pixels(pixels)
    (blob,) = (private_cache / "openvino").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(ov, "_read", lambda *a: pytest.fail("compiled a second time"))
        with edgeclip.load(tiny_bundle, backend="openvino", tower="image") as model:
            assert np.array_equal(model.encode_pixels(pixels), first)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    with edgeclip.load(tiny_bundle, backend="openvino", tower="image") as model:
        assert np.array_equal(model.encode_pixels(pixels), first)
    assert blob.read_bytes() != bytes(data)


def test_openvino_comes_without_telemetry_and_keeps_its_converter() -> None:
    code = """
import sys
from edgeclip.backends.ov_library import ov
print("openvino.tools.ovc" in sys.modules, sys.modules["openvino_telemetry"], callable(ov.convert_model))
try:
    ov.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False None True\nmodule 'openvino' has no attribute 'nothing'\n"
