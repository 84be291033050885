"""Reading and writing checkpoints: what is told from content, what is kept."""

from __future__ import annotations

import fnmatch
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeclip.errors import (
    CheckpointError,
    ExportExistsError,
    TargetUnavailableError,
    UsageError,
)
from edgeclip.train.checkpoints import Origin, build, read_checkpoint, save_checkpoint
from edgeclip.train.checkpoints.infer import infer_config
from edgeclip.train.models import Clip, ResNetConfig, VitConfig, list_published, load_config
from tests import checkpoints
from tests.checkpoints import edit_json, write_json

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
ORIGIN = Origin(licence="mit", recipe="a recipe", data="some pictures")


@pytest.fixture
def openclip(tmp_path: Path) -> Path:
    checkpoints.openclip_dir(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def written_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "model"
    checkpoints.hf_clip(folder)
    return folder


@pytest.fixture
def hf(written_hf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written_hf, tmp_path / "model"))


# What is told from content


def test_openclip_directory(openclip: Path) -> None:
    checkpoint = read_checkpoint(openclip)
    assert (checkpoint.format, checkpoint.source, checkpoint.origin.licence) == ("openclip", "model", "mit")
    assert checkpoint.preprocess.crop == "round"
    assert checkpoint.config.activation == "gelu"


def test_openclip_config_decides_the_activation(tmp_path: Path) -> None:
    checkpoints.openclip_dir(tmp_path / "model", quick_gelu=True)
    assert read_checkpoint(tmp_path / "model").config.activation == "quick_gelu"


def test_huggingface_directory(hf: Path) -> None:
    checkpoint = read_checkpoint(hf)
    assert checkpoint.format == "huggingface"
    assert checkpoint.preprocess.crop == "floor"
    assert checkpoint.config.text.eot_id == 299
    assert isinstance(checkpoint.config.image, VitConfig)
    assert checkpoint.config.image.heads == 6


def test_legacy_end_of_text_means_the_highest_id(hf: Path) -> None:
    edit_json(hf / "config.json", "text_config", "eos_token_id", value=2)
    assert read_checkpoint(hf).config.text.eot_id is None


def test_an_old_config_dict_overrides_as_in_transformers(hf: Path) -> None:
    text = {"hidden_size": 80, "num_attention_heads": 10, "intermediate_size": 200, "num_hidden_layers": 2}
    edit_json(hf / "config.json", "text_config_dict", value=text | {"vocab_size": 300})
    config = read_checkpoint(hf).config.text
    assert (config.heads, config.eot_id) == (10, 49407)


@pytest.mark.parametrize("arch", ["vit", "resnet"])
def test_openai_archive_tells_its_architecture(arch: str, tmp_path: Path) -> None:
    checkpoints.openai_archive(tmp_path / "model.bin", arch)
    checkpoint = read_checkpoint(tmp_path / "model.bin")
    assert (checkpoint.format, checkpoint.config.activation) == ("openai", "quick_gelu")
    assert checkpoint.config.image_size == 64
    expected = VitConfig if arch == "vit" else ResNetConfig
    assert isinstance(checkpoint.config.image, expected)
    assert {t.dtype for t in checkpoint.state_dict.values() if t.is_floating_point()} == {torch.float32}


def test_openai_state_dict_is_quick_gelu(tmp_path: Path) -> None:
    torch.save(checkpoints.openai_state(), tmp_path / "clip.pt")
    checkpoint = read_checkpoint(tmp_path / "clip.pt")
    assert (checkpoint.format, checkpoint.config.activation) == ("openai", "quick_gelu")


@pytest.mark.parametrize("name", list_published())
def test_published_sizes_are_recognised(name: str) -> None:
    with torch.device("meta"):
        state = Clip(load_config(name)).state_dict()
    assert infer_config(state, "quick_gelu", "clip.pt") == load_config(name)


def test_training_checkpoint_is_unwrapped(tmp_path: Path) -> None:
    state = checkpoints.openclip_state(checkpoints.reference())
    content = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "optimizer": {}}
    torch.save(content, tmp_path / "epoch_3.pt")
    assert read_checkpoint(tmp_path / "epoch_3.pt", activation="gelu").format == "openclip"


def test_bare_weights_do_not_tell_their_activation(openclip: Path) -> None:
    (openclip / CONFIG).unlink()
    with pytest.raises(CheckpointError, match=r"do not tell their activation.*--activation quick_gelu or"):
        read_checkpoint(openclip)


def test_activation_of_bare_weights_is_taken_as_given(openclip: Path) -> None:
    (openclip / CONFIG).unlink()
    assert read_checkpoint(openclip / WEIGHTS, activation="gelu").config.activation == "gelu"


def test_given_activation_overrides_the_checkpoint(openclip: Path) -> None:
    config = read_checkpoint(openclip, activation="quick_gelu").config
    assert isinstance(config.image, VitConfig)
    assert (config.image.activation, config.text.activation) == ("quick_gelu", "quick_gelu")


def test_heads_of_odd_widths_cannot_be_told(tmp_path: Path) -> None:
    checkpoints.openclip_dir(tmp_path, "odd-vit")
    (tmp_path / CONFIG).unlink()
    with pytest.raises(CheckpointError, match="a width of 96 is not a multiple of 64"):
        read_checkpoint(tmp_path, activation="gelu")


def test_given_architecture_must_fit(openclip: Path) -> None:
    (openclip / CONFIG).unlink()
    with pytest.raises(CheckpointError, match=r"lacks image\.transformer\.blocks\.2\..* and \d+ more"):
        read_checkpoint(openclip, activation="gelu", architecture="ViT-B-32")


def test_architecture_cannot_contradict_a_config(openclip: Path) -> None:
    with pytest.raises(UsageError, match=r"open_clip_config\.json says its architecture \(drop --architecture\)"):
        read_checkpoint(openclip, architecture="ViT-B-32")


def test_unknown_activation_is_refused(openclip: Path) -> None:
    with pytest.raises(UsageError, match="unknown activation 'relu'"):
        read_checkpoint(openclip, activation="relu")


def test_tokenizer_of_the_directory_is_found(openclip: Path) -> None:
    assert read_checkpoint(openclip).tokenizer is None
    (openclip / "vocab.json").touch()
    (openclip / "merges.txt").touch()
    assert read_checkpoint(openclip).tokenizer == openclip
    (openclip / "tokenizer.json").touch()
    assert read_checkpoint(openclip).tokenizer == openclip / "tokenizer.json"


def test_digest_is_the_weights_own(openclip: Path) -> None:
    before = read_checkpoint(openclip).sha256
    state = load_file(openclip / WEIGHTS)
    state["logit_scale"] += 1
    save_file(state, openclip / WEIGHTS)
    assert read_checkpoint(openclip).sha256 != before


def test_safetensors_are_preferred_to_pickles(openclip: Path) -> None:
    (openclip / "open_clip_pytorch_model.bin").write_bytes(b"not even a pickle")
    assert read_checkpoint(openclip).format == "openclip"


def test_building_shares_no_memory(openclip: Path) -> None:
    checkpoint = read_checkpoint(openclip)
    clip = build(checkpoint)
    with torch.no_grad():
        clip.logit_scale.add_(1)
    assert build(checkpoint).logit_scale.item() == pytest.approx(clip.logit_scale.item() - 1)


# Preprocessing


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"size": 60, "crop_size": 60}, {"resize": "shortest"}),
        ({"size": {"height": 60, "width": 60}, "do_center_crop": False}, {"resize": "squash"}),
        ({"resample": 2}, {"interpolation": "bilinear"}),
        ({"image_mean": [0.5, 0.5, 0.5]}, {"mean": (0.5, 0.5, 0.5)}),
        ({"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
    ],
)
def test_huggingface_preprocessing(hf: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    write_json(hf / "preprocessor_config.json", checkpoints.hf_preprocessor(60) | changes)
    preprocess = msgspec.to_builtins(read_checkpoint(hf).preprocess)
    assert {key: preprocess[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"shortest_edge": 64}}, "does not make the model's 60 x 60"),
        ({"do_center_crop": False}, "without a crop does not make"),
        ({"crop_size": {"height": 60, "width": 48}}, "does not make"),
        ({"do_resize": False}, "images must be resized"),
        ({"rescale_factor": 1 / 127.5}, "scaled by 1/255"),
        ({"resample": 0}, "resample 0 is neither"),
        ({"image_std": [0.0, 1.0, 1.0]}, "std must lie in"),
        ({"image_mean": [0.5]}, r"Expected `array` of length 3.*image_mean"),
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor is not supported"),
    ],
)
def test_preprocessing_that_cannot_be_kept_is_refused(hf: Path, changes: dict[str, Any], message: str) -> None:
    write_json(hf / "preprocessor_config.json", checkpoints.hf_preprocessor(60) | changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(hf)


def test_preprocessor_inside_a_processor(hf: Path) -> None:
    (hf / "preprocessor_config.json").unlink()
    inner = checkpoints.hf_preprocessor(60) | {"resample": 2}
    write_json(hf / "processor_config.json", {"image_processor": inner})
    assert read_checkpoint(hf).preprocess.interpolation == "bilinear"


def test_without_a_preprocessor_it_is_that_of_clip(hf: Path) -> None:
    expected = read_checkpoint(hf).preprocess
    (hf / "preprocessor_config.json").unlink()
    assert read_checkpoint(hf).preprocess == expected


@pytest.mark.parametrize("width", [61, 62, 63, 65, 67])
def test_transformers_crops_as_we_record_it(width: int) -> None:
    processor = pytest.importorskip("transformers.models.clip.image_processing_pil_clip").CLIPImageProcessorPil
    import numpy as np

    image = np.broadcast_to(np.arange(width), (3, 60, width)).astype(np.float32)
    size = {"height": 60, "width": 60}
    steps = {"do_resize": False, "do_rescale": False, "do_normalize": False, "crop_size": size}
    cropped = processor(**steps)(image, input_data_format="channels_first")["pixel_values"][0]
    assert cropped[0, 0, 0] == (width - 60) // 2


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        ({"interpolation": "bilinear"}, "interpolation", "bilinear"),
        ({"interpolation": "random"}, "interpolation", "bicubic"),
        ({"resize_mode": "squash"}, "resize", "squash"),
        ({"size": [64, 64]}, "size", 64),
        ({"std": [0.5, 0.5, 0.5]}, "std", (0.5, 0.5, 0.5)),
    ],
)
def test_openclip_preprocessing(openclip: Path, settings: dict[str, Any], field: str, value: Any) -> None:
    edit_json(openclip / CONFIG, "preprocess_cfg", value=settings)
    assert getattr(read_checkpoint(openclip).preprocess, field) == value


# Our own directory


@pytest.fixture
def saved(openclip: Path, tmp_path: Path) -> Path:
    checkpoint = read_checkpoint(openclip)
    (openclip / "tokenizer.json").write_text("{}")
    return save_checkpoint(
        build(checkpoint), tmp_path / "own", checkpoint.preprocess, openclip / "tokenizer.json", origin=ORIGIN
    )


def test_saved_checkpoint_reads_back(openclip: Path, saved: Path) -> None:
    before, after = read_checkpoint(openclip), read_checkpoint(saved)
    assert (after.format, after.origin, after.tokenizer) == ("edgeclip", ORIGIN, saved / "tokenizer.json")
    assert (after.config, after.preprocess) == (before.config, before.preprocess)
    assert after.state_dict.keys() == before.state_dict.keys()
    assert all(torch.equal(tensor, before.state_dict[name]) for name, tensor in after.state_dict.items())


def test_saving_twice_writes_the_same_bytes(openclip: Path, saved: Path, tmp_path: Path) -> None:
    again = save_checkpoint(build(read_checkpoint(saved)), tmp_path / "again", read_checkpoint(saved).preprocess)
    assert (again / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


def test_saving_replaces_nothing(saved: Path) -> None:
    checkpoint = read_checkpoint(saved)
    with pytest.raises(ExportExistsError, match="own: exists already"):
        save_checkpoint(build(checkpoint), saved, checkpoint.preprocess)


def test_failed_save_leaves_nothing(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    checkpoint = read_checkpoint(saved)
    monkeypatch.setattr(shutil, "copyfile", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Exception, match="fresh: cannot be written: No space left on device"):
        save_checkpoint(build(checkpoint), tmp_path / "fresh", checkpoint.preprocess, saved / "tokenizer.json")
    assert sorted(tmp_path.iterdir()) == before


def test_saving_needs_a_tokenizer_that_exists(saved: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(saved)
    with pytest.raises(UsageError, match=r"nowhere: no tokenizer \(looked for tokenizer\.json"):
        save_checkpoint(build(checkpoint), tmp_path / "fresh", checkpoint.preprocess, tmp_path / "nowhere")


def test_weights_of_another_checkpoint_are_noticed(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in state.items()}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not the weights that edgeclip\.json describes"):
        read_checkpoint(saved)


def test_newer_description_asks_for_an_upgrade(saved: Path) -> None:
    edit_json(saved / "edgeclip.json", "format_version", value=2)
    with pytest.raises(CheckpointError, match=r"format version 2, this edgeclip reads 1 \(pip install -U edgeclip\)"):
        read_checkpoint(saved)


def test_our_weights_alone_point_to_their_directory(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"pass the directory that holds edgeclip\.json"):
        read_checkpoint(saved / "model.safetensors")


# The hub


class _Hub:
    """`snapshot_download` over a local directory."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository = repository
        self.cache = cache
        self.calls: list[tuple[str, str | None]] = []

    def __call__(self, name: str, *, repo_type: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert repo_type == "model"
        self.calls.append((name, revision))
        self.cache.mkdir(exist_ok=True)
        for file in self.repository.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copyfile(file, self.cache / file.name)
        return str(self.cache)


@pytest.fixture
def hub(openclip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Hub:
    library = pytest.importorskip("huggingface_hub")
    fake = _Hub(openclip, tmp_path / "cache")
    monkeypatch.setattr(library, "snapshot_download", fake)
    return fake


def test_hub_reference_names_the_source(hub: _Hub) -> None:
    checkpoint = read_checkpoint("hf-hub:org/clip@v1")
    assert (checkpoint.source, checkpoint.format) == ("hf-hub:org/clip@v1", "openclip")
    assert set(hub.calls) == {("org/clip", "v1")}


def test_hub_downloads_the_weights_once(hub: _Hub) -> None:
    (hub.repository / "open_clip_pytorch_model.bin").touch()
    (hub.repository / "flax_model.msgpack").touch()
    read_checkpoint("hf-hub:org/clip")
    assert sorted(file.name for file in hub.cache.iterdir()) == ["README.md", CONFIG, WEIGHTS]


def test_hub_repository_without_weights(hub: _Hub) -> None:
    (hub.repository / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="hf-hub:org/clip: no weights in the repository"):
        read_checkpoint("hf-hub:org/clip")


def test_hub_that_cannot_be_reached(hub: _Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"hf-hub:org/clip: no connection \(check the name, the revision"):
        read_checkpoint("hf-hub:org/clip")


def test_hub_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(TargetUnavailableError, match=r"is not installed \(pip install 'edgeclip\[hub\]'"):
        read_checkpoint("hf-hub:org/clip")
