"""Core ML programs that are damaged or lie: each an error that says so, none a crash, none a wrong embedding unsaid."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.backends import coreml_reference, mil_program
from edgeclip.backends.base import Options
from edgeclip.backends.mil_executor import Executor
from edgeclip.backends.mil_weights import unpacked
from edgeclip.errors import EdgeClipError, TargetLoadError
from tests import coreml, mil
from tests.bundles import field
from tests.mil import IOS16, mb, proto

X = np.zeros((2, 3), np.float32)
LARGE = np.arange(12, dtype=np.float32)


def program(change: Any = None, build: Any = None) -> bytes:
    """A small program, changed as a protobuf message."""
    model = proto.Model_pb2.Model()
    model.ParseFromString(small(build or (lambda x: mb.add(x=x, y=np.float32(1)))))
    if change is not None:
        change(model)
    return bytes(model.SerializeToString())


def small(build: Any) -> bytes:
    return mil.specification(build, [X], IOS16, Path("unused"))


def block(model: Any) -> Any:
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def test_what_coremltools_writes_is_read() -> None:
    read = mil_program.parse(program())
    assert [str(kind) for kind in read.inputs.values()] == ["fp32 [2, 3]"]
    assert [operation.type for operation in read.operations] == ["const", "add"]
    assert str(read.operations[1]).startswith("operation add (add_")


def several(model: Any) -> None:
    model.mlProgram.functions["other"].CopyFrom(model.mlProgram.functions["main"])


def control(model: Any) -> None:
    block(model).operations[1].blocks.add()


def variadic(model: Any) -> None:
    block(model).operations[1].outputs[0].type.tensorType.rank = -1


def unknown_type(model: Any) -> None:
    block(model).operations[1].outputs[0].type.tensorType.dataType = 999


def a_list(model: Any) -> None:
    block(model).operations[1].outputs[0].type.listType.type.tensorType.rank = 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (several, r"functions \['main', 'other'\]"),
        (control, "operation add: control flow is not run"),
        (variadic, "number of axes is not fixed"),
        (unknown_type, "data type 999"),
        (a_list, "not a tensor"),
        (lambda model: model.ClearField("mlProgram"), "not an ML program"),
        (lambda model: model.description.state.add(), "several functions, or state"),
        (lambda model: setattr(model.mlProgram.functions["main"], "opset", "x"), "no block for its opset 'x'"),
    ],
)
def test_program_that_is_not_run_here_is_refused(change: Any, match: str) -> None:
    with pytest.raises(TargetLoadError, match=match):
        mil_program.parse(program(change))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\xff" * 30, "a number without an end"),
        (b"\x12\x7f", "field 2 is longer than what it lies in"),
        (b"\x0b", "wire type 3"),
        (field(502, 7), "field 502 is written in a way that does not fit it"),
        (field(502, field(2, field(1, b"\xff"))), "a name that is not UTF-8"),
        (b"", "not an ML program"),
        (bytes((1 << 24) + 1), "a program of 16777217 bytes, the limit is 16777216"),
    ],
)
def test_what_is_no_protobuf_of_a_model_is_refused(data: bytes, match: str) -> None:
    with pytest.raises(TargetLoadError, match=match):
        mil_program.parse(data)


def rename(model: Any) -> None:
    block(model).operations[1].inputs["x"].arguments[0].name = "nowhere"


def repeat(model: Any) -> None:
    block(model).operations.append(block(model).operations[1])


def parameter(model: Any) -> None:
    block(model).operations[1].inputs["z"].CopyFrom(block(model).operations[1].inputs["x"])


def two_values(model: Any) -> None:
    argument = block(model).operations[1].inputs["x"].arguments
    argument.append(argument[0])


def strange(model: Any) -> None:
    block(model).operations[1].type = "custom_layer"


def no_output(model: Any) -> None:
    block(model).outputs[:] = ["nowhere"]


def short(model: Any) -> None:
    value = block(model).operations[0].attributes["val"]
    value.type.tensorType.rank = 1
    value.type.tensorType.dimensions.add().constant.size = 5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (rename, "operation add .*: its input 'nowhere' is not there yet"),
        (repeat, "operation add .*: the name 'add_.*' is taken"),
        (parameter, "operation add .*: got an unexpected keyword argument 'z'"),
        (two_values, "operation add .*: 2 values for x"),
        (strange, "operations that the reference does not know: custom_layer"),
        (no_output, "no value for its output nowhere"),
        (short, r"4 bytes for fp32 \[5\], 20 expected"),
    ],
)
def test_program_that_makes_no_sense_is_refused_when_it_is_loaded(change: Any, match: str) -> None:
    with pytest.raises(TargetLoadError, match=match):
        Executor(mil_program.parse(program(change)), {})


def misstated(model: Any) -> None:
    block(model).operations[1].outputs[0].type.tensorType.dimensions[0].constant.size = 7


def test_result_of_another_shape_than_stated_is_refused() -> None:
    executor = Executor(mil_program.parse(program(misstated)), {})
    with pytest.raises(TargetLoadError, match=r"operation add .*has shape \[2, 3\], but is stated as fp32 \[7, 3\]"):
        executor.run({"x": X})


def test_input_of_another_shape_than_stated_is_refused() -> None:
    executor = Executor(mil_program.parse(program()), {})
    with pytest.raises(TargetLoadError, match=r"input 'x' has shape \[3, 2\], but is stated as fp32 \[2, 3\]"):
        executor.run({"x": X.T})


# --- files of weights -----------------------------------------------------------------------------------------------


def with_weights(folder: Path, change: Any = None) -> tuple[bytes, bytearray]:
    model = proto.Model_pb2.Model()
    model.ParseFromString(mil.specification(lambda x: mb.add(x=x, y=LARGE), [LARGE], IOS16, folder))
    if change is not None:
        change(block(model).operations[0].attributes["val"].blobFileValue)
    return bytes(model.SerializeToString()), bytearray((folder / "weight.bin").read_bytes())


def load(model: bytes, weights: bytes | bytearray) -> Executor:
    return Executor(mil_program.parse(model), {mil.WEIGHTS: bytes(weights)})


def test_constants_are_read_from_the_file_of_weights(tmp_path: Path) -> None:
    model, weights = with_weights(tmp_path)
    (found,) = load(model, weights).run({"x": LARGE}).values()
    np.testing.assert_array_equal(found, 2 * LARGE)


@pytest.mark.parametrize(
    ("start", "data", "match"),
    [
        (0, bytes(8), "not a file of weights"),
        (64, bytes(4), "no fp32 constant at byte 64"),
        (68, b"\1", "no fp32 constant at byte 64"),
        (72, b"\x30\1", "bytes 128 to 432 of 176"),
        (80, bytes([255] * 8), "bytes 18446744073709551615 to"),
        (72, b"\4", r"4 bytes for fp32 \[12\], 48 expected"),
    ],
)
def test_damaged_file_of_weights_is_refused(tmp_path: Path, start: int, data: bytes, match: str) -> None:
    model, weights = with_weights(tmp_path)
    weights[start : start + len(data)] = data
    with pytest.raises(TargetLoadError, match=match):
        load(model, weights)


@pytest.mark.parametrize("offset", [65, 128, 1 << 40])
def test_constant_where_there_is_none_is_refused(tmp_path: Path, offset: int) -> None:
    model, weights = with_weights(tmp_path, lambda blob: setattr(blob, "offset", offset))
    with pytest.raises(TargetLoadError, match=f"no (fp32 )?constant at byte {offset}"):
        load(model, weights)


def test_file_of_weights_that_is_not_there_is_refused(tmp_path: Path) -> None:
    model, weights = with_weights(tmp_path, lambda blob: setattr(blob, "fileName", "/etc/passwd"))
    with pytest.raises(TargetLoadError, match="weights in '/etc/passwd', a file that the package does not have"):
        load(model, weights)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_packed_integers_are_unpacked_as_coremltools_does(bits: int) -> None:
    from coremltools.optimize._utils import pack_elements_into_bits

    values = np.random.default_rng(0).integers(0, 1 << bits, 13).astype(np.uint8)
    packed = pack_elements_into_bits(values, bits).tobytes()
    np.testing.assert_array_equal(unpacked(packed, bits, 13), values)
    signed = np.where(values >= 1 << (bits - 1), values.astype(int) - (1 << bits), values)
    np.testing.assert_array_equal(unpacked(packed, bits, 13, signed=True), signed)
    with pytest.raises(TargetLoadError, match=f"of {bits}-bit integers"):
        unpacked(packed + b"\0", bits, 13)


def test_damaged_models_raise_our_errors_or_compute(tmp_path: Path) -> None:
    """Bytes changed, inserted and cut, in the model and in its weights, past every digest."""
    files = coreml.text_files(tmp_path)
    artifact = coreml.artifact(files, "text")
    parts = [name for name in files if not name.endswith("Manifest.json")]
    rng = random.Random(0)
    ids = np.ones((2, coreml.CONTEXT), np.int32)
    refused = 0
    for _ in range(400):
        name = rng.choice(parts)
        given = dict(files) | {name: damaged(bytes(files[name]), rng)}
        try:
            assert coreml_reference.open(artifact, given, Options()).run(ids).shape == (2, coreml.WIDTH)
        except EdgeClipError:
            refused += 1
    assert refused > 50


def damaged(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return rng.choice(
        [
            data[:at],
            data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
            data[:at] + rng.randbytes(3) + data[at:],
            data[:at] + data[at + 2 :],
        ]
    )
