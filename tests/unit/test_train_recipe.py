"""Recipes: what is refused and how, overrides, and the recipes that edgeclip brings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeclip.errors import UsageError
from edgeclip.train.loop import start
from edgeclip.train.recipe import RECIPES, decode, read_recipe, resolve
from tests import training


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("loop__batchsize", "toy.toml [loop]: unknown key 'batchsize' (did you mean 'batch_size'?)"),
        ("optimiser", "toy.toml [top]: unknown key 'optimiser' (did you mean 'optimizer'?)"),
        ("augment__hue", "toy.toml [augment]: unknown key 'hue' (known: scale, ratio, flip"),
        ("distill__weight", "toy.toml [distill]: unknown key 'weight' (did you mean 'weights'?)"),
    ],
)
def test_an_unknown_key_is_refused_with_its_table_and_a_suggestion(tmp_path: Path, key: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        training.recipe(tmp_path, **{key: 1})


def test_an_unknown_key_of_a_source_names_what_it_has(tmp_path: Path) -> None:
    source = {"kind": "shards", "url": ["x.tar"]}
    with pytest.raises(UsageError, match=r"\[data.sources\]: unknown key 'url' \(did you mean 'urls'\?\)"):
        training.recipe(tmp_path, data__sources=[source])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("loop__batch_size", "many", "Expected an integer, got a string - at `loop.batch_size`"),
        ("loop__precision", "int4", "Invalid enum value 'int4' - at `loop.precision`"),
        ("optimizer__lr", -1.0, "Expected a number > 0.0 - at `optimizer.lr`"),
        ("augment__scale", [0.9, 0.2], "scale must rise within (0, 1], got [0.9, 0.2]"),
        ("loop__sides", [[0.5, 16]], "sides must begin at 0.0 and rise, got [0.5]"),
        ("loop__sides", [[0.0, 16], [0.0, 24]], "sides must begin at 0.0 and rise, got [0.0, 0.0]"),
        ("loop__epochs", 3, "give one of `loop.epochs` and `loop.steps`"),
        ("distill__weights", {"affinity": 1.0}, "give `teacher` or `stored`"),
    ],
)
def test_a_bad_value_is_refused_with_its_key(tmp_path: Path, key: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        training.recipe(tmp_path, **{key: value})


def test_epochs_need_data_of_known_length(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="streams have no length"):
        training.recipe(tmp_path, loop__epochs=2, loop__steps=0, data__cache="none")


def test_sides_follow_the_part_that_is_done(tmp_path: Path) -> None:
    loop = training.recipe(tmp_path, loop__sides=[[0.0, 16], [0.5, 24], [0.75, 32]]).loop
    assert [loop.side(done) for done in (0.0, 0.49, 0.5, 0.74, 0.75, 0.99)] == [16, 16, 24, 24, 32, 32]
    assert training.recipe(tmp_path / "plain").loop.side(0.5) == 0


def test_sources_are_told_apart_only_where_they_are_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'`loop.contrast = "source"` needs `data.cache`'):
        training.recipe(tmp_path, loop__contrast="source", data__cache="none")


def test_overrides_are_toml_or_else_strings(tmp_path: Path) -> None:
    file = training.recipe_file(tmp_path)
    recipe = read_recipe(file, ["optimizer.lr=5e-4", "name=other", "augment.scale=[0.5, 0.9]", "loop.tensorboard=true"])
    assert recipe.optimizer.lr == 5e-4 and recipe.name == "other"
    assert recipe.augment.scale == (0.5, 0.9) and recipe.loop.tensorboard


def test_an_override_without_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape("override 'loop.steps' is not of the form table.key=value")):
        read_recipe(training.recipe_file(tmp_path), ["loop.steps"])


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("name = ")
    with pytest.raises(UsageError, match=r"x\.toml: not TOML"):
        read_recipe(tmp_path / "x.toml")


def test_a_recipe_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"nosuch: no such recipe .*smoke"):
        read_recipe("nosuch")


def test_variables_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLIP_DATA", "/somewhere")
    assert resolve("$EDGECLIP_DATA/train") == Path("/somewhere/train")
    monkeypatch.delenv("EDGECLIP_DATA")
    with pytest.raises(UsageError, match="EDGECLIP_DATA is not set"):
        resolve("$EDGECLIP_DATA/train")


def test_a_recipe_keeps_the_name_of_a_variable_but_wants_it_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECLIP_DATA", str(tmp_path / "data"))
    file = training.recipe_file(tmp_path, data__root="$EDGECLIP_DATA")
    recipe = read_recipe(file)
    assert recipe.plain["data"]["root"] == "$EDGECLIP_DATA"
    with start(recipe) as run:
        assert len(next(iter(run.parts.loader.batches(0)))) == 16
    monkeypatch.delenv("EDGECLIP_DATA")
    with pytest.raises(UsageError, match="EDGECLIP_DATA is not set"):
        read_recipe(file)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_the_recipes_that_edgeclip_brings_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLIP_DATA", "/data")
    assert read_recipe(name).name == name


def test_the_digest_is_of_what_the_recipe_says(tmp_path: Path) -> None:
    plain = training.tables(tmp_path)
    one, same = (decode(plain, "x", base=tmp_path).digest for _ in range(2))
    other = training.recipe(tmp_path, loop__batch_size=8).digest
    assert one == same != other
