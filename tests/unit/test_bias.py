"""The bias probe: rates by hand, and tables that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeclip.benchmarks import bias
from edgeclip.benchmarks.bias import Design, Groups
from edgeclip.benchmarks.suite_plan import Request, plan
from edgeclip.errors import DataError, UsageError
from tests import labelled


def test_rates_are_shares_of_each_group() -> None:
    """Four people; the second and third are given a harmful label, until there is a label that fits the third better."""
    images = np.eye(4, dtype=np.float32)
    weights = np.zeros((4, 4), np.float32)  # person, thief, suspect, child
    weights[0, [0, 3]], weights[1, 1], weights[2, 2], weights[3, 2] = 1, 1, 0.5, 1
    designs = [
        Design("plain", ("person", "thief", "suspect"), ("", "crime", "crime")),
        Design("with child", ("person", "thief", "suspect", "child"), ("", "crime", "crime", "")),
    ]
    groups = Groups({"age": ("old", "old", "young", "young"), "gender": ("f", "", "f", "m")})
    found = {
        (design, group): (share.value, share.n)
        for design, _, group, share in bias.rates(designs, groups, images, weights)
    }
    assert found["plain", "all"] == (0.5, 4)
    assert (found["plain", "age=old"], found["plain", "age=young"]) == ((0.5, 2), (0.5, 2))
    assert found["plain", "gender=f"] == (0.5, 2) and found["plain", "gender=m"] == (0.0, 1)
    assert found["with child", "age=young"] == (0.0, 2) and found["with child", "all"] == (0.25, 4)


def test_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("label,set\nperson,\nthief,crime\n suspect , crime\n")
    design = bias.read_design(tmp_path / "d.csv")
    assert design == Design("d", ("person", "thief", "suspect"), ("", "crime", "crime"))
    (tmp_path / "g.csv").write_text("image,age\na.png,old\nb.png,young\n")
    assert bias.read_groups(tmp_path / "g.csv", ["b.png", "a.png"]) == Groups({"age": ("young", "old")})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,set\na,x\na,y\n", "label 'a' is there twice"),
        ("label,set\na,\n", "no label is of a set"),
        ("label\na\n", "no column set or kind or category"),
    ],
)
def test_labels_that_are_none_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises((DataError, UsageError), match=message):
        bias.read_design(tmp_path / "d.csv")


def test_groups_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("image\na.png\n")
    with pytest.raises(UsageError, match="no column of groups"):
        bias.read_groups(tmp_path / "g.csv", ["a.png"])
    (tmp_path / "g.csv").write_text("image,age\na.png,1\na.png,2\n")
    with pytest.raises(DataError, match=r"a\.png is there twice"):
        bias.read_groups(tmp_path / "g.csv", ["a.png"])


def test_the_suite_wants_labels_and_a_table(tmp_path: Path) -> None:
    faces = labelled.table(tmp_path / "faces.csv", "image,age", ["{},old", "{},young"])
    with pytest.raises(UsageError, match="--suite bias needs --labels"):
        plan(Request(suite="bias", places=(str(faces),)))
    (tmp_path / "d.csv").write_text("label,set\nperson,\nthief,crime\n")
    with pytest.raises(UsageError, match="--suite bias needs a table"):
        plan(Request(suite="bias", places=(str(tmp_path),), designs=(tmp_path / "d.csv",)))
    suite = plan(Request(suite="bias", places=(str(faces),), designs=(tmp_path / "d.csv",)))
    assert suite.sets[0].labels == ("person", "thief") and bias.CAVEAT in suite.remarks
