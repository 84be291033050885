"""The Core ML reference as a backend: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip import backends
from edgeclip.backends import coreml_inputs, coreml_reference
from edgeclip.backends.base import Array, Files, Options, Session
from edgeclip.backends.mil_program import ArrayFeature
from edgeclip.errors import (
    BundlePathError,
    InputShapeError,
    ModelClosedError,
    TargetLoadError,
    TargetUnavailableError,
)
from edgeclip.manifest import Manifest
from edgeclip.outcome import JUDGES
from edgeclip.selection import select
from tests import bundles, coreml
from tests.mil import mb, proto

RNG = np.random.default_rng(0)
ADDED = np.ones((1, 1, 4, 4), np.float32)


def opened(files: Files, tower: Any, **changes: Any) -> Session:
    return coreml_reference.open(coreml.artifact(files, tower, **changes), dict(files), Options())


def pixels(count: int, size: int = coreml.SIZE) -> Array:
    return RNG.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def ids(count: int, length: int) -> Array:
    return RNG.integers(1, 20, (count, length), dtype=np.int32)


@pytest.fixture
def image(tmp_path: Path) -> Files:
    return coreml.image_files(tmp_path)


@pytest.fixture
def text(tmp_path: Path) -> Files:
    return coreml.text_files(tmp_path)


def test_images_go_in_one_by_one(image: Files) -> None:
    given = pixels(5)
    found = opened(image, "image").run(given)
    assert found.dtype == np.float32 and found.shape == (5, coreml.WIDTH)
    np.testing.assert_allclose(found, coreml.embed_images(given), atol=1e-5)


def test_a_model_that_wants_bgr_gets_bgr(tmp_path: Path) -> None:
    given = pixels(2)
    found = opened(coreml.image_files(tmp_path, "BGR"), "image").run(given)
    np.testing.assert_allclose(found, coreml.embed_images(given[..., ::-1]), atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
@pytest.mark.parametrize("length", [3, coreml.CONTEXT])
def test_texts_are_split_into_batches_that_the_model_takes_and_filled_up(text: Files, count: int, length: int) -> None:
    given = ids(count, length)
    np.testing.assert_allclose(opened(text, "text").run(given), coreml.embed_ids(given), atol=1e-5)


def test_texts_go_in_as_few_batches_as_the_model_takes() -> None:
    array = ArrayFeature(tuple((batch, coreml.CONTEXT) for batch in coreml.BATCHES))
    found = [(piece.shape, count) for piece, count in coreml_inputs.rows(ids(11, 5), array)]
    assert found == [((4, 7), 4), ((4, 7), 4), ((3, 7), 3)]
    only = ArrayFeature(((4, 9), (4, 7)))
    assert [(p.shape, count) for p, count in coreml_inputs.rows(ids(5, 7), only)] == [((4, 7), 4), ((4, 7), 1)]


@pytest.mark.parametrize("ranges", [((1, 8), (coreml.CONTEXT, coreml.CONTEXT)), ((1, 8), (1, 64)), ((2, -1), (4, -1))])
def test_shapes_may_be_ranges(tmp_path: Path, ranges: Any) -> None:
    session = opened(coreml.text_files(tmp_path, ranges), "text")
    for given in (ids(1, 3), ids(19, 5)):
        np.testing.assert_allclose(session.run(given), coreml.embed_ids(given), atol=1e-5)


def test_no_rows_are_no_embeddings(image: Files, text: Files) -> None:
    assert opened(image, "image").run(pixels(0)).shape == (0, coreml.WIDTH)
    assert opened(text, "text").run(ids(0, 3)).shape == (0, coreml.WIDTH)


def test_input_is_not_written_to_and_output_belongs_to_the_caller(image: Files) -> None:
    session, given = opened(image, "image"), pixels(2)
    before = given.copy()
    first = session.run(given)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(session.run(given), kept)
    np.testing.assert_array_equal(given, before)


def test_threads_share_a_session(text: Files) -> None:
    session = opened(text, "text")
    inputs = [ids(9, coreml.CONTEXT) for _ in range(8)]
    found: list[Any] = [None] * len(inputs)

    def call(index: int) -> None:
        for _ in range(20):
            found[index] = session.run(inputs[index])

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for given, got in zip(inputs, found, strict=True):
        np.testing.assert_allclose(got, coreml.embed_ids(given), atol=1e-5)


def test_files_are_consumed(image: Files) -> None:
    given = dict(image) | {"other": b""}
    coreml_reference.open(coreml.artifact(image, "image"), given, Options())
    assert list(given) == ["other"]


def test_closed_session_refuses(image: Files) -> None:
    session = opened(image, "image")
    session.close()
    session.close()
    with pytest.raises(ModelClosedError, match="closed"):
        session.run(pixels(1))


def test_images_of_another_size_are_refused(image: Files) -> None:
    with pytest.raises(InputShapeError, match=r"pixels \[1, 9, 9, 3\], the model takes \[B, 6, 6, 3\]"):
        opened(image, "image").run(pixels(1, 9))


def test_texts_that_are_too_long_are_refused(text: Files) -> None:
    with pytest.raises(InputShapeError, match="8 token ids a row, the model takes rows of 7"):
        opened(text, "text").run(ids(2, 8))


def test_output_that_is_not_what_the_manifest_says_is_refused(image: Files) -> None:
    with pytest.raises(TargetLoadError, match=r"output of shape \[1, 4\], 'embeddings' is stated as \[1, 5\]"):
        opened(image, "image", width=5).run(pixels(1))


@pytest.mark.parametrize("options", [Options(device="cuda"), Options(compute="f16")])
def test_other_devices_and_arithmetic_are_refused(image: Files, options: Options) -> None:
    with pytest.raises(TargetUnavailableError, match=r"coreml-reference (has no device 'cuda'|computes in the types)"):
        coreml_reference.open(coreml.artifact(image, "image"), dict(image), options)


def test_operation_that_is_not_known_is_named_when_the_model_is_loaded(tmp_path: Path) -> None:
    described = proto.Model_pb2.ModelDescription()
    described.input.add(name="ids").type.multiArrayType.shape.extend([1, 1, 4, 4])
    files = coreml.package(
        lambda ids: mb.upsample_bilinear(x=mb.add(x=ids, y=ADDED), scale_factor_height=2),
        [mb.TensorSpec((1, 1, 4, 4))],
        described,
        tmp_path,
        "text",
    )
    with pytest.raises(TargetLoadError, match="does not know: upsample_bilinear"):
        opened(files, "text")


def test_program_with_weights_outside_the_package_is_refused(image: Files) -> None:
    model = next(name for name in image if name.endswith(".mlmodel"))
    inside, outside = b"@model_path/weights/weight.bin", b"@model_path/../../secret/w.bin"
    assert len(inside) == len(outside) and inside in bytes(image[model])
    files = image | {model: bytes(image[model]).replace(inside, outside)}
    with pytest.raises(BundlePathError, match=r"weights in '@model_path/\.\./\.\./secret/w\.bin', not in the package"):
        opened(files, "image")


def manifest() -> Manifest:
    files = ["coreml-fp16/image.mlpackage/Manifest.json"]
    return bundles.manifest(artifacts=(bundles.artifact("image", "coreml", "fp16", files),))


def test_auto_never_takes_the_reference() -> None:
    if backends.installed("coreml"):
        pytest.skip("a Mac: `auto` takes Core ML itself")
    with pytest.raises(TargetUnavailableError, match=r"nothing here runs .* \(.*--backend coreml-reference"):
        select(manifest())
    assert select(manifest(), backend="coreml-reference").backend == "coreml-reference"


def test_coreml_says_that_it_needs_macos_and_what_to_do_elsewhere() -> None:
    if backends.installed("coreml"):
        pytest.skip("a Mac: Core ML is there")
    with pytest.raises(TargetUnavailableError, match=r"it needs macOS; .* \(.*--backend coreml-reference"):
        backends.get("coreml")


def test_the_reference_judges_core_ml_artifacts() -> None:
    assert JUDGES["coreml"] == coreml_reference.NAME
