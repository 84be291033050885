"""Tensor names of other projects, translated to `Clip`'s."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Rules = tuple[tuple[str, str], ...]
"""Pattern and replacement; every rule is applied, in order."""

IGNORED = re.compile(r"(^|\.)(attn_mask|position_ids)$")
"""Constants that some versions of upstream saved beside the weights."""

_RESNET: Rules = (
    (r"^visual\.attnpool\.positional_embedding$", "image.pool.position_embedding"),
    (r"^visual\.attnpool\.q_proj\.", "image.pool.attention.query."),
    (r"^visual\.attnpool\.k_proj\.", "image.pool.attention.key."),
    (r"^visual\.attnpool\.v_proj\.", "image.pool.attention.value."),
    (r"^visual\.attnpool\.c_proj\.", "image.pool.attention.out."),
    (r"^visual\.conv1\.", "image.stem.0.conv."),
    (r"^visual\.conv2\.", "image.stem.1.conv."),
    (r"^visual\.conv3\.", "image.stem.2.conv."),
    (r"^visual\.bn1\.", "image.stem.0.norm."),
    (r"^visual\.bn2\.", "image.stem.1.norm."),
    (r"^visual\.bn3\.", "image.stem.2.norm."),
    (r"^visual\.layer1\.", "image.stages.0."),
    (r"^visual\.layer2\.", "image.stages.1."),
    (r"^visual\.layer3\.", "image.stages.2."),
    (r"^visual\.layer4\.", "image.stages.3."),
    (r"^(image\.stages\.\d+\.\d+)\.downsample\.0\.", r"\1.shortcut.conv."),
    (r"^(image\.stages\.\d+\.\d+)\.downsample\.1\.", r"\1.shortcut.norm."),
    (r"^(image\.stages\.\d+\.\d+)\.conv1\.", r"\1.reduce.conv."),
    (r"^(image\.stages\.\d+\.\d+)\.conv2\.", r"\1.spatial.conv."),
    (r"^(image\.stages\.\d+\.\d+)\.conv3\.", r"\1.expand.conv."),
    (r"^(image\.stages\.\d+\.\d+)\.bn1\.", r"\1.reduce.norm."),
    (r"^(image\.stages\.\d+\.\d+)\.bn2\.", r"\1.spatial.norm."),
    (r"^(image\.stages\.\d+\.\d+)\.bn3\.", r"\1.expand.norm."),
)
_VIT: Rules = (
    (r"^visual\.conv1\.", "image.patch_embedding."),
    (r"^visual\.class_embedding$", "image.class_embedding"),
    (r"^visual\.positional_embedding$", "image.position_embedding"),
    (r"^visual\.ln_pre\.", "image.norm_pre."),
    (r"^visual\.ln_post\.", "image.norm_post."),
    (r"^visual\.proj$", "image.projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "image.transformer.blocks."),
)
_TEXT: Rules = (
    (r"^token_embedding\.", "text.token_embedding."),
    (r"^positional_embedding$", "text.position_embedding"),
    (r"^ln_final\.", "text.norm_post."),
    (r"^text_projection$", "text.projection.weight"),
    (r"^transformer\.resblocks\.", "text.transformer.blocks."),
)
_BLOCK: Rules = (
    (r"(\.blocks\.\d+)\.ln_1\.", r"\1.norm_attention."),
    (r"(\.blocks\.\d+)\.ln_2\.", r"\1.norm_mlp."),
    (r"(\.blocks\.\d+)\.attn\.out_proj\.", r"\1.attention.out."),
    (r"(\.blocks\.\d+)\.mlp\.c_fc\.", r"\1.mlp.expand."),
    (r"(\.blocks\.\d+)\.mlp\.c_proj\.", r"\1.mlp.contract."),
)
_HUGGING_FACE: Rules = (
    (r"^vision_model\.embeddings\.patch_embedding\.", "image.patch_embedding."),
    (r"^vision_model\.embeddings\.class_embedding$", "image.class_embedding"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "image.position_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "image.norm_pre."),
    (r"^vision_model\.post_layernorm\.", "image.norm_post."),
    (r"^visual_projection\.", "image.projection."),
    (r"^text_model\.embeddings\.token_embedding\.", "text.token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "text.position_embedding"),
    (r"^text_model\.final_layer_norm\.", "text.norm_post."),
    (r"^text_projection\.", "text.projection."),
    (r"^vision_model\.encoder\.layers\.", "image.transformer.blocks."),
    (r"^text_model\.encoder\.layers\.", "text.transformer.blocks."),
    (r"(\.blocks\.\d+)\.layer_norm1\.", r"\1.norm_attention."),
    (r"(\.blocks\.\d+)\.layer_norm2\.", r"\1.norm_mlp."),
    (r"(\.blocks\.\d+)\.self_attn\.q_proj\.", r"\1.attention.query."),
    (r"(\.blocks\.\d+)\.self_attn\.k_proj\.", r"\1.attention.key."),
    (r"(\.blocks\.\d+)\.self_attn\.v_proj\.", r"\1.attention.value."),
    (r"(\.blocks\.\d+)\.self_attn\.out_proj\.", r"\1.attention.out."),
    (r"(\.blocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.expand."),
    (r"(\.blocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.contract."),
)
_FUSED = re.compile(r"^(?P<block>.*\.blocks\.\d+)\.attn\.in_proj_(?P<kind>weight|bias)$")
_TRANSPOSED = ("visual.proj", "text_projection")
"""Matrices that OpenAI stores as [inputs, outputs]."""


def is_huggingface(names: Iterable[str]) -> bool:
    """Whether the names are those of transformers' `CLIPModel`."""
    return any(name.startswith(("vision_model.", "text_model.")) for name in names)


def is_openai(names: Iterable[str]) -> bool:
    """Whether the names are those of OpenAI's CLIP, which OpenCLIP kept."""
    return any(name.startswith("visual.") for name in names)


def from_huggingface(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`CLIPModel`'s state dict as `Clip`'s. Names that no rule knows stay as they are."""
    return {_rename(n, _HUGGING_FACE): t for n, t in tensors.items() if not IGNORED.search(n)}


def from_openai(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's or OpenCLIP's state dict as `Clip`'s; the text tower's names may have OpenCLIP's `text.` before them."""
    image = _RESNET if any(name.startswith("visual.layer1.") for name in tensors) else _VIT
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if IGNORED.search(name):
            continue
        flat = name.removeprefix("text.")
        state |= _split(_rename(flat, (*image, *_TEXT, *_BLOCK)), tensor.T if flat in _TRANSPOSED else tensor)
    return _with_counters(state)


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _split(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Queries, keys and values, where one tensor holds the three."""
    match = _FUSED.match(name)
    if match is None:
        return {name: tensor.contiguous()}
    parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
    return {f"{match['block']}.attention.{part}.{match['kind']}": rows.contiguous() for part, rows in parts}


def _with_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Batch normalisation counts its batches, but not every checkpoint has kept the count."""
    means = [name for name in state if name.endswith(".running_mean")]
    counters = {f"{name.removesuffix('running_mean')}num_batches_tracked": torch.tensor(0) for name in means}
    return counters | state
