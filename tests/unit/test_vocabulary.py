"""Vocabularies trained on captions, and pruned ones: the same ids for the same texts."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import tokenizers
import torch

from edgeclip.errors import BundleFormatError, UsageError
from edgeclip.export.vocabulary import find_tokenizer, from_merges
from edgeclip.tokenizer import Tokenizer
from edgeclip.train.models import Clip, ClipConfig, TextConfig, VitConfig
from edgeclip.train.vocabulary import SMALLEST, _fitting, prune, prune_config, prune_embeddings, train_bpe

TEXTS = ["a photo of a cat", "a photo of a dog", "a sketch of the cat's hat", "Two dogs, one hat!"] * 3


def load(data: bytes) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(data.decode())


@pytest.fixture(scope="module")
def captions(data_dir: Path) -> list[str]:
    found = []
    with tarfile.open(data_dir / "train" / "flickr8k-000.tar.gz") as tar:
        for member in tar:
            if member.name.endswith(".json") and (file := tar.extractfile(member)):
                found += json.load(file)["captions"]
            if len(found) >= 5000:
                break
    return found


@pytest.fixture(scope="module")
def trained(captions: list[str]) -> bytes:
    return train_bpe(captions, 2048)


def test_the_vocabulary_has_the_size_that_is_asked_for(trained: bytes) -> None:
    assert load(trained).get_vocab_size() == 2048


def test_start_and_end_have_the_highest_ids(trained: bytes) -> None:
    assert load(trained).encode("").ids == [2046, 2047]


def test_frequent_words_become_one_token(trained: bytes) -> None:
    assert len(load(trained).encode("a dog runs on the beach").ids) == 2 + 6


def test_case_and_spaces_make_no_difference(trained: bytes) -> None:
    loaded = load(trained)
    assert loaded.encode(" A  Dog\nruns").ids == loaded.encode("a dog runs").ids


def test_any_text_can_be_written(trained: bytes) -> None:
    loaded = load(trained)
    assert loaded.encode("żółw 🐢 九").ids.count(2047) == 1  # end: nothing is unknown, which would have this id


def test_order_of_the_texts_makes_no_difference() -> None:
    assert train_bpe(TEXTS, 560) == train_bpe(TEXTS[::-1], 560)


def test_few_texts_give_a_smaller_vocabulary_without_gaps() -> None:
    vocab = load(train_bpe(TEXTS, 4096)).get_vocab()
    assert SMALLEST < len(vocab) < 4096
    assert sorted(vocab.values()) == list(range(len(vocab)))


def test_a_vocabulary_without_merges_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a vocabulary of 514 is too small"):
        train_bpe(TEXTS, SMALLEST)


def test_two_ways_to_one_token_take_one_id() -> None:
    pairs = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("d", "e")]
    assert _fitting(pairs, 4) == [("a", "b"), ("b", "c"), ("ab", "c"), ("d", "e")]


def test_export_finds_it_beside_a_checkpoint(trained: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(trained)
    data, spec = find_tokenizer(tmp_path, None, vocab_size=2048, context_length=32)
    assert data == trained
    assert Tokenizer(data, spec)(["a dog"]).shape == (1, 32)


def test_pruned_ids_stand_for_the_same_tokens(trained: bytes, captions: list[str]) -> None:
    texts = captions[:300]
    pruned, kept = prune(trained, texts)
    assert len(kept) < 1800
    before, after = load(trained), load(pruned)
    for text in texts:
        assert [kept[id_] for id_ in after.encode(text).ids] == before.encode(text).ids


def test_pruning_openai_s_vocabulary(bpe_path: Path, captions: list[str]) -> None:
    import gzip

    full = from_merges(gzip.decompress(bpe_path.read_bytes()).decode().split("\n"))
    pruned, kept = prune(full, captions)
    assert len(kept) < 6000
    before, after = load(full), load(pruned)
    assert all([kept[i] for i in after.encode(text).ids] == before.encode(text).ids for text in captions[:500])


def test_pruning_keeps_the_order_of_ids(trained: bytes) -> None:
    pruned, kept = prune(trained, ["a dog"])
    assert kept == sorted(kept)
    assert load(pruned).encode("").ids == [len(kept) - 2, len(kept) - 1]


def test_other_texts_still_have_ids(trained: bytes) -> None:
    pruned, _ = prune(trained, ["a dog"])
    loaded = load(pruned)
    end = loaded.encode("").ids[1]
    assert loaded.encode("zebra").ids.count(end) == 1


def test_pruning_ignores_padding_and_truncation(trained: bytes) -> None:
    padded = load(trained)
    padded.enable_padding(pad_id=700, pad_token="x", length=40)
    padded.enable_truncation(3)
    assert prune(padded.to_str().encode(), ["a dog runs"])[1] == prune(trained, ["a dog runs"])[1]


def test_pruning_renumbers_the_other_form_of_post_processor(trained: bytes) -> None:
    described = json.loads(trained)
    described["post_processor"] = {
        "type": "RobertaProcessing",
        "sep": ["<|endoftext|>", 2047],
        "cls": ["<|startoftext|>", 2046],
        "trim_offsets": False,
        "add_prefix_space": False,
    }
    pruned, kept = prune(json.dumps(described).encode(), ["a dog"])
    assert load(pruned).encode("").ids == [len(kept) - 2, len(kept) - 1]


def test_pruning_refuses_what_is_not_byte_pairs() -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "u": 1}, unk_token="u"))
    with pytest.raises(UsageError, match=r"WordLevel vocabularies cannot be pruned \(only BPE\)"):
        prune(words.to_str().encode(), ["a"])


def test_pruning_refuses_damage(trained: bytes) -> None:
    with pytest.raises(BundleFormatError, match="tokenizer.json: "):
        prune(trained[:-20], ["a"])


@pytest.mark.parametrize("eot_id", [None, 2047])
def test_a_pruned_model_gives_the_same_features(trained: bytes, captions: list[str], eot_id: int | None) -> None:
    text = TextConfig(
        width=64, layers=2, heads=2, context_length=32, vocab_size=2048, mlp_width=64, activation="gelu", eot_id=eot_id
    )
    image = VitConfig(width=32, layers=1, heads=1, patch=16, mlp_width=32, activation="gelu")
    config = ClipConfig(name="tiny", embed_dim=16, image_size=32, image=image, text=text)
    full = Clip(config).eval()
    pruned_json, kept = prune(trained, captions[:50])
    small = Clip(prune_config(config, kept)).eval()
    small.load_state_dict(prune_embeddings(full.state_dict(), kept))
    for caption in captions[:5]:
        ids = torch.tensor([load(trained).encode(caption).ids[:32]])
        fewer = torch.tensor([load(pruned_json).encode(caption).ids[:32]])
        torch.testing.assert_close(small.encode_text(fewer), full.encode_text(ids))
