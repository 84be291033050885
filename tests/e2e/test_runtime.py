"""The runtime on real engines: the same embedding whatever the batch, thread or process; errors that say what to do."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgeclip
from edgeclip import backends
from edgeclip.errors import (
    ForkedModelError,
    ImageDecodeError,
    InputShapeError,
    ModelClosedError,
    NonFiniteError,
    TargetUnavailableError,
    TextInputError,
    UsageError,
)
from tests import tiny

BACKENDS = ["openvino", "onnxruntime"]


@pytest.fixture(scope="module", params=BACKENDS)
def model(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[edgeclip.Model]:
    with edgeclip.load(tiny_bundle, backend=request.param) as loaded:
        yield loaded


def picture(seed: int, size: tuple[int, int] = (80, 70)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def png(seed: int) -> bytes:
    out = io.BytesIO()
    picture(seed).save(out, "PNG")
    return out.getvalue()


def test_embeddings_are_float32_rows_of_unit_length(model: edgeclip.Model) -> None:
    images = model.encode_image([picture(i) for i in range(5)])
    texts = model.encode_text(["a cat", "the dog"])
    assert images.shape == (5, 48) and texts.shape == (2, 48)
    assert images.dtype == texts.dtype == np.float32
    assert np.abs(np.linalg.norm(np.concatenate([images, texts]), axis=1) - 1).max() < 1e-5


def test_every_kind_of_input_gives_the_same_embedding(model: edgeclip.Model, tmp_path: Path) -> None:
    data = png(1)
    path = tmp_path / "one.png"
    path.write_bytes(data)
    kinds = [path, str(path), data, picture(1), np.asarray(picture(1)), np.asarray(picture(1)) / np.float32(255)]
    rows = model.encode_image(kinds)
    assert np.abs(rows - rows[0]).max() < 1e-6


def test_one_image_alone_is_a_row(model: edgeclip.Model) -> None:
    assert model.encode_image(picture(0)).shape == (1, 48)
    assert model.encode_image(np.zeros((3, 20, 20, 3), np.uint8)).shape == (3, 48)


def test_nothing_gives_no_rows(model: edgeclip.Model) -> None:
    assert model.encode_image([]).shape == (0, 48)
    assert model.encode_text([]).shape == (0, 48)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 64])
def test_the_split_into_batches_does_not_matter(model: edgeclip.Model, batch_size: int) -> None:
    images = [picture(i) for i in range(11)]
    texts = ["the " * i + "cat" for i in range(11)]
    for whole, split in (
        (model.encode_image(images), model.encode_image(iter(images), batch_size=batch_size)),
        (model.encode_text(texts), model.encode_text(texts, batch_size=batch_size)),
    ):
        assert (whole * split).sum(axis=1).min() > 0.99999


def test_a_generator_is_streamed_not_collected(model: edgeclip.Model) -> None:
    taken = 0

    def endless() -> Iterator[Image.Image]:
        nonlocal taken
        while True:
            taken += 1
            yield picture(taken % 7)

    stream = model.stream_image(endless(), batch_size=4)
    first = next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert first.indices == [0, 1, 2, 3]
    assert taken <= 4 * 4


def test_bad_images_are_named_by_position(model: edgeclip.Model) -> None:
    with pytest.raises(ImageDecodeError, match=r"image 2: .*no such file"):
        model.encode_image([picture(0), picture(1), "absent.jpg"])


def test_bad_images_can_be_skipped_in_order(model: edgeclip.Model) -> None:
    images: list[object] = [png(i) for i in range(100)]
    bad = sorted(np.random.default_rng(0).choice(100, 7, replace=False).tolist())
    for i in bad:
        images[i] = b"not an image"
    rows, skipped = model.encode_image(images, on_error="skip", batch_size=8)  # type: ignore[call-overload]
    assert [s.index for s in skipped] == bad
    good = [png(i) for i in range(100) if i not in bad]
    assert np.abs(rows - model.encode_image(good, batch_size=8)).max() < 1e-5


def test_all_images_bad_gives_no_rows(model: edgeclip.Model) -> None:
    rows, skipped = model.encode_image([b"x", b"y", b"z"], on_error="skip")
    assert rows.shape == (0, 48) and len(skipped) == 3


def test_inputs_are_never_written_to(model: edgeclip.Model) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 60, 60, 3), dtype=np.uint8)
    ids = model.tokenize(["a cat", "the dog"])
    before = pixels.tobytes(), ids.tobytes()
    first = model.encode_pixels(pixels)
    kept = first.copy()
    for i in range(200):
        model.encode_pixels(pixels[: 1 + i % 4])
        model.encode_ids(ids[: 1 + i % 2])
    assert (pixels.tobytes(), ids.tobytes()) == before
    assert np.array_equal(first, kept)


def test_threads_get_what_one_thread_gets(model: edgeclip.Model) -> None:
    check_threads(model, threads=8, calls=100)


@pytest.mark.nightly
def test_many_threads_get_what_one_thread_gets(model: edgeclip.Model) -> None:
    check_threads(model, threads=32, calls=1000)


def check_threads(model: edgeclip.Model, *, threads: int, calls: int) -> None:
    pixels = [np.asarray(picture(i, (60, 60)))[None] for i in range(threads)]
    ids = [model.tokenize(["the cat " * (i + 1)]) for i in range(threads)]
    expected = [(model.encode_pixels(p), model.encode_ids(t)) for p, t in zip(pixels, ids, strict=True)]

    def work(i: int) -> int:
        wrong = 0
        for _ in range(calls):
            wrong += not np.array_equal(model.encode_pixels(pixels[i]), expected[i][0])
            wrong += not np.array_equal(model.encode_ids(ids[i]), expected[i][1])
        return wrong

    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(work, range(threads))) == [0] * threads


def test_trimming_the_context_changes_nothing(model: edgeclip.Model) -> None:
    ids = model.tokenize(["a cat"])
    session = model._sessions["text"]
    assert np.abs(session.run(ids) - session.run(ids[:, :8])).max() < 1e-6


def test_both_backends_agree(tiny_bundle: Path) -> None:
    rows = []
    for name in BACKENDS:
        with edgeclip.load(tiny_bundle, backend=name) as one:
            rows.append(np.concatenate([one.encode_image([picture(3)]), one.encode_text(["the cat"])]))
    assert (rows[0] * rows[1]).sum(axis=1).min() > 0.99999


def test_info_says_what_runs_and_why(tiny_bundle: Path) -> None:
    with edgeclip.load(tiny_bundle, threads=1) as one:
        info = one.info
    assert (info.backend, info.precision, info.compute, info.device, info.threads) == (
        "openvino",
        "fp32",
        "f32",
        "cpu",
        1,
    )
    assert "first of openvino fp32" in info.reason
    assert info.bundle.startswith("sha256:")
    assert set(info.artifacts) == {"image", "text"}


def test_openvino_computes_in_f32_unless_asked(tiny_bundle: Path) -> None:
    from edgeclip.golden import Golden

    with edgeclip.load(tiny_bundle, backend="openvino") as one:
        golden = Golden.from_bytes(one.bundle.read(one.bundle.manifest.golden))
        assert np.abs(one.encode_pixels(golden.pixels) - golden.image_embeddings).max() < 1e-4
        kind = one._sessions["image"]._compiled.get_property("INFERENCE_PRECISION_HINT")  # type: ignore[attr-defined]
    assert kind.get_type_name() == "f32"


def test_arithmetic_that_the_device_lacks_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(TargetUnavailableError, match="onnxruntime computes in the types of the graph, not in bf16"):
        edgeclip.load(tiny_bundle, backend="onnxruntime", compute="bf16")


def test_a_missing_device_is_refused_and_stdout_stays_clean(
    tiny_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for backend in BACKENDS:
        with pytest.raises(TargetUnavailableError, match=f"{backend} has no device 'cuda' here; it has: cpu"):
            edgeclip.load(tiny_bundle, backend=backend, device="cuda")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_library_names_the_command_that_installs_it(
    tiny_bundle: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = backends.BACKENDS[backend]
    absent = backends.Entry(row.module, row.targets, "a_library_that_is_absent", row.extra)
    monkeypatch.setitem(backends.BACKENDS, backend, absent)
    with pytest.raises(TargetUnavailableError, match=rf"pip install 'edgeclip\[{row.extra}\]'") as caught:
        edgeclip.load(tiny_bundle, backend=backend)
    other = next(name for name in BACKENDS if name != backend)
    assert f"available here: {other}" in str(caught.value)


def test_auto_takes_what_is_installed(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = backends.BACKENDS["openvino"]
    monkeypatch.setitem(
        backends.BACKENDS, "openvino", backends.Entry(row.module, row.targets, "absent_library", "openvino")
    )
    with edgeclip.load(tiny_bundle) as one:
        assert one.info.backend == "onnxruntime"


def test_openvino_runs_onnx_where_nothing_else_does(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "onnx.edgeclip"
    tiny.bundle(tiny_checkpoint, path, targets=("onnx",), precisions=("fp32", "fp16"))
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    with edgeclip.load(path) as native:
        assert native.info.backend == "onnxruntime"
        expected = native.encode_image(photo), native.encode_text("a cat")
    monkeypatch.setattr(backends, "installed", lambda name: name == "openvino")
    with edgeclip.load(path) as borrowed:
        assert (borrowed.info.backend, borrowed.info.artifacts["image"]) == ("openvino", "onnx-fp32/image.onnx")
        np.testing.assert_allclose(borrowed.encode_image(photo), expected[0], atol=1e-5)
        np.testing.assert_allclose(borrowed.encode_text("a cat"), expected[1], atol=1e-5)
    with edgeclip.load(path, precision="fp16") as half:
        assert half.info.compute == "f32" and float((half.encode_image(photo) * expected[0]).sum()) >= 0.999
    with edgeclip.load(tiny_bundle, backend="openvino") as own:
        assert own.info.artifacts["image"] == "openvino-fp32/image.xml"


def test_unknown_names_are_usage_errors(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown backend 'tpu'.*auto, tensorrt, openvino, onnxruntime"):
        edgeclip.load(tiny_bundle, backend="tpu")
    with pytest.raises(UsageError, match="unknown precision 'fp8'"):
        edgeclip.load(tiny_bundle, precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"the bundle has no artifact for: w8a8.*onnx-fp32"):
        edgeclip.load(tiny_bundle, precision="w8a8")


@pytest.mark.parametrize("backend", BACKENDS)
def test_between_calls_an_engine_leaves_the_cpu_to_others(tiny_bundle: Path, backend: str) -> None:
    """ONNX Runtime's threads would otherwise wait for the next call by spinning, which slows the decoding of images."""
    with edgeclip.load(tiny_bundle, backend=backend, threads=2, tower="image") as model:
        side = model.bundle.manifest.preprocess.size
        pixels = np.zeros((1, side, side, 3), np.uint8)
        burnt_s = 0.0
        for _ in range(40):
            model.encode_pixels(pixels)
            before = time.process_time()
            time.sleep(0.01)
            burnt_s += time.process_time() - before
    assert burnt_s < 0.3 * 40 * 0.01


def test_one_tower_loads_alone(tiny_bundle: Path) -> None:
    with edgeclip.load(tiny_bundle, tower="image") as one:
        assert one.encode_image(picture(0)).shape == (1, 48)
        with pytest.raises(UsageError, match="the text tower is not loaded"):
            one.encode_text(["a cat"])


def test_a_closed_model_says_so(tiny_bundle: Path) -> None:
    one = edgeclip.load(tiny_bundle)
    one.close()
    one.close()
    with pytest.raises(ModelClosedError, match="this model is closed"):
        one.encode_image(picture(0))


def test_a_model_pickles_as_the_recipe_that_loads_it(model: edgeclip.Model) -> None:
    data = pickle.dumps(model)
    assert len(data) < 2000
    for again in (pickle.loads(data), copy.deepcopy(model)):
        assert np.array_equal(again.encode_image(picture(0)), model.encode_image(picture(0)))
        assert again.info.backend == model.info.backend


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_at_once(model: edgeclip.Model) -> None:
    model.encode_image(picture(0))
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            model.encode_image(picture(0))
            writer.send("no error")
        except ForkedModelError as exc:
            writer.send(str(exc))
        finally:
            os._exit(0)
    assert reader.poll(5)
    assert "loaded before the process forked" in reader.recv()
    os.waitpid(child, 0)
    assert model.encode_image(picture(0)).shape == (1, 48)


def test_non_finite_embeddings_are_an_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with edgeclip.load(tiny_bundle) as one:

        class Broken:
            engine = one._sessions["image"].engine

            def run(self, inputs: object) -> np.ndarray:  # type: ignore[type-arg]
                return np.full((1, 48), np.nan, np.float32)

            def close(self) -> None: ...

        monkeypatch.setitem(one._sessions, "image", Broken())
        with pytest.raises(NonFiniteError, match="the image tower returned NaN or infinity"):
            one.encode_image(picture(0))


def test_text_that_is_not_text_is_named(model: edgeclip.Model) -> None:
    with pytest.raises(TextInputError, match="text 1"):
        model.encode_text(["fine", None])  # type: ignore[list-item]


def test_something_that_is_no_image_is_named(model: edgeclip.Model) -> None:
    with pytest.raises(InputShapeError, match="image 0"):
        model.encode_image([None])  # type: ignore[list-item]
    with pytest.raises(InputShapeError, match="expected an image or an iterable of images, got int"):
        model.encode_image(3)  # type: ignore[arg-type]


def test_load_verifies_once_and_remembers(
    tiny_bundle: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgeclip.verify as verification

    edgeclip.load(tiny_bundle, verify=True).close()
    assert len(list((private_cache / "verified").iterdir())) == 1
    monkeypatch.setattr(verification, "verify", lambda model: pytest.fail("verified a second time"))
    edgeclip.load(tiny_bundle, verify=True).close()


def test_loading_starts_no_other_process_and_writes_only_to_the_cache(tiny_bundle: Path, tmp_path: Path) -> None:
    code = """
import os, sys
bad = []
def hook(event, args):
    if event.startswith(("subprocess", "os.system", "os.posix_spawn", "os.fork", "os.exec", "socket.")):
        bad.append((event, str(args)[:100]))
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        if not str(args[0]).startswith(os.environ["EDGECLIP_CACHE"]) and not isinstance(args[0], int):
            bad.append((event, str(args)[:100]))
import edgeclip
sys.addaudithook(hook)
with edgeclip.load(sys.argv[1], backend=sys.argv[2]) as model:
    model.classifier(["cat", "dog"])
    model.encode_image([sys.argv[3]])
print(bad)
"""
    image = tmp_path / "x.png"
    image.write_bytes(png(0))
    for backend in BACKENDS:
        done = subprocess.run(
            [sys.executable, "-B", "-c", code, str(tiny_bundle), backend, str(image)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == "[]"


def test_the_process_ends_well_with_calls_in_flight(tiny_bundle: Path) -> None:
    code = """
import sys, threading, time
import numpy as np
import edgeclip
model = edgeclip.load(sys.argv[1], backend=sys.argv[2])
def loop():
    while True:
        model.encode_pixels(np.zeros((1, 60, 60, 3), np.uint8))
for _ in range(3):
    threading.Thread(target=loop, daemon=True).start()
time.sleep(0.3)
sys.exit(7)
"""
    for backend in BACKENDS:
        command = [sys.executable, "-c", code, str(tiny_bundle), backend]
        done = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True)
        assert done.returncode == 7, done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_opening_and_closing_leaks_nothing(tiny_bundle: Path, backend: str) -> None:
    def state() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc: open files cannot be counted")
    edgeclip.load(tiny_bundle, backend=backend).close()
    before = state()
    for _ in range(50):
        edgeclip.load(tiny_bundle, backend=backend).close()
    assert state() == before
