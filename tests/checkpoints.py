"""Builders of small checkpoints in the true formats, and the models that they hold as others compute them.

`reference` models use PyTorch's own multi-head attention under OpenAI's tensor names: they share no code with
edgeclip's.
"""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True)
class Sizes:
    """Of a reference model. The image tower is a ViT where `patch` is not 0, else a ResNet."""

    embed_dim: int = 48
    image_size: int = 64
    width: int = 128
    layers: int | tuple[int, int, int, int] = 2
    head_width: int = 64
    patch: int = 16
    mlp_ratio: float = 4.0
    text_width: int = 64
    text_heads: int = 1
    text_layers: int = 2
    context_length: int = 20
    vocab_size: int = 300


VIT = Sizes()
RESNET = Sizes(width=8, layers=(1, 2, 1, 1), patch=0)
ODD_VIT = Sizes(width=96, head_width=16, mlp_ratio=2.5, text_width=80, text_heads=5, patch=12, image_size=60)
"""Head widths that no shape tells."""
RN50 = Sizes(
    embed_dim=1024, image_size=224, width=64, layers=(3, 4, 6, 3), patch=0,
    text_width=512, text_heads=8, text_layers=12, context_length=77, vocab_size=49408,
)  # fmt: skip
"""The architecture of that name."""
SPEAKING_VIT = Sizes(vocab_size=525)
SPEAKING_RESNET = Sizes(width=8, layers=(1, 2, 1, 1), patch=0, vocab_size=525)
"""With room for the tokenizer of `tests.tiny`."""
SIZES = {
    "vit": VIT,
    "resnet": RESNET,
    "odd-vit": ODD_VIT,
    "rn50": RN50,
    "speaking-vit": SPEAKING_VIT,
    "speaking-resnet": SPEAKING_RESNET,
}


class _Gelu(nn.Module):
    def __init__(self, quick: bool) -> None:
        super().__init__()
        self.quick = quick

    def forward(self, x: Tensor) -> Tensor:
        return F.sigmoid(x * 1.702) * x if self.quick else F.gelu(x)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_width: int, quick: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, mlp_width), "gelu": _Gelu(quick), "c_proj": nn.Linear(mlp_width, width)}
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = self.ln_2(x)
        for layer in self.mlp.values():
            y = layer(y)
        return torch.add(x, y)


class _Transformer(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, mlp_width: int, quick: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width, heads, mlp_width, quick) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class _Vit(nn.Module):
    def __init__(self, sizes: Sizes, quick: bool) -> None:
        super().__init__()
        assert isinstance(sizes.layers, int)
        width = sizes.width
        self.conv1 = nn.Conv2d(3, width, sizes.patch, stride=sizes.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((sizes.image_size // sizes.patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        heads, mlp_width = width // sizes.head_width, int(width * sizes.mlp_ratio)
        self.transformer = _Transformer(width, heads, sizes.layers, mlp_width, quick)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, sizes.embed_dim) * width**-0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        return torch.matmul(self.ln_post(self.transformer(x))[:, 0], self.proj)


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, planes * 4, 1, bias=False), nn.BatchNorm2d(planes * 4)
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != planes * 4:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, planes * 4, 1, bias=False), nn.BatchNorm2d(planes * 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        if self.stride > 1:
            y, x = F.avg_pool2d(y, self.stride), F.avg_pool2d(x, self.stride)
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class _AttentionPool(nn.Module):
    def __init__(self, positions: int, width: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(positions + 1, width) * 0.1)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.positional_embedding[:, None]
        q, k, v = self.q_proj, self.k_proj, self.v_proj
        y, _ = F.multi_head_attention_forward(
            x, x, x, x.shape[-1], self.heads, None, torch.cat([q.bias, k.bias, v.bias]), None, None, False, 0.0,
            self.c_proj.weight, self.c_proj.bias, training=False, need_weights=False, use_separate_proj_weight=True,
            q_proj_weight=q.weight, k_proj_weight=k.weight, v_proj_weight=v.weight,
        )  # fmt: skip
        return y[0]


class _ResNet(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        assert isinstance(sizes.layers, tuple)
        width, half = sizes.width, sizes.width // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        inputs = width
        for i, count in enumerate(sizes.layers):
            planes, blocks = width * 2**i, []
            for j in range(count):
                blocks.append(_Bottleneck(inputs, planes, 2 if i > 0 and j == 0 else 1))
                inputs = planes * 4
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        heads = inputs // sizes.head_width
        self.attnpool = _AttentionPool((sizes.image_size // 32) ** 2, inputs, heads, sizes.embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.bn1(self.conv1(pixels)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = F.avg_pool2d(self.bn3(self.conv3(x)).relu(), 2)
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        features: Tensor = self.attnpool(x)
        return features


class Reference(nn.Module):
    """CLIP with OpenAI's tensor names, every position computed in every block."""

    def __init__(self, sizes: Sizes, quick_gelu: bool) -> None:
        super().__init__()
        width = sizes.text_width
        self.visual = _Vit(sizes, quick_gelu) if sizes.patch else _ResNet(sizes)
        self.transformer = _Transformer(width, sizes.text_heads, sizes.text_layers, width * 4, quick_gelu)
        self.token_embedding = nn.Embedding(sizes.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(sizes.context_length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, sizes.embed_dim) * width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def encode_text(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        return torch.matmul(x[range(len(ids)), ids.argmax(-1)], self.text_projection)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.visual(pixels)
        return features


def reference(arch: str = "vit", *, quick_gelu: bool = True, seed: int = 0) -> Reference:
    """A reference model with random weights, gains, biases and statistics; `arch` is a key of `SIZES`."""
    torch.manual_seed(seed)
    model = Reference(SIZES[arch], quick_gelu).eval()
    _perturb(model)
    return model


def _perturb(model: nn.Module) -> None:
    """Make every gain and bias its own, so that none can stand for another, and no convolution fade its input."""
    deep = sum(name.endswith("bn3.weight") for name in model.state_dict()) > 8
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1 and tensor.is_floating_point():
                noise = torch.rand_like(tensor) if name.endswith("running_var") else torch.randn_like(tensor)
                tensor += noise * 0.1
            if tensor.ndim == 4:
                nn.init.kaiming_normal_(tensor)
            if deep and name.endswith("bn3.weight"):
                tensor *= 0.3  # as trained ones: else activations grow from block to block, and rounding with them
            if name.startswith("vision_model") and name.endswith(("v_proj.weight", "out_proj.weight")):
                tensor *= 4  # else the class token sees so little of an image that all embeddings are alike


def openclip_dir(
    folder: Path,
    arch: str = "vit",
    *,
    quick_gelu: bool = False,
    custom_text: bool = False,
    file: str = "open_clip_model.safetensors",
    seed: int = 0,
) -> Reference:
    """Write an OpenCLIP directory; returns the model that it holds."""
    model = reference(arch, quick_gelu=quick_gelu, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    state = openclip_state(model, custom_text=custom_text)
    if file.endswith(".safetensors"):
        save_file(state, folder / file)
    else:
        torch.save(state, folder / file)
    write_json(folder / "open_clip_config.json", openclip_config(SIZES[arch], quick_gelu, custom_text))
    (folder / "README.md").write_text("---\ntags:\n- clip\nlicense: mit\n---\n# A model\n")
    return model


def openclip_state(model: Reference, *, custom_text: bool = False) -> dict[str, Tensor]:
    """The state dict as OpenCLIP names it; with `custom_text`, the text tower's names begin with `text.`."""
    outer = ("visual.", "logit_scale")
    prefix = "text." if custom_text else ""
    return {n if n.startswith(outer) else prefix + n: t.contiguous() for n, t in model.state_dict().items()}


def openclip_config(sizes: Sizes, quick_gelu: bool, custom_text: bool) -> dict[str, Any]:
    """The content of `open_clip_config.json`."""
    vision: dict[str, Any] = {"image_size": sizes.image_size, "layers": sizes.layers, "width": sizes.width}
    vision["head_width"] = sizes.head_width
    if sizes.patch:
        vision |= {"patch_size": sizes.patch, "mlp_ratio": sizes.mlp_ratio}
    text = {
        "context_length": sizes.context_length,
        "vocab_size": sizes.vocab_size,
        "width": sizes.text_width,
        "heads": sizes.text_heads,
        "layers": sizes.text_layers,
    }
    model = {"embed_dim": sizes.embed_dim, "vision_cfg": vision, "text_cfg": text}
    model |= {"quick_gelu": True} if quick_gelu else {}
    model |= {"custom_text": True} if custom_text else {}
    return {"model_cfg": model, "preprocess_cfg": {"mean": MEAN, "std": STD}}


def openai_archive(path: Path, arch: str = "vit", *, half: bool = True, seed: int = 0) -> Reference:
    """Write a TorchScript archive as OpenAI's releases are; returns the model that it holds."""
    model = reference(arch, seed=seed)
    if half:
        model = model.half().float()  # the archive's numbers, computed in float32
    archive = _Archive(SIZES[arch], quick_gelu=True).eval()
    archive.load_state_dict(model.state_dict(), strict=False)
    with warnings.catch_warnings():
        # TorchScript is deprecated, but it is the format to test.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        traced = torch.jit.trace(archive.half() if half else archive, torch.zeros(1))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path)
    return model


class _Archive(Reference):
    """The tensors of a release; what it computes is of no interest."""

    def __init__(self, sizes: Sizes, quick_gelu: bool) -> None:
        super().__init__(sizes, quick_gelu)
        self.register_buffer("input_resolution", torch.tensor(sizes.image_size))
        self.register_buffer("context_length", torch.tensor(sizes.context_length))
        self.register_buffer("vocab_size", torch.tensor(sizes.vocab_size))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels * self.logit_scale


def openai_state(arch: str = "vit", *, seed: int = 0) -> dict[str, Any]:
    """A plain state dict with the extra entries that OpenAI's have."""
    sizes = SIZES[arch]
    extras = {"context_length": sizes.context_length, "vocab_size": sizes.vocab_size}
    return dict(reference(arch, seed=seed).state_dict()) | {"input_resolution": sizes.image_size} | extras


def hf_clip(
    folder: Path,
    size: str = "tiny",
    *,
    seed: int = 0,
    quick_gelu: bool = True,
    eos_id: int | None = None,
    vocab_size: int | None = None,
    context_length: int = 77,
    tokenizer: Path | None = None,
    max_shard_size: str = "5GB",
) -> Any:
    """Write a transformers `CLIPModel` directory with its preprocessor; returns the `CLIPModel`.

    Args:
        size: `tiny` (odd sizes, 300 ids) or `vit-b-32`.
        eos_id: By default the last id of the vocabulary; 2 is the legacy "highest id of the row".
        tokenizer: A file or a directory of files to copy in; by default there is none.
    """
    from transformers import CLIPConfig, CLIPModel

    vocab = vocab_size or (300 if size == "tiny" else 49408)
    act = "quick_gelu" if quick_gelu else "gelu"
    text = {
        "vocab_size": vocab, "max_position_embeddings": context_length, "hidden_act": act, "pad_token_id": 1,
        "bos_token_id": vocab - 2, "eos_token_id": vocab - 1 if eos_id is None else eos_id,
    }  # fmt: skip
    vision: dict[str, Any] = {"hidden_act": act}
    if size == "tiny":
        text |= {"hidden_size": 80, "num_attention_heads": 5, "intermediate_size": 200, "num_hidden_layers": 2}
        vision |= {"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 200, "num_hidden_layers": 2}
        vision |= {"image_size": 60, "patch_size": 12}
    torch.manual_seed(seed)
    dim = 48 if size == "tiny" else 512
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim)).eval()
    _perturb(model)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_json(folder / "preprocessor_config.json", hf_preprocessor(60 if size == "tiny" else 224))
    if tokenizer is not None:
        for file in [tokenizer] if tokenizer.is_file() else tokenizer.iterdir():
            shutil.copyfile(file, folder / file.name)
    return model


def hf_preprocessor(size: int) -> dict[str, Any]:
    """The content of `preprocessor_config.json`, as transformers writes it today."""
    return {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "resample": 3,
        "size": {"shortest_edge": size}, "do_center_crop": True, "crop_size": {"height": size, "width": size},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD,
    }  # fmt: skip


def write_json(file: Path, content: Any) -> None:
    """Write `content` as JSON."""
    file.write_text(json.dumps(content), encoding="utf-8")


def edit_json(file: Path, *path: str, value: Any) -> None:
    """Set one value inside a JSON file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    write_json(file, content)
