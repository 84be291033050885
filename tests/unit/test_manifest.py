"""The manifest decoder: what it refuses, and that it says where."""

from __future__ import annotations

import copy
import json
import random
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from edgeclip import manifest
from edgeclip.errors import BundleError, BundleFormatError, BundlePathError, BundleVersionError, EdgeClipError
from tests import bundles

VALID = bundles.encoded()
DOCUMENT: dict[str, Any] = json.loads(VALID)
MUTATIONS = 500
NIGHTLY_MUTATIONS = 5_000

Path = tuple[str | int, ...]


def dumped(document: Any) -> bytes:
    return json.dumps(document).encode()


def walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value of the document with its path; of a list only the first, whose struct stands for all."""
    if path:
        yield path, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walk(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from walk(value[0], (*path, 0))


def parent_of(document: Any, path: Path) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


def json_path(path: Path) -> str:
    """As the decoder writes it: `$.artifacts[0].file`; the free keys of `tools` are `[...]`."""
    steps = zip(("", *path), path, strict=False)
    return "$" + "".join(
        f"[{key}]" if isinstance(key, int) else "[...]" if above == "tools" else f".{key}" for above, key in steps
    )


FIELDS = list(walk(DOCUMENT))
FREE_KEYS = {"onnx"}  # The keys of `tools` are free.


def changed(path: Path, value: Any) -> bytes:
    document = copy.deepcopy(DOCUMENT)
    parent_of(document, path)[path[-1]] = value
    return dumped(document)


def without(path: Path) -> bytes:
    document = copy.deepcopy(DOCUMENT)
    del parent_of(document, path)[path[-1]]
    return dumped(document)


def test_encoding_and_decoding_give_the_same_manifest() -> None:
    decoded = manifest.decode(VALID)
    assert manifest.encode(decoded) == VALID


@pytest.mark.parametrize("offset", [len(VALID) * i // 50 for i in range(50)])
def test_truncated_manifest_is_refused(offset: int) -> None:
    with pytest.raises(BundleFormatError, match=r"manifest\.json: "):
        manifest.decode(VALID[:offset])


REQUIRED = [
    path
    for path, _ in FIELDS
    if isinstance(path[-1], str)
    and path[-1] not in FREE_KEYS
    and path[-1] not in {"resize", "interpolation", "crop", "exif", "background", "random_weights", "causal", "opset"}
    and path[-1] not in {"tools", "source", "recipe", "data", "licence", "quantization", "matryoshka", "profile"}
    and path[-1] != "deployment"
]


@pytest.mark.parametrize("path", REQUIRED, ids=json_path)
def test_missing_field_is_refused_by_name(path: Path) -> None:
    with pytest.raises(BundleFormatError) as caught:
        manifest.decode(without(path))
    assert f"`{path[-1]}`" in str(caught.value)
    if len(path) > 1:
        assert f"`{json_path(path[:-1])}`" in str(caught.value)


OBJECTS = [(), *[path for path, value in FIELDS if isinstance(value, dict) and path[-1] != "tools"]]


@pytest.mark.parametrize("path", OBJECTS, ids=json_path)
def test_extra_field_is_refused_by_name(path: Path) -> None:
    with pytest.raises(BundleFormatError) as caught:
        manifest.decode(changed((*path, "granularty"), 1))
    assert "unknown field `granularty`" in str(caught.value)
    if path:
        assert f"`{json_path(path)}`" in str(caught.value)


@pytest.mark.parametrize("path", [path for path, _ in FIELDS], ids=json_path)
def test_field_of_a_wrong_type_is_refused_at_its_path(path: Path) -> None:
    value = True if path[-1] not in {"random_weights", "causal", "passed"} else "yes"
    with pytest.raises(BundleFormatError) as caught:
        manifest.decode(changed(path, value))
    assert f"`{json_path(path)}`" in str(caught.value)


OUT_OF_RANGE = [
    (("preprocess", "size"), [0, -1, 10**9, 1.5]),
    (("preprocess", "mean", 0), [1e9, -11.0]),
    (("preprocess", "std", 0), [0.0, -1.0, 1e9]),
    (("model", "embed_dim"), [0, -1, 10**9]),
    (("model", "logit_scale"), [0, -1.0, 1e9]),
    (("tokenizer", "context_length"), [0, 2, 10**9]),
    (("artifacts", 0, "input", "shape", 1), [0, -8, 10**9]),
    (("artifacts", 0, "input", "dtype"), ["float64", ""]),
    (("artifacts", 0, "input", "shape"), [[], [1] * 9]),
    (("files", 0, "size"), [-1, 1 << 62]),
    (("files", 0, "sha256"), ["", "0" * 63, "A" * 64, "0" * 65]),
    (("artifacts", 0, "target"), ["tflite"]),
    (("artifacts", 0, "precision"), ["int8"]),
]


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in OUT_OF_RANGE for value in values])
def test_value_out_of_its_range_is_refused_at_its_path(path: Path, value: Any) -> None:
    where = path[:1] if path[1] in ("mean", "std") else path  # Their struct checks them.
    with pytest.raises(BundleFormatError) as caught:
        manifest.decode(changed(path, value))
    assert f"`{json_path(where)}`" in str(caught.value)


PROFILE = {"batch": {"min": 1, "opt": 8, "max": 32}}


def test_a_profile_is_kept() -> None:
    decoded = manifest.decode(changed(("artifacts", 0, "profile"), PROFILE))
    batch = manifest.Axis(min=1, opt=8, max=32)
    assert decoded.artifacts[0].profile == manifest.Profile(batch=batch)
    assert manifest.decode(manifest.encode(decoded)) == decoded


def test_a_bundle_of_before_profiles_has_none() -> None:
    assert manifest.decode(without(("artifacts", 0, "profile"))).artifacts[0].profile is None


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((9, 8, 32), "sizes must ascend: min 9, opt 8, max 32"),
        ((1, 33, 32), "sizes must ascend: min 1, opt 33, max 32"),
        ((0, 1, 1), "Expected `int` >= 1"),
        ((1, 8, 1 << 21), "Expected `int` <= 1048576"),
    ],
)
def test_a_profile_s_sizes_ascend(sizes: tuple[int, int, int], message: str) -> None:
    profile = {"batch": dict(zip(("min", "opt", "max"), sizes, strict=True))}
    with pytest.raises(BundleFormatError) as caught:
        manifest.decode(changed(("artifacts", 0, "profile"), profile))
    assert message in str(caught.value)
    assert "`$.artifacts[0].profile.batch" in str(caught.value)


@pytest.mark.parametrize(("index", "tower", "context"), [(0, "image", True), (3, "text", False)])
def test_a_profile_has_a_context_where_the_tower_reads_text(index: int, tower: str, context: bool) -> None:
    profile = PROFILE | ({"context": PROFILE["batch"]} if context else {})
    with pytest.raises(
        BundleFormatError, match=f"a profile of the {tower} tower has {'a' if context else 'no'} context"
    ):
        manifest.decode(changed(("artifacts", index, "profile"), profile))


def test_infinity_by_overflow_is_refused() -> None:
    with pytest.raises(BundleFormatError, match=r"manifest\.json: "):
        manifest.decode(VALID.replace(b'"cosine_mean": 0.9999', b'"cosine_mean": 1e999', 1))


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
def test_constant_that_is_not_json_is_refused(constant: bytes) -> None:
    with pytest.raises(BundleFormatError, match=f"{constant.decode()} is not JSON"):
        manifest.decode(VALID.replace(b'"cosine_mean": 0.9999', b'"cosine_mean": ' + constant, 1))


def test_duplicate_key_is_refused() -> None:
    with pytest.raises(BundleFormatError, match="duplicate key 'golden'"):
        manifest.decode(VALID.replace(b'"golden":', b'"golden": "x", "golden":', 1))


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(BundleFormatError, match="a lone surrogate in a string"):
        manifest.decode(VALID.replace(b'"tiny"', rb'"\ud800"', 1))


def test_byte_order_mark_is_refused() -> None:
    with pytest.raises(BundleFormatError, match="starts with a byte order mark"):
        manifest.decode(b"\xef\xbb\xbf" + VALID)


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(BundleFormatError, match=r"not UTF-8 at byte \d+"):
        manifest.decode(VALID.replace(b"tiny", b"t\xffny", 1))


def test_utf16_is_refused() -> None:
    with pytest.raises(BundleFormatError, match=r"manifest\.json: "):
        manifest.decode(VALID.decode().encode("utf-16-le"))


def test_integer_of_5000_digits_is_refused() -> None:
    with pytest.raises(BundleFormatError, match="an integer of 5000 digits"):
        manifest.decode(VALID.replace(b'"format_version": 1', b'"format_version": ' + b"1" * 5000, 1))


HOSTILE = {
    "100 MB": b"[" + b"1," * 50_000_000,
    "nested 100,000 deep": b'{"a":' * 100_000,
    "nested within the limit of size": b"[" * (1 << 20),
    "nested in strings' shadow": b'["\\"",' * 100_000,
    "quotes that never close": b'"' + b'\\"' * 500_000,
    "only quotes": b'"' * (1 << 20),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_document_is_refused_quickly_and_in_little_memory(name: str) -> None:
    data = HOSTILE[name]
    start = time.process_time()
    with pytest.raises(BundleFormatError):
        manifest.decode(data)
    assert time.process_time() - start < 0.5  # The goal is 0.1 s; a shared machine is given more.
    tracemalloc.start()
    with pytest.raises(BundleFormatError):
        manifest.decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_many_unique_keys_before_a_duplicate_are_refused_quickly() -> None:
    keys = ",".join(f'"{i}":0' for i in range(90_000))
    start = time.process_time()
    with pytest.raises(BundleFormatError, match="duplicate key '89999'"):
        manifest.decode(f'{{{keys},"89999":0}}'.encode())
    assert time.process_time() - start < 1


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    data = VALID.replace(b'"tiny"', b'"' + b"[" * 100 + b'\\""', 1)
    assert manifest.decode(data).model.name == "[" * 100 + '"'


def test_newer_version_says_found_supported_and_what_to_do() -> None:
    with pytest.raises(BundleVersionError, match=r"format version 2, .* reads up to 1 \(pip install -U edgeclip\)"):
        manifest.decode(VALID.replace(b'"format_version": 1', b'"format_version": 2', 1))


def test_newer_version_is_named_even_where_its_fields_are_unknown() -> None:
    with pytest.raises(BundleVersionError, match="format version 99"):
        manifest.decode(b'{"format_version": 99, "everything": "else"}')


def test_version_zero_does_not_exist() -> None:
    with pytest.raises(BundleFormatError, match=r"format version 0 does not exist - at `\$\.format_version`"):
        manifest.decode(VALID.replace(b'"format_version": 1', b'"format_version": 0', 1))


USES = [
    ("golden",),
    ("tokenizer", "file"),
    ("artifacts", 0, "files", 0),
    ("artifacts", 0, "file"),
    ("files", 0, "path"),
]


@pytest.mark.parametrize("use", USES, ids=json_path)
@pytest.mark.parametrize("path", ["../x", "/x", "C:\\x", "a/./x", "CON", "x."])
def test_path_out_of_the_bundle_is_refused_wherever_it_stands(use: Path, path: str) -> None:
    with pytest.raises(BundlePathError, match=r"^path "):
        manifest.decode(changed(use, path))


@pytest.mark.parametrize("path", ["manifest.json", "MANIFEST.json"])
def test_manifest_may_not_list_itself(path: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["files"].append({"path": path, "size": 1, "sha256": "0" * 64})
    with pytest.raises(BundlePathError, match=r"collides with 'manifest\.json'"):
        manifest.decode(dumped(document))


def test_file_listed_twice_is_refused() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["files"].append(document["files"][0])
    with pytest.raises(BundleFormatError, match=r"a path is listed twice - at `\$\.files`"):
        manifest.decode(dumped(document))


def test_artifact_listed_twice_is_refused() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["artifacts"].append(document["artifacts"][0])
    with pytest.raises(BundleFormatError, match=r"an artifact is listed twice - at `\$\.artifacts`"):
        manifest.decode(dumped(document))


def test_file_that_is_used_must_be_listed() -> None:
    with pytest.raises(BundleFormatError, match=r"'other\.bin' is not among `\$\.files` - at `\$\.golden`"):
        manifest.decode(changed(("golden",), "other.bin"))


def test_graph_must_be_among_the_artifacts_files() -> None:
    with pytest.raises(BundleFormatError, match=r"is not among its files - at `\$\.artifacts\[0\]\.file`"):
        manifest.decode(changed(("artifacts", 0, "file"), "golden.safetensors"))


def test_text_tower_needs_a_tokenizer() -> None:
    with pytest.raises(BundleFormatError, match=r"a text tower needs a tokenizer - at `\$\.tokenizer`"):
        manifest.decode(changed(("tokenizer",), None))


def mutate_manifests(n: int) -> None:
    """Random damage is refused with an error of ours, or decodes to a manifest that is valid as it stands."""
    rng = random.Random(n)
    for _ in range(n):
        data = bytearray(VALID)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice([0, 1, 1, 20])] = rng.randbytes(rng.randint(0, 3))
        try:
            decoded = manifest.decode(bytes(data))
        except EdgeClipError as error:
            assert isinstance(error, BundleError)
        else:
            assert manifest.decode(manifest.encode(decoded)) == decoded


def test_mutated_manifests() -> None:
    mutate_manifests(MUTATIONS)


@pytest.mark.nightly
def test_mutated_manifests_in_number() -> None:
    mutate_manifests(NIGHTLY_MUTATIONS)
