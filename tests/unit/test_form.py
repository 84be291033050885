"""Which dtypes and dimensions a model can give, and what they are."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgeclip import manifest
from edgeclip.cli import embed
from edgeclip.errors import BundleFormatError, NonFiniteError, UsageError
from edgeclip.form import DTYPES, choose_form, truncated
from edgeclip.manifest import ModelSpec
from edgeclip.quantized import Dtype, scale, to_binary, to_int8
from tests import bundles

SPEC = msgspec.structs.replace(bundles.manifest().model, embed_dim=16, matryoshka=(4, 8))
ROWS = np.full((2, 16), 0.25, np.float32)


@pytest.mark.parametrize(
    ("dtype", "columns", "stored", "size"),
    [("float32", 16, "<f4", 64), ("float16", 16, "<f2", 32), ("int8", 16, "|i1", 16), ("binary", 2, "|u1", 2)],
)
def test_a_form_says_what_its_arrays_are(dtype: Dtype, columns: int, stored: str, size: int) -> None:
    form = choose_form(SPEC, dtype)
    assert (form.columns, form.stored.str, form.bytes_per_vector) == (columns, stored, size)
    for array, rows in ((form.apply(ROWS), 2), (form.none(), 0)):
        assert (array.shape, array.dtype) == ((rows, columns), form.stored)


def test_what_is_needed_to_read_stored_rows_is_said() -> None:
    assert choose_form(SPEC).described() == {"dtype": "float32", "dim": 16}
    assert choose_form(SPEC, "int8", 8).described() == {"dtype": "int8", "dim": 8, "scale": scale(8)}
    assert choose_form(SPEC, "binary").described() == {"dtype": "binary", "dim": 16, "bit_order": "big"}


def test_first_dimensions_are_normalised_again_before_they_are_made_small() -> None:
    half = np.full((2, 4), 0.5, np.float32)
    np.testing.assert_allclose(choose_form(SPEC, "float32", 4).apply(ROWS), half)
    np.testing.assert_array_equal(choose_form(SPEC, "int8", 4).apply(ROWS), to_int8(half))
    eight = choose_form(SPEC, "float32", 8).apply(ROWS)
    np.testing.assert_array_equal(choose_form(SPEC, "binary", 8).apply(ROWS), to_binary(eight))


def test_float32_of_all_dimensions_is_left_alone() -> None:
    assert choose_form(SPEC).apply(ROWS) is ROWS
    assert choose_form(SPEC, "float32", 16).apply(ROWS) is ROWS


def test_a_row_with_nothing_in_its_first_dimensions_is_named() -> None:
    with pytest.raises(NonFiniteError, match="row 1 is zero in its first 2 dimensions"):
        truncated(np.array([[0.6, 0.0, 0.8], [0.0, 0.0, 1.0]], np.float32), 2)


def test_other_dimensions_are_refused_with_those_that_are_meant() -> None:
    with pytest.raises(UsageError, match=r"no embeddings of 12 dimensions from 'tiny' \(dim can be: 4, 8, 16\)"):
        choose_form(SPEC, "float32", 12)
    plain = msgspec.structs.replace(SPEC, matryoshka=())
    with pytest.raises(UsageError, match=r"dim can be: 16; this model was trained for all of them together"):
        choose_form(plain, "float32", 8)
    assert choose_form(plain, "float32", 16).dim == 16


def test_an_unknown_dtype_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match=r"no dtype 'uint8' \(one of: float32, float16, int8, binary\)"):
        choose_form(SPEC, "uint8")  # type: ignore[arg-type]


def test_the_command_line_knows_every_dtype() -> None:
    assert embed.DTYPES == DTYPES


def test_binary_needs_whole_bytes() -> None:
    with pytest.raises(UsageError, match="need a multiple of 8 dimensions, got 4"):
        choose_form(SPEC, "binary", 4)


def with_dims(*dims: int) -> bytes:
    model = bundles.encoded().replace(b'"matryoshka": []', f'"matryoshka": {list(dims)}'.encode())
    return model.replace(b'"embed_dim": 4', b'"embed_dim": 16')


def test_the_manifest_keeps_the_dimensions() -> None:
    assert manifest.decode(with_dims(4, 8)).model.matryoshka == (4, 8)


@pytest.mark.parametrize("dims", [(8, 4), (4, 4), (16,), (4, 32)])
def test_a_manifest_whose_dimensions_do_not_ascend_is_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(BundleFormatError, match=r"matryoshka must ascend below embed_dim 16, got .* - at `\$\.model`"):
        manifest.decode(with_dims(*dims))


def test_a_manifest_with_a_dimension_of_none_is_refused() -> None:
    with pytest.raises(BundleFormatError, match=r"\$\.model\.matryoshka\[0\]"):
        manifest.decode(with_dims(0, 8))


def test_a_spec_without_the_field_has_no_such_dimensions() -> None:
    fields = msgspec.to_builtins(bundles.manifest().model)
    del fields["matryoshka"]
    assert msgspec.convert(fields, ModelSpec).matryoshka == ()
