"""Tiny towers of every kind, exported, and inputs for them."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeclip.export.graph import example, tower_graph
from edgeclip.export.to_onnx import to_onnx
from edgeclip.manifest import Precision, Preprocess, Tower
from edgeclip.quantize.layers import LayerInfo, list_layers
from edgeclip.train.models import Clip, ClipConfig, RepVggConfig
from edgeclip.train.models.config import ResNetConfig, TextConfig, VitConfig

Kind = Literal["vit", "resnet", "repvgg", "text"]
KINDS: tuple[Kind, ...] = ("vit", "resnet", "repvgg", "text")
SIDE = 32
CONTEXT = 16
VOCABULARY = 600
EOT = VOCABULARY - 1
PREPROCESS = Preprocess(size=SIDE, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
# Heads of 16: the scale of their scores, 1 / 4, is the same number in half precision.
_SIZE: dict[str, Any] = {"width": 64, "layers": 2, "heads": 4, "mlp_width": 128, "activation": "gelu"}
_IMAGE = {
    "vit": VitConfig(patch=8, **_SIZE),
    "resnet": ResNetConfig(width=8, layers=(1, 1, 1, 1), heads=4),
    "repvgg": RepVggConfig(stem=16, widths=(32, 64), depths=(2, 2), strides=(2, 2)),
}


def tower_of(kind: Kind) -> Tower:
    return "text" if kind == "text" else "image"


@cache
def export(kind: Kind, precision: Precision = "fp32", opset: int = 18) -> bytes:
    """The tower's ONNX. Its weights are numbers that half precision holds."""
    model, tower = clip_of(kind), tower_of(kind)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    return to_onnx(tower_graph(model, tower, PREPROCESS, dtype), tower, example(model, tower), opset)


@cache
def clip_of(kind: Kind) -> Clip:
    torch.manual_seed(0)
    text = TextConfig(context_length=CONTEXT, vocab_size=VOCABULARY, **_SIZE)
    image = _IMAGE["vit" if kind == "text" else kind]
    clip = Clip(ClipConfig(name=kind, embed_dim=32, image_size=SIDE, image=image, text=text)).train()
    for module in clip.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = None  # the mean over all passes
    with torch.no_grad():
        for seed in range(10):  # statistics of a few passes, as after training
            pixels = torch.from_numpy(samples("vit", 16, seed)).permute(0, 3, 1, 2)
            clip.encode_image((pixels.float() / 255 - 0.45) / 0.27)
        if kind == "resnet":  # what the positions add would outweigh what is seen there
            clip.image.pool.position_embedding.zero_()
    return clip.eval()


def layers(kind: Kind) -> list[LayerInfo]:
    """Of the tower's ONNX."""
    return list_layers(export(kind))


def samples(kind: Kind, count: int, seed: int = 0) -> NDArray[Any]:
    """What the tower takes: patches of colour, or sentences with padding behind them."""
    rng = np.random.default_rng(seed)
    if kind != "text":
        coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        return np.ascontiguousarray(coarse.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2))
    ids = rng.integers(1, EOT - 1, (count, CONTEXT), dtype=np.int32)
    for row, length in zip(ids, rng.integers(3, CONTEXT, count), strict=True):
        row[length:] = EOT
    return ids


def run(model: bytes, inputs: NDArray[Any]) -> NDArray[np.float32]:
    """Embeddings by ONNX Runtime."""
    import onnxruntime as ort

    session = ort.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0], np.float32)


def session_options() -> Any:
    """One thread, no warnings."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return options


def run_openvino(model: bytes, inputs: NDArray[Any]) -> NDArray[np.float32]:
    """Embeddings by OpenVINO, from the same file."""
    from edgeclip.backends.ov_library import ov

    core = ov.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    return np.asarray(core.compile_model(core.read_model(model), "CPU", options)(inputs)[0], np.float32)


def cosines(rows: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float64]:
    """Row by row; the rows of the reference must differ, or they would tell nothing."""
    a, b = rows.astype(np.float64), reference.astype(np.float64)
    assert (b @ b.T)[np.triu_indices(len(b), 1)].mean() < 0.995, "the inputs do not tell models apart"
    return np.asarray((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
