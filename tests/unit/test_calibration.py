"""Calibration data is drawn from all that there is, and is never so poor that ranges would be wrong without a word."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeclip import cache
from edgeclip.errors import DataError, UsageError
from edgeclip.manifest import CalibrationSpec
from edgeclip.preprocess import preprocess
from edgeclip.quantize import calibration
from edgeclip.quantize.calibration import Calibration, collect
from edgeclip.tokenizer import Tokenizer
from tests import pictures, training

SPEC = training.preprocess()


def taken(path: Path, *, count: int = 20, tokenizer: Tokenizer | None = None, **options: object) -> Calibration:
    """`collect` without the cache unless told."""
    settings = {"cache": False, **options}
    return collect(path, SPEC, tokenizer, count=count, **settings)  # type: ignore[arg-type]


def seeds_of(found: Calibration, total: int) -> list[int]:
    """Which of `pictures.folder`'s pictures they are."""
    known = {preprocess(pictures.encoded(i), SPEC).tobytes(): i for i in range(total)}
    return [known[row.tobytes()] for row in found.pixels]


def unreadable(folder: Path, count: int) -> Path:
    for i in range(count):
        (folder / f"bad-{i}.jpg").write_bytes(b"\xff\xd8\xff damaged")
    return folder


def test_pictures_are_drawn_from_the_whole_source(tmp_path: Path) -> None:
    found = taken(pictures.folder(tmp_path, 60))
    seeds = seeds_of(found, 60)
    assert found.pixels.shape == (20, 16, 16, 3) and found.pixels.dtype == np.uint8 and found.ids is None
    assert len(set(seeds)) == 20 and max(seeds) > 45 and min(seeds) < 15 and seeds != sorted(seeds)


def test_the_same_seed_draws_the_same_and_another_does_not(tmp_path: Path) -> None:
    pictures.folder(tmp_path, 60)
    first, again, other = taken(tmp_path), taken(tmp_path), taken(tmp_path, seed=1)
    assert np.array_equal(first.pixels, again.pixels) and first.spec == again.spec
    assert not np.array_equal(first.pixels, other.pixels) and first.spec.sha256 != other.spec.sha256


def test_a_larger_count_begins_with_the_same_pictures(tmp_path: Path) -> None:
    pictures.folder(tmp_path, 60)
    assert np.array_equal(taken(tmp_path, count=40).pixels[:20], taken(tmp_path).pixels)


def test_the_manifest_says_what_was_drawn(tmp_path: Path) -> None:
    found = taken(pictures.tar(tmp_path / "s.tar.gz", 30), tokenizer=pictures.tokenizer(), seed=3)
    assert found.ids is not None and len(found.ids) == 20
    spec = found.spec
    assert (spec.source, spec.images, spec.texts, spec.seed) == ("s.tar.gz", 20, 20, 3)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=CalibrationSpec) == spec


def test_the_digest_is_of_ids_too(tmp_path: Path) -> None:
    pictures.tar(tmp_path / "s.tar", 30)
    assert (
        taken(tmp_path / "s.tar").spec.sha256 != taken(tmp_path / "s.tar", tokenizer=pictures.tokenizer()).spec.sha256
    )


def test_texts_are_captions_of_the_pictures_that_were_drawn(tmp_path: Path) -> None:
    found = taken(pictures.table(tmp_path / "t.csv", 30), tokenizer=pictures.tokenizer())
    wanted = pictures.tokenizer()([f"caption {k} of {i}" for i in seeds_of(found, 30) for k in range(2)])
    assert found.ids is not None
    places = [np.flatnonzero((wanted == row).all(axis=1)).tolist() for row in found.ids]
    assert [place[0] // 2 for place in places] == list(range(20))


def test_texts_are_prompts_where_there_are_classes(tmp_path: Path) -> None:
    found = taken(training.test_set(tmp_path / "colours", count=32), tokenizer=pictures.tokenizer())
    prompts = [t.format(name) for name in training.COLOURS for t in ("a {} thing.", "all {}")]
    assert found.ids is not None
    assert {row.tobytes() for row in found.ids} == {row.tobytes() for row in pictures.tokenizer()(prompts)}


def test_a_file_of_texts_goes_before_those_of_the_pictures(tmp_path: Path) -> None:
    pictures.tar(tmp_path / "s.tar", 30)
    lines = [f"line {i}" for i in range(50)]
    (tmp_path / "texts.txt").write_text("\n\n".join(lines + lines[:5]), encoding="utf-8-sig")
    found = taken(tmp_path / "s.tar", tokenizer=pictures.tokenizer(), texts=tmp_path / "texts.txt")
    known = [row.tobytes() for row in pictures.tokenizer()(lines)]
    assert found.ids is not None and len(found.ids) == 20
    places = [known.index(row.tobytes()) for row in found.ids]
    assert max(places) > 30 and len(set(places)) == 20


def test_texts_that_are_cut_to_the_same_tokens_count_once(tmp_path: Path) -> None:
    start = "one two three four five six seven eight nine ten " * 8
    (tmp_path / "texts.txt").write_text("\n".join([*(f"{start} {i}" for i in range(20)), "another"]))
    pictures.folder(tmp_path / "p", 20)
    found = taken(tmp_path / "p", tokenizer=pictures.tokenizer(), texts=tmp_path / "texts.txt", count=21)
    assert found.ids is not None and len(found.ids) == 2
    assert any(line.startswith("2 different texts to calibrate on") for line in found.warnings)


def test_pictures_alone_have_no_texts(tmp_path: Path) -> None:
    found = taken(pictures.folder(tmp_path, 20), tokenizer=pictures.tokenizer())
    assert found.ids is None and found.spec.texts == 0


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures in this folder"):
        taken(tmp_path)


def test_one_picture_is_an_error(tmp_path: Path) -> None:
    pictures.folder(tmp_path, 1)
    with pytest.raises(
        DataError, match="1 of 1 pictures differ .*at least 16 are needed .*so few are noise; 300 pictures"
    ):
        taken(tmp_path)
    assert len(taken(tmp_path, minimum=1).pixels) == 1


def test_one_picture_many_times_is_an_error(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(pictures.encoded(0))
    with pytest.raises(DataError, match="1 of 20 pictures differ and have contrast, at least 16 are needed"):
        taken(tmp_path)


def test_asking_for_too_few_is_an_error(tmp_path: Path) -> None:
    pictures.folder(tmp_path, 20)
    with pytest.raises(
        UsageError, match="4 pictures to calibrate on, at least 16 are needed .*noise; the default is 300"
    ):
        taken(tmp_path, count=4)


def test_black_pictures_are_an_error(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(pictures.flat(0))
    with pytest.raises(DataError, match="no picture has any contrast: each of 20 is of one colour"):
        taken(tmp_path)


def test_pictures_of_one_colour_each_are_an_error(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(pictures.flat(10 * i))
    with pytest.raises(DataError, match="no picture has any contrast"):
        taken(tmp_path)


def test_many_black_pictures_among_others_are_a_warning(tmp_path: Path) -> None:
    pictures.folder(tmp_path, 18)
    for i in range(22):
        (tmp_path / f"black-{i}.png").write_bytes(pictures.flat(0))
    assert taken(tmp_path, count=40).warnings == ("only 18 of 40 pictures differ and have contrast",)


def test_unreadable_pictures_are_replaced_and_told_of(tmp_path: Path) -> None:
    found = taken(unreadable(pictures.folder(tmp_path, 40), 20), count=30)
    assert len(found.pixels) == 30 and len(set(seeds_of(found, 40))) == 30
    assert found.skipped and all(one.source.startswith("bad-") for one in found.skipped)
    assert "damaged" in found.skipped[0].reason and str(tmp_path) not in found.skipped[0].reason
    assert found.warnings[0].startswith(
        f"{len(found.skipped)} of {30 + len(found.skipped)} pictures cannot be read: bad-"
    )


def test_a_few_unreadable_pictures_are_no_warning(tmp_path: Path) -> None:
    found = taken(unreadable(pictures.folder(tmp_path, 20), 2), count=20)
    assert len(found.pixels) == 20 and len(found.skipped) <= 2 and found.warnings == ()


def test_none_readable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 18 pictures can be read: bad-\d+\.jpg: .*damaged"):
        taken(unreadable(tmp_path, 18))


def test_not_everything_is_tried_where_much_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 80 pictures can be read"):
        taken(unreadable(tmp_path, 100))


def test_samples_with_unusable_texts_are_replaced(tmp_path: Path) -> None:
    members = {f"{i}.png": pictures.encoded(i) for i in range(24)} | {"5.json": b"{", "7.json": b"[]"}
    training.shard(tmp_path / "s.tar", dict(sorted(members.items())))
    found = taken(tmp_path / "s.tar", count=22)
    assert len(found.pixels) == 22 and {one.source for one in found.skipped} <= {"s/5", "s/7"}


def test_fewer_pictures_than_wanted_are_a_warning(tmp_path: Path) -> None:
    found = taken(pictures.folder(tmp_path, 18), count=300)
    assert found.warnings == ("18 pictures to calibrate on, 300 were wanted",)


def test_too_few_texts_in_a_file_are_an_error(tmp_path: Path) -> None:
    pictures.folder(tmp_path / "p", 20)
    (tmp_path / "texts.txt").write_text("one\none\ntwo\n")
    with pytest.raises(DataError, match=r"texts\.txt: 2 different texts, at least 16 are needed"):
        taken(tmp_path / "p", tokenizer=pictures.tokenizer(), texts=tmp_path / "texts.txt")


def test_texts_for_a_model_without_a_text_tower_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"t\.txt: texts to calibrate on, and the model has no text tower"):
        taken(tmp_path, texts=tmp_path / "t.txt")


def test_what_was_drawn_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures.tar(tmp_path / "s.tar", 30)
    first = taken(tmp_path / "s.tar", tokenizer=pictures.tokenizer(), cache=True)
    monkeypatch.setattr(calibration, "_draw", lambda *args: pytest.fail("drawn again"))
    again = taken(tmp_path / "s.tar", tokenizer=pictures.tokenizer(), cache=True)
    assert np.array_equal(first.pixels, again.pixels) and first.spec == again.spec
    assert taken(tmp_path / "s.tar", cache=True).ids is None


def test_skipped_pictures_and_warnings_are_kept_too(tmp_path: Path) -> None:
    unreadable(pictures.folder(tmp_path, 20), 5)
    first = taken(tmp_path, cache=True)
    assert first.warnings
    again = taken(tmp_path, cache=True)
    assert (again.skipped, again.warnings) == (first.skipped, first.warnings)


@pytest.mark.parametrize("change", ["seed", "count", "size", "picture", "new"])
def test_what_was_kept_is_not_taken_for_something_else(tmp_path: Path, change: str) -> None:
    pictures.folder(tmp_path, 30)
    first = taken(tmp_path, cache=True)
    if change == "picture":
        for file in tmp_path.iterdir():
            file.write_bytes(pictures.encoded(99 + int(file.stem)))
    if change == "new":
        pictures.folder(tmp_path, 30, first=30)
    spec = msgspec.structs.replace(SPEC, size=12) if change == "size" else SPEC
    count, seed = 21 if change == "count" else 20, int(change == "seed")
    again = collect(tmp_path, spec, None, count=count, seed=seed)
    assert again.spec.sha256 != first.spec.sha256


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_damaged_cache_is_ignored(tmp_path: Path, private_cache: Path, damage: str) -> None:
    pictures.folder(tmp_path, 20)
    first = taken(tmp_path, cache=True)
    (entry,) = (private_cache / "calibration").iterdir()
    if damage == "cut":
        entry.write_bytes(entry.read_bytes()[:-5])
    else:
        cache.write(f"calibration/{entry.name}", json.dumps({"another": "format"}).encode())
    assert np.array_equal(taken(tmp_path, cache=True).pixels, first.pixels)


def test_without_a_cache_nothing_is_written(tmp_path: Path, private_cache: Path) -> None:
    taken(pictures.folder(tmp_path, 20))
    assert not list(private_cache.iterdir())


def test_what_is_refused_is_not_kept(tmp_path: Path, private_cache: Path) -> None:
    with pytest.raises(DataError, match="at least 16"):
        taken(pictures.folder(tmp_path, 3), cache=True)
    assert not list(private_cache.rglob("*.safetensors"))


def test_a_real_test_set(data_dir: Path) -> None:
    found = collect(data_dir / "eval" / "wds_flickr8k", SPEC, pictures.tokenizer(), count=64)
    assert (found.spec.images, found.spec.texts, found.spec.source, found.warnings) == (64, 64, "wds_flickr8k", ())
