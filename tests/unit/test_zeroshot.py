"""Zero-shot classification, its prompts and its errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgeclip
from edgeclip import templates, zeroshot
from edgeclip.errors import UsageError


def test_prompts_are_made_label_by_label() -> None:
    assert zeroshot.prompts(["cat", "dog"], ["a {}", "{}!"]) == ["a cat", "cat!", "a dog", "dog!"]


@pytest.mark.parametrize("label", ["{x}", "50% off", "a {} b", "\\g<0>"])
def test_a_label_may_hold_anything(label: str) -> None:
    assert templates.fill(["a photo of a {}."], label) == [f"a photo of a {label}."]


@pytest.mark.parametrize(
    ("labels", "prompts", "message"),
    [
        ([], ["{}"], "at least one label"),
        (["cat"], [], "at least one label and one template"),
        (["cat", "dog", "cat"], ["{}"], "label 'cat' is given twice"),
        (["cat"], ["a photo"], "template 'a photo' has no place for the label"),
        ("cat", ["{}"], "labels and templates are lists of strings"),
    ],
)
def test_bad_labels_and_templates_are_named(labels: list[str], prompts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        zeroshot.prompts(labels, prompts)


def test_an_ensemble_is_the_normalised_mean() -> None:
    rows = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    expected = np.array([[2**-0.5, 2**-0.5], [1, 0]], np.float32)
    assert np.allclose(zeroshot.ensemble(rows, 2), expected)


def test_probabilities_are_a_softmax_of_scaled_cosines() -> None:
    weights = np.eye(3, dtype=np.float32)
    image = np.array([[0.6, 0.8, 0.0]], np.float32)
    one = zeroshot.Classifier(["a", "b", "c"], weights, 10.0, lambda images: image)
    e = np.exp(np.array([6.0, 8.0, 0.0]))
    assert np.allclose(one.probabilities(["x.jpg"]), e / e.sum(), atol=1e-6)
    assert [p.label for p in one.predict("x.jpg", top_k=2)] == ["b", "a"]


def test_softmax_survives_large_logits() -> None:
    assert np.allclose(zeroshot.softmax(np.array([[1e4, 0.0]])), [[1.0, 0.0]])


def test_a_classifier_agrees_with_the_model(tiny_bundle: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    with edgeclip.load(tiny_bundle) as model:
        labels = ["cat", "the dog", "phone"]
        texts = model.encode_text([f"a photo of a {label}." for label in labels])
        logits = model.similarity(model.encode_image(pixels), texts)
        expected = zeroshot.softmax(logits)[0]
        got = {p.label: p.probability for p in model.classifier(labels).predict(pixels)}
    assert np.allclose([got[label] for label in labels], expected, atol=1e-5)


def test_a_classifier_made_again_needs_no_engine(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with edgeclip.load(tiny_bundle) as model:
        first = model.classifier(["cat", "dog"], templates.general).weights
    with edgeclip.load(tiny_bundle) as model:
        monkeypatch.setattr(model, "_run", lambda *a: pytest.fail("encoded again"))
        assert np.array_equal(model.classifier(["cat", "dog"], templates.general).weights, first)


def test_shipped_templates_all_have_a_place_for_the_label() -> None:
    for group in templates.NAMED.values():
        assert templates.fill(group, "x")
