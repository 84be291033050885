"""Checkpoints that are refused: not CLIP, damaged, or dangerous."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeclip.errors import (
    CheckpointError,
    CheckpointUnsafeError,
    EdgeClipError,
    NonFiniteError,
)
from edgeclip.train.checkpoints import read_checkpoint
from tests import checkpoints
from tests.checkpoints import edit_json, write_json

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


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


# Not CLIP


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("preprocess_cfg", "resize_mode"), "longest", r"Invalid enum value 'longest' - at `\$\.resize`"),
        (("preprocess_cfg", "size"), 96, "images of 96 for a model of 64"),
        (("model_cfg", "vision_cfg", "timm_model_name"), "convnext", "timm_model_name = 'convnext' is not supported"),
        (("model_cfg", "vision_cfg", "attentional_pool"), True, "attentional_pool = True is not supported"),
        (("model_cfg", "vision_cfg", "image_size"), [64, 96], r"image_size \[64, 96\] is not square"),
        (("model_cfg", "text_cfg", "no_causal_mask"), True, "no_causal_mask = True is not supported"),
        (("model_cfg", "text_cfg", "pool_type"), "last", "pool_type = 'last' is not supported"),
        (("model_cfg", "text_cfg", "heads"), 7, "7 heads do not divide a width of 64"),
        (("model_cfg", "embed_dim"), "wide", r"Expected `int`, got `str` - at `\$\.model_cfg\.embed_dim`"),
        (
            ("model_cfg", "embed_dim"),
            32,
            r"fit ViT-128x2-16-64: image\.projection\.weight \[48, 128\] instead",
        ),
        (("model_cfg", "multimodal_cfg"), {"layers": 2}, "multimodal_cfg is not supported"),
    ],
)
def test_openclip_config_that_is_not_clip(openclip: Path, path: tuple[str, ...], value: Any, message: str) -> None:
    edit_json(openclip / CONFIG, *path, value=value)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(openclip)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model_type",), "siglip", "model_type 'siglip' is not supported"),
        (("text_config", "hidden_act"), "relu", r"Invalid enum value 'relu' - at `\$\.text\.activation`"),
        (("text_config", "eos_token_id"), [1, 2], r"eos_token_id \[1, 2\] is not one id"),
        (("vision_config", "num_channels"), 4, "4 channels are not supported"),
        (("vision_config", "patch_size"), [12, 10], r"patch_size \[12, 10\] is not square"),
    ],
)
def test_huggingface_config_that_is_not_clip(hf: Path, path: tuple[str, ...], value: Any, message: str) -> None:
    edit_json(hf / "config.json", *path, value=value)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(hf)


def _drop(state: dict[str, Any]) -> None:
    del state["ln_final.weight"]


def _add(state: dict[str, Any]) -> None:
    state["logit_bias"] = torch.zeros(())


def _widen(state: dict[str, Any]) -> None:
    state["text_projection"] = torch.zeros(64, 50)


def _poison(state: dict[str, Any]) -> None:
    state["ln_final.weight"][3] = float("nan")


def _overflow(state: dict[str, Any]) -> None:
    state["visual.proj"][0, 0] = float("inf")


def _timm(state: dict[str, Any]) -> None:
    state["visual.trunk.stem.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_drop, CheckpointError, "model: lacks text.norm_post.weight"),
        (_add, CheckpointError, "model: has unexpected logit_bias"),
        (_widen, CheckpointError, r"text\.projection\.weight \[50, 64\] instead of \[48, 64\]"),
        (_poison, NonFiniteError, "model: NaN or infinity in text.norm_post.weight"),
        (_overflow, NonFiniteError, "model: NaN or infinity in image.projection.weight"),
        (_timm, CheckpointError, "image towers of timm are not supported"),
    ],
)
def test_damaged_state(
    openclip: Path, damage: Callable[[dict[str, Any]], None], error: type[Exception], message: str
) -> None:
    state = load_file(openclip / WEIGHTS)
    damage(state)
    save_file(state, openclip / WEIGHTS)
    with pytest.raises(error, match=message):
        read_checkpoint(openclip)


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file or directory \(a hub model is written hf-hub:org/name\)"):
        read_checkpoint(tmp_path / "nothing")


def test_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights in the directory \(looked for open_clip_model.safetensors"):
        read_checkpoint(tmp_path)


def test_directory_with_several_weights(tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()
    (tmp_path / "b.pt").touch()
    with pytest.raises(CheckpointError, match=r"2 files could hold the weights: a\.pt, b\.pt \(name the file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.*git lfs pull"),
        (b"", "neither safetensors nor a PyTorch checkpoint"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "neither safetensors nor a PyTorch checkpoint"),
        (b"PK\x03\x04 and no more", "truncated or damaged"),
    ],
)
def test_files_that_are_no_weights(openclip: Path, content: bytes, message: str) -> None:
    (openclip / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(openclip)


def _save(kind: str, file: Path) -> None:
    state = checkpoints.openclip_state(checkpoints.reference())
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "archive":
        checkpoints.openai_archive(file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "archive"])
def test_truncated_weights(kind: str, kept: float, tmp_path: Path) -> None:
    file = tmp_path / "model"
    _save(kind, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError, match="model: "):
        read_checkpoint(file)


def test_huggingface_weights_need_their_config(hf: Path) -> None:
    (hf / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"Hugging Face weights without config\.json"):
        read_checkpoint(hf)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    checkpoints.hf_clip(tmp_path, max_shard_size="100KB")
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of.*no such file"):
        read_checkpoint(tmp_path)


def test_index_may_not_leave_the_directory(hf: Path) -> None:
    write_json(hf / "model.safetensors.index.json", {"weight_map": {"logit_scale": "../secret.safetensors"}})
    with pytest.raises(CheckpointError, match=r"\.\./secret\.safetensors is not a file beside it"):
        read_checkpoint(hf)


def test_malformed_json_is_named(openclip: Path) -> None:
    (openclip / CONFIG).write_text('{"model_cfg": ')
    with pytest.raises(CheckpointError, match=r"open_clip_config\.json: Input data was truncated"):
        read_checkpoint(openclip)


def test_weights_of_something_else(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.zeros(2)}, tmp_path / "bert.safetensors")
    with pytest.raises(CheckpointError, match=r"no CLIP model known .* has tensors named encoder\.weight"):
        read_checkpoint(tmp_path / "bert.safetensors")


def test_state_that_is_no_mapping(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt: holds list, not a state dict"):
        read_checkpoint(tmp_path / "list.pt")


# Pickles


class _Payload:
    """Unpickling it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture
def trap(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint with a payload, and the file that the payload would create."""
    ran = tmp_path / "ran"
    state = checkpoints.openclip_state(checkpoints.reference())
    torch.save({"state_dict": state, "args": _Payload(ran)}, tmp_path / "model.pt")
    return tmp_path / "model.pt", ran


def test_payload_of_a_pickle_does_not_run(trap: tuple[Path, Path]) -> None:
    file, ran = trap
    with pytest.raises(CheckpointUnsafeError, match=r"model\.pt: the pickle holds more than tensors.*--allow-pickle"):
        read_checkpoint(file, activation="gelu")
    assert not ran.exists()


def test_allow_pickle_is_what_it_says(trap: tuple[Path, Path]) -> None:
    file, ran = trap
    assert read_checkpoint(file, activation="gelu", allow_pickle=True).format == "openclip"
    assert ran.exists()


# Damage

MUTANTS = 40
NIGHTLY_MUTANTS = 1000


def _mutants(data: bytes, count: int) -> Iterator[bytes]:
    """Cut short, or with bytes changed near either end, where the structure is."""
    random = Random(0)
    for _ in range(count):
        mutant = bytearray(data)
        if random.random() < 0.3:
            yield bytes(mutant[: random.randrange(len(mutant))])
            continue
        for _ in range(random.choice([1, 4, 30])):
            place = random.randrange(min(len(mutant), 5000))
            mutant[random.choice([place, -1 - place])] = random.randrange(256)
        yield bytes(mutant)


def _check_mutants(kind: str, count: int, folder: Path) -> None:
    _save(kind, folder / "whole")
    for mutant in _mutants((folder / "whole").read_bytes(), count):
        (folder / "model").write_bytes(mutant)
        with contextlib.suppress(EdgeClipError):  # any other exception fails the test
            assert read_checkpoint(folder / "model", activation="gelu").source == "model"


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "archive"])
def test_damage_gives_our_errors_only(kind: str, tmp_path: Path) -> None:
    _check_mutants(kind, MUTANTS, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "archive"])
def test_much_damage_gives_our_errors_only(kind: str, tmp_path: Path) -> None:
    _check_mutants(kind, NIGHTLY_MUTANTS, tmp_path)
