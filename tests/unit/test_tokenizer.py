"""The tokenizer's contract on a vocabulary of a few merges, and where export finds one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeclip.errors import BundleFormatError, ResourceError, TextInputError, UsageError
from edgeclip.export.vocabulary import find_tokenizer, from_merges, from_vocab_merges
from edgeclip.manifest import TokenizerSpec
from edgeclip.tokenizer import MAX_TEXT_BYTES, Tokenizer, lengths, library_errors, trim

MERGES = ["#version: 0.2", "c a", "ca t</w>", "d o", "do g</w>"]
CAT, DOG, SOT, EOT = 513, 515, 516, 517
SPEC = TokenizerSpec(file="tokenizer.json", context_length=12, vocab_size=518, sot_id=SOT, eot_id=EOT, pad_id=0)


@pytest.fixture(scope="module")
def data() -> bytes:
    return from_merges(MERGES, merges=4)


@pytest.fixture(scope="module")
def tokenizer(data: bytes) -> Tokenizer:
    return Tokenizer(data, SPEC)


def edited(data: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(data)
    edit(document)
    return json.dumps(document).encode()


# --- ids


def test_text_stands_between_start_and_end_then_padding(tokenizer: Tokenizer) -> None:
    ids = tokenizer(["cat dog", ""])
    assert ids.dtype == np.int32
    assert ids.tolist() == [[SOT, CAT, DOG, EOT, *[0] * 8], [SOT, EOT, *[0] * 10]]


def test_long_text_is_cut_and_keeps_its_end(tokenizer: Tokenizer) -> None:
    assert tokenizer(["cat " * 50]).tolist() == [[SOT, *[CAT] * 10, EOT]]


def test_text_that_just_fits_is_whole(tokenizer: Tokenizer) -> None:
    assert tokenizer(["cat " * 10]).tolist() == tokenizer(["cat " * 11]).tolist()
    assert tokenizer(["cat " * 9]).tolist() == [[SOT, *[CAT] * 9, EOT, 0]]


def test_padding_is_the_manifests(data: bytes) -> None:
    ids = Tokenizer(data, msgspec.structs.replace(SPEC, pad_id=EOT))(["cat"])
    assert ids.tolist() == [[SOT, CAT, *[EOT] * 10]]


def test_truncation_and_padding_of_the_file_are_not_used(data: bytes, tokenizer: Tokenizer) -> None:
    limits = {
        "truncation": {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 40},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 7,
            "pad_type_id": 0,
            "pad_token": "c",
        },
    }
    other = Tokenizer(edited(data, lambda document: document.update(limits)), SPEC)
    assert np.array_equal(other(["cat dog cat dog"]), tokenizer(["cat dog cat dog"]))


def test_no_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer([]).shape == (0, 12)


def test_special_token_in_a_text_is_the_token_unless_refused(tokenizer: Tokenizer) -> None:
    text = "cat<|endoftext|>dog"
    assert tokenizer([text])[0, :5].tolist() == [SOT, CAT, EOT, DOG, EOT]
    plain = tokenizer([text], allow_special=False)[0].tolist()
    assert plain[:2] == [SOT, CAT]
    assert plain.count(EOT) == 1
    assert tokenizer([text])[0, :5].tolist() == [SOT, CAT, EOT, DOG, EOT], "the setting must not stay"


def test_threads_agree(tokenizer: Tokenizer) -> None:
    texts = ["cat " * n + "<|endoftext|> dog" for n in range(8)]
    alone = {flag: tokenizer(texts, allow_special=flag) for flag in (True, False)}
    with ThreadPoolExecutor(8) as pool:
        flags = [bool(i % 2) for i in range(400)]
        results = list(pool.map(lambda flag: tokenizer(texts, allow_special=flag), flags))
    assert all(np.array_equal(ids, alone[flag]) for ids, flag in zip(results, flags, strict=True))


# --- trimming


def test_length_ends_at_the_first_end_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.lengths(tokenizer(["", "cat", "cat<|endoftext|>dog"])).tolist() == [2, 3, 3]


def test_length_without_an_end_is_the_whole_row() -> None:
    assert lengths(np.array([[1, 2, 3]], np.int32), eot_id=9).tolist() == [3]


@pytest.mark.parametrize(("words", "width"), [(0, 8), (6, 8), (7, 16), (14, 16), (15, 20), (40, 20)])
def test_trim_rounds_up_to_a_multiple_of_8_within_the_context(data: bytes, words: int, width: int) -> None:
    tokenizer = Tokenizer(data, msgspec.structs.replace(SPEC, context_length=20))
    ids = tokenizer(["cat", "cat " * words])
    assert np.array_equal(tokenizer.trim(ids), ids[:, :width])


def test_trim_of_nothing() -> None:
    assert trim(np.zeros((0, 12), np.int32), EOT).shape == (0, 12)


def test_trim_leaves_a_tower_alone_that_is_not_causal(data: bytes) -> None:
    tokenizer = Tokenizer(data, msgspec.structs.replace(SPEC, causal=False))
    assert tokenizer.trim(tokenizer(["cat"])).shape == (1, 12)


# --- refused texts


@pytest.mark.parametrize(("thing", "kind"), [(b"cat", "bytes"), (None, "NoneType"), (3, "int")])
def test_other_types_are_named_with_their_index(tokenizer: Tokenizer, thing: Any, kind: str) -> None:
    with pytest.raises(TextInputError, match=f"^text 1: a string is expected, got {kind}"):
        tokenizer(["cat", thing])


@pytest.mark.parametrize("texts", ["cat", b"cat", 5, None])
def test_one_thing_is_not_a_sequence_of_texts(tokenizer: Tokenizer, texts: Any) -> None:
    with pytest.raises(TextInputError, match=f"a sequence of strings is expected, got .*{type(texts).__name__}"):
        tokenizer(texts)


def test_lone_surrogate(tokenizer: Tokenizer) -> None:
    with pytest.raises(TextInputError, match="text 0: lone surrogate at character 3"):
        tokenizer(["cat\ud800"])


@pytest.mark.parametrize("text", ["a" * (MAX_TEXT_BYTES + 1), "é" * (MAX_TEXT_BYTES // 2 + 1), "a" * 1_000_000])
def test_too_long_a_text_is_refused_at_once(tokenizer: Tokenizer, text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(TextInputError, match="text 0: more than 65536 bytes of UTF-8"):
        tokenizer([text])
    assert time.perf_counter() - start < 0.01


def test_longest_text_is_accepted(tokenizer: Tokenizer) -> None:
    assert tokenizer(["é" * (MAX_TEXT_BYTES // 2)]).shape == (1, 12)


# --- refused files


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0"', b"[]"])
def test_what_is_no_tokenizer_is_a_bundle_error(content: bytes) -> None:
    with pytest.raises(BundleFormatError, match=r"^tokenizer\.json: "):
        Tokenizer(content, SPEC)


def test_panic_of_the_library_is_a_bundle_error(data: bytes) -> None:
    """A template that names an unknown special token makes the Rust code panic, which is a BaseException."""
    broken = edited(data, lambda document: document["post_processor"]["special_tokens"].clear())
    with pytest.raises(BundleFormatError, match=r"^tokenizer\.json: no entry found") as caught:
        Tokenizer(broken, SPEC)
    assert not isinstance(caught.value.__cause__, Exception)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass(kind: type[BaseException]) -> None:
    with pytest.raises(kind), library_errors():
        raise kind


def test_memory_error_is_a_resource_error() -> None:
    with pytest.raises(ResourceError, match="out of memory"), library_errors():
        raise MemoryError


def test_ids_beyond_the_embedding_table(data: bytes) -> None:
    with pytest.raises(BundleFormatError, match=r"ids up to 517, the model's vocabulary has 517 .*another model"):
        Tokenizer(data, msgspec.structs.replace(SPEC, vocab_size=517))


def test_ids_that_only_the_template_gives(data: bytes) -> None:
    broken = edited(data, lambda d: d["post_processor"]["special_tokens"]["<|endoftext|>"].update(ids=[9000]))
    with pytest.raises(BundleFormatError, match=r"an empty text gives \[516, 9000\], not \[516, 517\]"):
        Tokenizer(broken, SPEC)


@pytest.mark.parametrize("field", ["sot_id", "eot_id"])
def test_missing_special_token(data: bytes, field: str) -> None:
    with pytest.raises(BundleFormatError, match=f"no token has the {field} 700"):
        Tokenizer(data, msgspec.structs.replace(SPEC, vocab_size=1000, **{field: 700}))


def test_file_without_a_template(data: bytes) -> None:
    with pytest.raises(BundleFormatError, match=r"an empty text gives \[\], not \[516, 517\]"):
        Tokenizer(edited(data, lambda document: document.update(post_processor=None)), SPEC)


def test_padding_outside_the_vocabulary(data: bytes) -> None:
    with pytest.raises(BundleFormatError, match="pad_id 600 is outside the vocabulary of 518"):
        Tokenizer(data, msgspec.structs.replace(SPEC, pad_id=600))


# --- finding one


def find(
    checkpoint: Path | None, named: str | Path | None = None, vocab_size: int = 518
) -> tuple[bytes, TokenizerSpec]:
    return find_tokenizer(checkpoint, named, vocab_size=vocab_size, context_length=12)


@pytest.fixture
def folder(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "tokenizer.json").write_bytes(data)
    return tmp_path


@pytest.fixture
def no_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_bytes_are_the_same_every_time(data: bytes) -> None:
    assert from_merges(MERGES, merges=4) == data


def test_named_file_and_named_directory(folder: Path, data: bytes) -> None:
    assert find(None, folder) == find(None, str(folder / "tokenizer.json")) == find(folder / "model.pt")
    assert find(None, folder)[0] == data


def test_spec_comes_from_the_file(folder: Path) -> None:
    assert find(folder)[1] == msgspec.structs.replace(SPEC, pad_id=EOT)


def test_named_one_goes_before_the_checkpoints_own(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other") / "tokenizer.json"
    other.write_bytes(from_merges(MERGES[:3], merges=2))
    assert find(folder, other)[1].eot_id == 515


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("token", ["!", {"content": "!", "lstrip": False}])
def test_padding_token_of_a_directory(folder: Path, name: str, token: Any) -> None:
    (folder / name).write_text(json.dumps({"pad_token": token}))
    assert find(folder)[1].pad_id == 0


def test_padding_of_the_file_itself(folder: Path, data: bytes) -> None:
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 3}
    document = edited(data, lambda d: d.update(padding=padding | {"pad_type_id": 0, "pad_token": "$"}))
    (folder / "tokenizer.json").write_bytes(document)
    written, spec = find(folder)
    assert spec.pad_id == 3
    assert json.loads(written)["padding"] is None


def test_vocab_and_merges_give_the_same_ids(tmp_path: Path, data: bytes, tokenizer: Tokenizer) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(json.loads(data)["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(MERGES) + "\n")
    assert from_vocab_merges(tmp_path) == data
    assert find(tmp_path)[0] == find(None, tmp_path / "vocab.json")[0] == data


def test_vocabulary_without_the_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UsageError, match=r"vocab\.json: not CLIP's vocabulary"):
        find(tmp_path)


def test_openai_merges_pad_with_zero(bpe_path: Path) -> None:
    data, spec = find(None, bpe_path, 49_408)
    assert (spec.sot_id, spec.eot_id, spec.pad_id) == (49_406, 49_407, 0)
    assert Tokenizer(data, spec)(["a cat"])[0, :4].tolist() == [49_406, 320, 2368, 49_407]


def test_installed_open_clip_is_read_but_not_imported(
    bpe_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(bpe_path.parent.parent)
    assert find(tmp_path / "model.pt", None, 49_408)[1].eot_id == 49_407
    assert "open_clip" not in sys.modules


@pytest.mark.usefixtures("no_open_clip")
def test_nothing_found_names_the_four_ways(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find(tmp_path / "model.pt")
    for way in ("--tokenizer", "beside the checkpoint", "pip install open_clip_torch", "hf-hub:ORG/NAME"):
        assert way in str(caught.value)


def test_hub_is_asked_only_when_named(data: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(folder)

    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    monkeypatch.setattr(hub, "snapshot_download", download)
    find(folder)
    assert asked == []
    assert find(None, "hf-hub:org/name@abc")[0] == data
    assert asked == [("org/name", "abc")]


def test_hub_failure_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("no\n network")

    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(UsageError, match="hf-hub:org/name: could not be fetched: no network"):
        find(None, "hf-hub:org/name")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: no such file or directory"):
        find(None, tmp_path / "nowhere")


def test_directory_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no tokenizer"):
        find(None, tmp_path)


@pytest.mark.parametrize("content", [b"{}", b"\xff", b"not JSON"])
def test_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"tokenizer\.json: not a tokenizer"):
        find(tmp_path)


def test_tokenizer_of_another_model(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"not this model's tokenizer: .*ids up to 517, the model's vocabulary has 400"
    ):
        find(folder, vocab_size=400)


@pytest.mark.parametrize(("name", "said"), [("m.txt", "4 found, 48894 expected"), ("m.txt.gz", "cannot be read")])
def test_unusable_merges(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_text("\n".join(MERGES))
    with pytest.raises(UsageError, match=said):
        find(None, tmp_path / name)
