"""What `edgeclip eval` says, beside transformers with scikit-learn, and beside LAION's CLIP_benchmark."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors

from edgeclip.benchmarks.adapter import load_clip
from edgeclip.benchmarks.embedded_set import EmbeddedSet
from edgeclip.benchmarks.embedding_child import EngineSpec
from edgeclip.benchmarks.embedding_process import embedded
from edgeclip.benchmarks.suites import zero_shot
from edgeclip.benchmarks.testdata import find_data, open_data
from edgeclip.loading import BUILT_IN
from edgeclip.testset import TestSet
from tests import cli, labelled

# What the webdataset library opens it leaves for the garbage collector to close.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SETS: dict[str, Callable[[Path], Path]] = {
    "wds_many": labelled.many_classes,
    "wds_voc": labelled.multilabel,
    "wds_captions": labelled.retrieval,
}
EXACT = 1e-6
REAL = 300
"""Images of each real set."""
IMAGES = ["webp", "png", "jpg", "jpeg"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("eval")
    for name, write in SETS.items():
        write(root / name)
    return root


@pytest.fixture(params=["built-in", "random"])
def bundle(request: pytest.FixtureRequest) -> Path:
    return BUILT_IN if request.param == "built-in" else request.getfixturevalue("tiny_bundle")


@functools.cache
def embed_all(bundle: Path, folder: Path, limit: int = 0) -> dict[str, EmbeddedSet]:
    """All sets of a folder, or the one that it is, as the child process embeds them."""
    specs = find_data([str(folder)], limit=limit)
    with embedded(EngineSpec(bundle=str(bundle), backend="onnxruntime"), specs) as found:
        sets = {spec.name: found[i] for i, spec in enumerate(specs)}
    return {name: one for name, one in sets.items() if isinstance(one, EmbeddedSet)}


def embed(bundle: Path, place: Path, limit: int = 0) -> EmbeddedSet:
    """One set; where it is no real one, those that lie beside it are embedded with it."""
    return embed_all(bundle, place if limit else place.parent, limit)[place.name]


def values(data: EmbeddedSet) -> dict[str, float]:
    return {name: metric.value for name, metric in zero_shot(data).items()}


# scikit-learn, on the same embeddings


def by_scikit_learn(data: EmbeddedSet) -> dict[str, float]:
    similarity = data.images.astype(np.float64) @ data.weights.astype(np.float64).T
    if data.is_multilabel:
        columns = [average_precision_score(data.truth[:, k], similarity[:, k]) for k in range(data.truth.shape[1])]
        return {"mean_average_precision": float(np.mean(columns))}
    if data.is_retrieval:
        return retrieval_by_scikit_learn(data)
    classes = np.arange(similarity.shape[1])
    return {
        "top1": accuracy_score(data.labels, similarity.argmax(axis=1)),
        "top5": top_k_accuracy_score(data.labels, similarity, k=5, labels=classes),
        "mean_per_class_recall": balanced_accuracy_score(data.labels, similarity.argmax(axis=1)),
    }


def retrieval_by_scikit_learn(data: EmbeddedSet) -> dict[str, float]:
    found = {}
    for rank in (1, 5, 10):
        texts = (
            NearestNeighbors(n_neighbors=rank, metric="cosine")
            .fit(data.weights)
            .kneighbors(data.images, return_distance=False)
        )
        images = (
            NearestNeighbors(n_neighbors=rank, metric="cosine")
            .fit(data.images)
            .kneighbors(data.weights, return_distance=False)
        )
        found[f"image_to_text_r{rank}"] = float(
            (data.owners[texts] == np.arange(len(data.images))[:, None]).any(axis=1).mean()
        )
        found[f"text_to_image_r{rank}"] = float((images == data.owners[:, None]).any(axis=1).mean())
    return found


@pytest.mark.parametrize("name", SETS)
def test_numbers_are_scikit_learns_on_the_same_embeddings(name: str, bundle: Path, folder: Path) -> None:
    data = embed(bundle, folder / name)
    assert values(data) == pytest.approx(by_scikit_learn(data), abs=EXACT)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize("name", ["wds_tinyimagenet", "wds_flickr8k"])
def test_numbers_are_scikit_learns_on_real_data(name: str, data_dir: Path) -> None:
    data = embed(BUILT_IN, data_dir / "eval" / name, REAL)
    assert values(data) == pytest.approx(by_scikit_learn(data), abs=EXACT)


# transformers, from the files to the numbers


class Peer:
    """The checkpoint that the random bundle was made of, as transformers runs it."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import CLIPModel
        from transformers.models.clip import CLIPImageProcessorPil

        self.model = CLIPModel.from_pretrained(folder).eval()
        self.processor = CLIPImageProcessorPil.from_pretrained(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()

    def images(self, images: list[Image.Image]) -> Any:
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return torch.nn.functional.normalize(
                features(self.model.get_image_features(pixel_values=pixels)), dim=-1
            ).numpy()

    def texts(self, texts: list[str]) -> Any:
        rows = []
        for text in texts:
            ids = torch.tensor([self.tokenizer.encode(text).ids])
            with torch.inference_mode():
                rows.append(
                    torch.nn.functional.normalize(features(self.model.get_text_features(input_ids=ids)), dim=-1)[
                        0
                    ].numpy()
                )
        return np.stack(rows)


def features(found: Any) -> Any:
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def samples(folder: Path, *suffixes: str) -> list[tuple[Any, ...]]:
    """As the webdataset library reads them."""
    urls = [str(tar) for tar in sorted((folder / "test").glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=lambda source: source)
    decoded = dataset.decode(webdataset.autodecode.ImageHandler("pil", extensions=IMAGES))
    return list(decoded.to_tuple(IMAGES, *suffixes))


def test_the_random_model_scores_what_it_scores_in_transformers(
    tiny_checkpoint: Path, tiny_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    done = cli.edgeclip(
        "eval", tiny_bundle, "--backend", "onnxruntime", "--precision", "fp32", "--suite", "classification",
        "--data", folder, "--sets", "wds_many", "--json",
    )  # fmt: skip
    found = {row["metric"]: row["value"] for row in json.loads(done.stdout)["rows"]}
    peer = Peer(tiny_checkpoint)
    names = (folder / "wds_many" / "classnames.txt").read_text().splitlines()
    prompts = peer.texts([prompt for name in names for prompt in (f"a {name} thing.", f"all {name}")])
    weights = prompts.reshape(len(names), 2, -1).mean(axis=1)
    read = samples(folder / "wds_many", "cls")
    similarity = (
        peer.images([image for image, _ in read]) @ (weights / np.linalg.norm(weights, axis=1, keepdims=True)).T
    )
    labels = np.array([label for _, label in read])
    assert found["top1"] == pytest.approx(accuracy_score(labels, similarity.argmax(axis=1)), abs=EXACT)
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, similarity, k=5, labels=range(8)), abs=EXACT)
    assert found["mean_per_class_recall"] == pytest.approx(
        balanced_accuracy_score(labels, similarity.argmax(axis=1)), abs=EXACT
    )


# CLIP_benchmark, with a bundle in place of a PyTorch model


class Loader:
    """Batches of a test set, as CLIP_benchmark's own builder makes them; that one needs torchvision."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], Any], limit: int | None = None) -> None:
        data = open_data(find_data([str(folder)])[0])
        assert isinstance(data, TestSet)
        self.dataset = SimpleNamespace(classes=list(data.classes))
        self.templates = [template.replace("{}", "{c}") for template in data.templates]
        kind = "txt" if data.is_retrieval else "npy" if data.is_multilabel else "cls"
        self._samples = samples(folder, kind)[:limit]
        self._is_retrieval = data.is_retrieval
        self._transform = transform

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for start in range(0, len(self._samples), 32):
            part = self._samples[start : start + 32]
            images = torch.stack([self._transform(image) for image, _ in part])
            if self._is_retrieval:
                yield images, [text.splitlines() for _, text in part]
            else:
                yield images, torch.from_numpy(np.array([target for _, target in part]))


def by_clip_benchmark(bundle: Path, folder: Path, limit: int | None = None) -> dict[str, float]:
    reason = "clip_benchmark is not installed: it needs torchvision, which this environment must not have"
    classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification", reason=reason)
    retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", reason=reason)
    # It makes a float of an array of one element, which NumPy 2.4 refuses; what it computes is untouched.
    vars(classification).setdefault("float", lambda value: np.asarray(value).item())
    model, transform, tokenizer = load_clip("onnxruntime", str(bundle))
    loader = Loader(folder, transform, limit)
    if not loader.dataset.classes:
        found = retrieval.evaluate(model.eval(), loader, tokenizer, device="cpu", amp=False, recall_k_list=[1, 5, 10])
        ways = {"text_retrieval_recall@": "image_to_text_r", "image_retrieval_recall@": "text_to_image_r"}
        return {
            ours + name.removeprefix(theirs): value
            for name, value in found.items()
            for theirs, ours in ways.items()
            if name.startswith(theirs)
        }
    found = classification.evaluate(
        model.eval(), loader, tokenizer, loader.dataset.classes, loader.templates, device="cpu", amp=False
    )
    return {{"acc1": "top1", "acc5": "top5"}.get(name, name): value for name, value in found.items()}


def test_clip_benchmark_finds_the_same_numbers_where_names_are_there_twice(tmp_path: Path) -> None:
    """As ImageNet's, two of which are."""
    folder = labelled.many_classes(tmp_path / "eval" / "wds_twice")
    names = (folder / "classnames.txt").read_text().splitlines()
    (folder / "classnames.txt").write_text("\n".join([*names[:2], names[0], *names[3:5], names[3], "", names[7]]))
    ours = values(embed(BUILT_IN, folder))
    theirs = by_clip_benchmark(BUILT_IN, folder)
    assert (ours["top1"], ours["mean_per_class_recall"]) == pytest.approx(
        (theirs["top1"], theirs["mean_per_class_recall"]), abs=EXACT
    )


@pytest.mark.parametrize("name", SETS)
def test_clip_benchmark_finds_the_same_numbers(name: str, bundle: Path, folder: Path) -> None:
    assert by_clip_benchmark(bundle, folder / name) == pytest.approx(values(embed(bundle, folder / name)), abs=EXACT)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["wds_pacs_photo", "wds_flickr8k"])
def test_clip_benchmark_finds_the_same_numbers_on_real_data(name: str, data_dir: Path) -> None:
    theirs = by_clip_benchmark(BUILT_IN, data_dir / "eval" / name, REAL)
    assert theirs == pytest.approx(values(embed(BUILT_IN, data_dir / "eval" / name, REAL)), abs=EXACT)
