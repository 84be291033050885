"""A CLIP checkpoint in Hugging Face's form with random weights: everything of a real one but the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from edgeclip.errors import UsageError
from edgeclip.export.vocabulary import find_tokenizer
from edgeclip.train.models.clip import Clip
from edgeclip.train.models.config import ClipConfig, VitConfig

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Source: openai/CLIP, clip/clip.py, function _transform."""

_TOWERS = {"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}
_OUTSIDE_BLOCKS = {
    "image.patch_embedding.weight": "embeddings.patch_embedding.weight",
    "image.class_embedding": "embeddings.class_embedding",
    "image.position_embedding": "embeddings.position_embedding.weight",
    "image.norm_pre.": "pre_layrnorm.",
    "image.norm_post.": "post_layernorm.",
    "text.token_embedding.weight": "embeddings.token_embedding.weight",
    "text.position_embedding": "embeddings.position_embedding.weight",
    "text.norm_post.": "final_layer_norm.",
}
_IN_BLOCKS = {
    "norm_attention": "layer_norm1",
    "norm_mlp": "layer_norm2",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "mlp.expand": "mlp.fc1",
    "mlp.contract": "mlp.fc2",
}


def write_demo_checkpoint(folder: Path, config: ClipConfig, *, tokenizer: str | None = None, seed: int = 0) -> None:
    """Write `config.json`, `preprocessor_config.json`, `model.safetensors` and `tokenizer.json`.

    Args:
        config: of a model whose image tower is a ViT.
        tokenizer: see `find_tokenizer`.
        seed: the same one gives the same weights.

    Raises:
        UsageError: no tokenizer is found, or the image tower is not a ViT.
    """
    text = config.text
    data, spec = find_tokenizer(None, tokenizer, vocab_size=text.vocab_size, context_length=text.context_length)
    description = _model(config, spec.sot_id, spec.eot_id)
    torch.manual_seed(seed)
    state = to_huggingface(Clip(config).state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", description)
    _write_json(folder / "preprocessor_config.json", _preprocessor(config.image_size))
    (folder / "tokenizer.json").write_bytes(data)


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`Clip`'s state dict under the names of transformers' `CLIPModel`, for a ViT image tower."""
    return {_rename(name): tensor.detach().contiguous() for name, tensor in state.items()}


def _rename(name: str) -> str:
    tower, _, rest = name.partition(".")
    if tower not in _TOWERS:
        return name
    model, projection = _TOWERS[tower]
    if rest.startswith("projection."):
        return rest.replace("projection", projection, 1)
    for ours, theirs in _OUTSIDE_BLOCKS.items():
        if name.startswith(ours):
            return f"{model}.{theirs}{name[len(ours) :]}"
    layer = rest.replace("transformer.blocks", "encoder.layers", 1)
    for ours, theirs in _IN_BLOCKS.items():
        layer = layer.replace(f".{ours}.", f".{theirs}.")
    return f"{model}.{layer}"


def _model(config: ClipConfig, sot_id: int, eot_id: int) -> dict[str, Any]:
    """The content of `config.json`."""
    image, text = config.image, config.text
    if not isinstance(image, VitConfig):
        raise UsageError(f"{config.name}: Hugging Face's form has no ResNets", hint="choose a ViT")
    vision = {**_tower(image), "image_size": config.image_size, "patch_size": image.patch}
    words = {
        **_tower(text),
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
        "bos_token_id": sot_id,
        "eos_token_id": eot_id,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "text_config": {"model_type": "clip_text_model", "projection_dim": config.embed_dim, **words},
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": config.embed_dim, **vision},
    }


def _tower(tower: Any) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.mlp_width,
        "hidden_act": tower.activation,
        "layer_norm_eps": tower.layer_norm_eps,
    }


def _preprocessor(size: int) -> dict[str, Any]:
    """The content of `preprocessor_config.json`."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
