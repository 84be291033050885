"""Scoring through the runtime, with a model whose embeddings are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edgeclip.benchmarks.accuracy import command, parse_notes, score_set
from edgeclip.cli import main
from edgeclip.errors import UsageError
from edgeclip.images import open_image
from edgeclip.testset import open_test_set
from tests import training

NAMES = list(training.COLOURS)


class Knows:
    """Tells the colours of the toy test set apart: an image's embedding is its colour's unit vector, and so is a text's."""

    def stream_image(self, images: Iterable[bytes], batch_size: int, on_error: str) -> Iterator[SimpleNamespace]:
        for image in images:
            mean = np.asarray(open_image(image, "an image").convert("RGB")).mean(axis=(0, 1))
            distance = [np.abs(mean - colour).sum() for colour in training.COLOURS.values()]
            yield SimpleNamespace(embeddings=np.eye(4, dtype=np.float32)[[int(np.argmin(distance))]], skipped=[])

    def encode_text(self, texts: list[str]) -> Any:
        return np.eye(4, dtype=np.float32)[[next(i for i, n in enumerate(NAMES) if n in text) for text in texts]]


def scored(folder: Path) -> dict[str, float]:
    return {s.metric: s.value for s in score_set(cast("Any", Knows()), open_test_set(folder))}


def test_images_are_held_against_their_classes(tmp_path: Path) -> None:
    folder = training.test_set(tmp_path / "colours")
    assert scored(folder) == {"top1": 1.0}
    (folder / "classnames.txt").write_text("\n".join([*NAMES[1:], NAMES[0]]))
    assert scored(folder) == {"top1": 0.0}


def test_images_and_captions_find_each_other(tmp_path: Path) -> None:
    folder = training.test_set(tmp_path / "colours")
    (folder / "dataset_type.txt").write_text("retrieval")
    members: dict[str, bytes] = {}
    for i, name in enumerate(NAMES):
        members[f"{i}.jpg"] = training.picture(training.COLOURS[name], np.random.default_rng(i))
        members[f"{i}.txt"] = f"a {name} sheet\nall {NAMES[(i + 1) % 4] if i == 0 else name}".encode()
    training.shard(folder / "test" / "0.tar", members)
    found = scored(folder)
    # A caption of the first image is that of the second word for word: a tie, which counts as lost.
    assert found["image_to_text_r1"] == 0.75 and found["text_to_image_r1"] == pytest.approx(7 / 8)


@pytest.mark.parametrize(
    ("note", "message"),
    [("pets", "'pets' is not SET=TEXT"), ("cars=x", "'cars', which is not scored"), ("pets=" + "x" * 201, "201 char")],
)
def test_a_wrong_note_is_refused(note: str, message: str) -> None:
    assert parse_notes(["pets=a=b"], ["pets"]) == {"pets": "a=b"}
    with pytest.raises(UsageError, match=message):
        parse_notes([note], ["pets"])


def test_a_missing_folder_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["b.edgeclip", "--data", str(tmp_path / "absent")], command=command) == 4
    assert "absent: no such folder" in capfd.readouterr().err


def test_a_part_of_a_set_makes_no_card(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    training.test_set(tmp_path / "colours")
    arguments = ["b.edgeclip", "--data", str(tmp_path), "--limit", "3", "--embed"]
    assert main(arguments, command=command) == 2
    assert "a card speaks of whole test sets" in capfd.readouterr().err
