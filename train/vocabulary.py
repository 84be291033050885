"""Vocabularies of CLIP's form: built from merges, trained on captions, cut down to the words that are needed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from edgeclip.errors import UsageError
from edgeclip.tokenizer import library_errors
from edgeclip.train.models.config import ClipConfig

SOT, EOT = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
SMALLEST = 2 * 256 + 2
"""Ids of a vocabulary without merges: the bytes, the bytes that end a word, start and end."""
EMBEDDING = "text.token_embedding.weight"
_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How a text is split into words. Source: openai/CLIP, clip/simple_tokenizer.py, class SimpleTokenizer."""

Pair = tuple[str, str]


def train_bpe(texts: Iterable[str], size: int) -> bytes:
    """A `tokenizer.json` whose merges are those of byte-pair encoding on `texts`; the same for the same texts.

    Args:
        size: of the vocabulary, at most: few texts have fewer merges. Start and end have the highest ids.

    Raises:
        UsageError: `size` leaves no room for merges.
    """
    if size <= SMALLEST:
        raise UsageError(f"a vocabulary of {size} is too small", hint=f"bytes and ends alone are {SMALLEST}")
    learner = _pipeline(models.BPE(continuing_subword_prefix="", end_of_word_suffix=WORD_END))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        continuing_subword_prefix="",
        end_of_word_suffix=WORD_END,
    )
    learner.train_from_iterator(sorted(texts), trainer)
    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    return from_pairs(_fitting(merges, size - SMALLEST))


def from_pairs(pairs: Sequence[Pair]) -> bytes:
    """`tokenizer.json` with OpenAI's ids: the 256 bytes, the 256 bytes that end a word, one per merge, start, end.

    Source: openai/CLIP, clip/simple_tokenizer.py, class SimpleTokenizer.
    """
    # Sorted by code point: the printable bytes come first, then the stand-ins of the others, which is OpenAI's order.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(c + WORD_END for c in alphabet), *(a + b for a, b in pairs), SOT, EOT]
    return build_tokenizer({token: i for i, token in enumerate(tokens)}, pairs)


def build_tokenizer(vocab: Mapping[str, int], pairs: Sequence[Pair]) -> bytes:
    """`tokenizer.json` with the same pipeline as transformers' `CLIPTokenizer`: ids are equal for every text."""
    model = models.BPE(
        vocab=dict(vocab),
        merges=list(pairs),
        unk_token=EOT,
        continuing_subword_prefix="",
        end_of_word_suffix=WORD_END,
    )
    built = _pipeline(model)
    built.post_processor = processors.TemplateProcessing(
        single=f"{SOT} $A {EOT}", special_tokens=[(SOT, vocab[SOT]), (EOT, vocab[EOT])]
    )
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (SOT, EOT)])
    return serialised(built)


def serialised(built: Any) -> bytes:
    """Without truncation and padding, which the manifest decides; the library sorts the vocabulary by id."""
    built.no_truncation()
    built.no_padding()
    return bytes(built.to_str(), "utf-8")


def prune(tokenizer_json: bytes, texts: Iterable[str]) -> tuple[bytes, list[int]]:
    """Keep what `texts` need of a byte-pair vocabulary: their tokens, what those are merged from, and single symbols.

    Other texts still have ids, in smaller pieces.

    Returns:
        `tokenizer.json`, and the old id of each new one, rising: the order of ids stays.

    Raises:
        UsageError: the vocabulary is not one of byte-pair encoding.
        BundleFormatError: it is damaged.
    """
    with library_errors():
        loaded = tokenizers.Tokenizer.from_str(tokenizer_json.decode("utf-8"))
        serialised(loaded)  # padding and truncation would count as used
        used = {id_ for encoding in loaded.encode_batch_fast(list(texts)) for id_ in encoding.ids}
        described = json.loads(loaded.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise UsageError(f"tokenizer.json: {model['type']} vocabularies cannot be pruned", hint="only BPE")
    vocab: dict[str, int] = model["vocab"]
    pairs = [_pair(merge) for merge in model["merges"]]
    specials = {token["id"] for token in described["added_tokens"]}
    kept = _closure(vocab, pairs, {token for token, id_ in vocab.items() if id_ in used | specials})
    kept_ids = sorted({vocab[token] for token in kept} | specials)
    new = {old: i for i, old in enumerate(kept_ids)}
    model["vocab"] = {token: new[vocab[token]] for token in sorted(kept, key=vocab.__getitem__)}
    model["merges"] = [[a, b] for a, b in pairs if a in kept and b in kept and a + b in kept]
    _renumber(described, new)
    with library_errors():
        pruned = tokenizers.Tokenizer.from_str(json.dumps(described))
    return serialised(pruned), kept_ids


def prune_embeddings(state_dict: Mapping[str, Tensor], kept_ids: Sequence[int]) -> dict[str, Tensor]:
    """The weights of a `Clip` whose vocabulary was pruned: the table of tokens has the rows that were kept."""
    return {**state_dict, EMBEDDING: state_dict[EMBEDDING][list(kept_ids)].clone()}


def prune_config(config: ClipConfig, kept_ids: Sequence[int]) -> ClipConfig:
    """The configuration of that model."""
    end = config.text.eot_id
    text = msgspec.structs.replace(
        config.text, vocab_size=len(kept_ids), eot_id=None if end is None else list(kept_ids).index(end)
    )
    return msgspec.structs.replace(config, text=text)


def _pipeline(model: Any) -> Any:
    """What CLIP does to a text before merges."""
    built = tokenizers.Tokenizer(model)
    built.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return built


def _fitting(pairs: Iterable[Pair], count: int) -> list[Pair]:
    """The first merges, at most `count`, that make a new token each: two ways to the same one would leave an id out."""
    first: dict[str, Pair] = {}
    for pair in pairs:
        first.setdefault("".join(pair), pair)
    return list(first.values())[:count]


def _pair(merge: Any) -> Pair:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _closure(vocab: Mapping[str, int], pairs: Sequence[Pair], used: set[str]) -> set[str]:
    """`used`, every symbol that no merge makes, and all that the tokens among them are merged from."""
    made_from = defaultdict(list)
    for left, right in pairs:
        made_from[left + right].append((left, right))
    kept: set[str] = set()
    pending = [token for token in vocab if token in used or token not in made_from]
    while pending:
        token = pending.pop()
        if token not in kept:
            kept.add(token)
            pending += [part for pair in made_from[token] for part in pair]
    return kept


def _renumber(described: dict[str, Any], new: Mapping[int, int]) -> None:
    """Give the special tokens their new ids, in the two forms that CLIP's tokenizers come in."""
    for token in described["added_tokens"]:
        token["id"] = new[token["id"]]
    processor = described["post_processor"] or {}
    for special in processor.get("special_tokens", {}).values():  # TemplateProcessing
        special["ids"] = [new[id_] for id_ in special["ids"]]
    for end in ("sep", "cls"):  # RobertaProcessing
        if end in processor:
            processor[end][1] = new[processor[end][1]]
