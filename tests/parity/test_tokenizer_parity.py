"""Token ids against two references: transformers' CLIPTokenizer, and instant_clip_tokenizer, written in Rust."""

from __future__ import annotations

import gzip
import json
import random
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeclip.errors import BundleFormatError
from edgeclip.export.vocabulary import find_tokenizer, from_merges
from edgeclip.manifest import TokenizerSpec
from edgeclip.tokenizer import Tokenizer

CONTEXT, VOCAB = 77, 49_408
MUTANTS, MUTANTS_NIGHTLY = 500, 3_000

CURATED = [
    "", " ", "\t\n ", "a", "A Photo Of A Cat.", "it's they're we've I'm you'll he'd CAN'T", "rock'n'roll ''' 's",
    "3.14159 1,000,000 ½ ² Ⅷ ٣٤", "e-mail@example.com #tag $5 50% C++ a/b\\c", "naïve café", "nai\u0308ve cafe\u0301",
    "\u00c5ngström A\u030angstro\u0308m \u212b", "\ufb01 \ufb02 ß \u1e9e İ ı", "ΑΣ Σίσυφος ΣΑΣ", "Привет, мир",
    "你好,世界", "日本語のテキスト", "ｆｕｌｌ ｗｉｄｔｈ", "한국어 \u1112\u1161\u11ab",
    "مرحبا بالعالم \u200f\u200e",
    "שָׁלוֹם",
    "नमस्ते दुनिया",
    "ไทย",
    "👩\u200d👩\u200d👧\u200d👦 👍🏽 🏳\ufe0f\u200d🌈 🇩🇪 ☺\ufe0e ☺\ufe0f",
    "a\u0300\u0301\u0302" * 20, "z\u0335\u0321\u0322\u0489al\u0337go", "nul\0here", "\x01\x1f\x7f\x80\x9f",
    "a\u00a0b\u2003c\u2028d\u3000e\u1680f\u200bg\u2060h\ufeffi", "\x0b\x0c\x1c\x85", "<|startoftext|>",
    "<|endoftext|>", "cat<|endoftext|>dog <|ENDOFTEXT|>", "<|endoftext", "&amp; &lt;b&gt;",
    "\U0010ffff \ue000 \ufffd", "__init__ snake_case", "a" * 500, "word " * 1000, "😀" * 100, "!?" * 300,
]  # fmt: skip


def transformers_tokenizer(data: bytes) -> Any:
    """Built by transformers itself from the same vocabulary and merges."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = json.loads(data)["model"]
    return transformers.CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


@pytest.fixture(scope="session")
def built(bpe_path: Path) -> tuple[bytes, TokenizerSpec]:
    return find_tokenizer(None, bpe_path, vocab_size=VOCAB, context_length=CONTEXT)


@pytest.fixture(scope="session")
def tokenizer(built: tuple[bytes, TokenizerSpec]) -> Tokenizer:
    return Tokenizer(*built)


@pytest.fixture(scope="session")
def reference(built: tuple[bytes, TokenizerSpec]) -> Any:
    return transformers_tokenizer(built[0])


@pytest.fixture(scope="session")
def captions(data_dir: Path) -> list[str]:
    with tarfile.open(data_dir / "eval" / "wds_flickr8k" / "test" / "0.tar") as tar:
        files = [tar.extractfile(member) for member in tar if member.name.endswith(".txt")]
        return [line for file in files if file for line in file.read().decode().splitlines()][:1500]


def random_texts(count: int) -> list[str]:
    """Strings of characters from all over Unicode, with many ASCII ones among them."""
    rng = random.Random(0)
    planes = [
        *[(32, 127), (32, 127), (0, 0x250), (0x300, 0x370), (0x370, 0x600), (0x600, 0x1200), (0x2000, 0x2C00)],
        *[(0x3000, 0xA000), (0xA000, 0xD7A4), (0xE000, 0x10000), (0x1F000, 0x1FB00), (0x10000, 0x110000)],
    ]

    def one() -> str:
        low, high = rng.choice(planes)
        return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 12)))

    return [rng.choice(["", " ", "'s ", "\n"]).join(one() for _ in range(rng.randint(1, 6))) for _ in range(count)]


def expected(reference: Any, texts: list[str], pad_id: int) -> np.ndarray:
    rows = reference(texts, truncation=True, max_length=CONTEXT)["input_ids"]
    return np.array([row + [pad_id] * (CONTEXT - len(row)) for row in rows], np.int32)


def test_curated_texts_equal_transformers(tokenizer: Tokenizer, reference: Any) -> None:
    for text in CURATED:
        assert np.array_equal(tokenizer([text]), expected(reference, [text], 0)), repr(text)


def test_captions_equal_transformers(tokenizer: Tokenizer, reference: Any, captions: list[str]) -> None:
    assert len(captions) == 1500
    assert np.array_equal(tokenizer(captions), expected(reference, captions, 0))


@pytest.mark.parametrize("form", ["as they are", "NFC", "NFD", "NFKD"])
def test_random_unicode_equals_transformers(tokenizer: Tokenizer, reference: Any, form: str) -> None:
    texts = [t if form == "as they are" else unicodedata.normalize(form, t) for t in random_texts(1000)]  # type: ignore[arg-type]
    assert np.array_equal(tokenizer(texts), expected(reference, texts, 0))


@pytest.mark.parametrize("words", [74, 75, 76, 77])
def test_lengths_around_the_context_equal_transformers(tokenizer: Tokenizer, reference: Any, words: int) -> None:
    ids = tokenizer(["cat " * words])
    assert np.array_equal(ids, expected(reference, ["cat " * words], 0))
    assert tokenizer.lengths(ids).tolist() == [min(words + 2, CONTEXT)]


def test_saved_directory_gives_the_same_ids_and_its_own_padding(reference: Any, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path)
    data, spec = find_tokenizer(tmp_path / "model.safetensors", None, vocab_size=VOCAB, context_length=CONTEXT)
    assert spec.pad_id == reference.pad_token_id == 49_407
    assert np.array_equal(Tokenizer(data, spec)(CURATED), expected(reference, CURATED, spec.pad_id))


def instant_tokenizer() -> Any:
    return pytest.importorskip("instant_clip_tokenizer", reason="instant_clip_tokenizer is not installed").Tokenizer()


def comparable(text: str) -> bool:
    """The other reads no special tokens, composes nothing, lowers a final sigma, and knows newer characters."""
    return (
        unicodedata.is_normalized("NFC", text)
        and "<|" not in text
        and "Σ" not in text
        and not any(is_new(char) for char in text)
    )


def is_new(char: str) -> bool:
    """Whether the libraries' Unicode tables may differ: letters and digits that came after Unicode 3.2."""
    kind = unicodedata.category(char)
    return kind == "Cn" or (kind[0] in "LN" and unicodedata.ucd_3_2_0.category(char) == "Cn")


def test_texts_equal_instant_clip_tokenizer(tokenizer: Tokenizer, captions: list[str]) -> None:
    other = instant_tokenizer()
    texts = [text for text in [*captions, *CURATED, *random_texts(3000)] if comparable(text)]
    assert len(texts) > 2000
    for row, text in zip(tokenizer(texts).tolist(), texts, strict=True):
        assert row[1 : row.index(tokenizer.spec.eot_id)] == other.encode(text)[: CONTEXT - 2], repr(text)


def test_every_assigned_character_equals_instant_clip_tokenizer(built: tuple[bytes, TokenizerSpec]) -> None:
    data, spec = built
    other, tokenizer = instant_tokenizer(), Tokenizer(data, msgspec.structs.replace(spec, context_length=1024))
    characters = map(chr, [*range(0xD800), *range(0xF900, 0x32000)])  # neither surrogates nor private use
    pieces = [piece for c in characters if comparable(piece := f"a{c}b !{c}? 1{c}")]
    texts = [" ".join(pieces[start : start + 40]) for start in range(0, len(pieces), 40)]
    assert len(pieces) > 80_000
    for row, text in zip(tokenizer(texts).tolist(), texts, strict=True):
        assert row[1 : row.index(tokenizer.spec.eot_id)] == other.encode(text)[:1022], repr(text)


# --- damaged files


def mutated(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(damaged))
        until = min(len(damaged), at + rng.randint(1, 30))
        fault = rng.randrange(6)
        if fault == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif fault == 1:
            damaged[at] = rng.choice(b'0123456789{}[]",:\\ -eE\x00\xff')
        elif fault == 2:
            del damaged[at:until]
        elif fault == 3:
            damaged[at:at] = damaged[at:until]
        elif fault == 4:
            words = [b"true", b"false", b"null", b"-1", b"1e9", b"99999999999999999999", b'""', b"[]"]
            damaged[at:until] = rng.choice(words)
        elif fault == 5 and at and rng.random() < 0.3:
            del damaged[at:]
    return bytes(damaged or b" ")


def survive(bpe: Path, count: int) -> None:
    """Nothing but a BundleFormatError may come out. Files that load with other ids are stopped by their digest."""
    lines = gzip.decompress(bpe.read_bytes()).decode().split("\n")
    data = from_merges(lines, merges=100)  # a small file: most faults then hit its structure
    spec = TokenizerSpec(file="tokenizer.json", context_length=32, vocab_size=614, sot_id=612, eot_id=613, pad_id=0)
    probe = [text for text in [*CURATED, *random_texts(180)] if len(text) < 1000][:200]
    good = Tokenizer(data, spec)(probe)
    rng = random.Random(20_260_102)
    outcomes = {"refused": 0, "same": 0, "other": 0}
    for _ in range(count):
        try:
            ids = Tokenizer(mutated(data, rng), spec)(probe)
        except BundleFormatError:
            outcomes["refused"] += 1
        else:
            assert (ids.shape, ids.dtype) == (good.shape, np.int32)
            assert 0 <= ids.min() <= ids.max() < spec.vocab_size
            outcomes["same" if np.array_equal(ids, good) else "other"] += 1
    assert outcomes["refused"] > count // 2, outcomes
    assert outcomes["same"] > 0, outcomes


def test_damaged_files_are_bundle_errors(bpe_path: Path) -> None:
    survive(bpe_path, MUTANTS)


@pytest.mark.nightly
def test_many_damaged_files_are_bundle_errors(bpe_path: Path) -> None:
    survive(bpe_path, MUTANTS_NIGHTLY)
