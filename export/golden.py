"""Makes golden vectors: drawn pictures and written sentences, with the fp32 model's embeddings of them."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageDraw

from edgeclip.backends.base import Array, Embeddings
from edgeclip.export.graph import tower_graph
from edgeclip.export.source import Source
from edgeclip.golden import Golden
from edgeclip.manifest import Tower
from edgeclip.preprocess import preprocess
from edgeclip.tokenizer import Tokenizer

N_IMAGES = 16
SEED = 20210226

TEXTS = [
    "a photo of a cat.",
    "a photo of a dog.",
    "Two children build a sand castle while the tide comes in.",
    "an empty street at night, wet with rain",
    "RED APPLES in a wooden bowl",
    "the 3rd of 12 identical doors, numbered 0417",
    "it's what we'd have said, they'll say",
    "a diagram of a steam engine (1784) & its parts",
    "café, naïve, Zürich, smörgåsbord",
    "猫在窗边睡觉",
    "кошка спит на окне",
    "🐈 asleep on a 🛋️",
    "",
    "x",
    "mountains " * 40,
    "a very long sentence that goes on and on about nothing in particular, one clause after another, "
    "about the weather, the sea, the harbour and its boats, the fishermen mending nets, the gulls above them, "
    "the smell of tar and salt, the bells of a distant church, the slow clouds, the light that fades, the lamps "
    "that are lit one by one along the quay, and the last train leaving for the city without a single passenger",
]


def make_golden(source: Source) -> Golden:
    """Golden vectors of a source, by its fp32 PyTorch model."""
    pixels = pictures(source.preprocess.size)
    picture = odd_picture()
    ids = Tokenizer(source.tokenizer, source.tokenizer_spec)(TEXTS)
    return Golden(
        pixels=pixels,
        image_embeddings=reference(source, "image", pixels),
        texts=TEXTS,
        ids=ids,
        text_embeddings=reference(source, "text", ids),
        picture=picture,
        picture_pixels=preprocess(picture, source.preprocess),
    )


def reference(source: Source, tower: Tower, inputs: Array) -> Embeddings:
    """Embeddings of the fp32 PyTorch model: [N, …] inputs of the exported signature to [N, D] float32."""
    graph = tower_graph(source.clip, tower, source.preprocess)
    with torch.inference_mode():
        parts = [graph(torch.from_numpy(inputs[i : i + 4])) for i in range(0, len(inputs), 4)]
    return np.asarray(torch.cat(parts).numpy(), np.float32)


def pictures(size: int) -> Array:
    """Sixteen pictures unlike each other: shapes, gradients, stripes, noise. uint8 [16, S, S, 3]."""
    rng = np.random.default_rng(SEED)
    return np.stack([_picture(size, kind, rng) for kind in range(N_IMAGES)])


def _picture(size: int, kind: int, rng: np.random.Generator) -> Array:
    y, x = np.mgrid[0:size, 0:size] / size
    colours = rng.integers(0, 256, (2, 3))
    wave = (
        x,
        (np.sin(2 * np.pi * (kind + 1) * x) + 1) / 2,
        (np.sin(2 * np.pi * (kind + 1) * (x + y)) + 1) / 2,
        np.hypot(x - 0.5, y - 0.5) * 1.4,
    )[kind % 4]
    base = colours[0] + wave[..., None] * (colours[1] - colours[0])
    noise = rng.normal(0, 4 * kind, (size, size, 3))
    image = Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(kind % 5):
        left, top = (int(v) for v in rng.integers(0, max(1, 3 * size // 4), 2))
        box = (left, top, left + size // 4, top + size // 5)
        fill = tuple(int(c) for c in rng.integers(0, 256, 3))
        (draw.ellipse if kind % 2 else draw.rectangle)(box, fill=fill)
    return np.asarray(image)


def odd_picture() -> bytes:
    """A PNG of 211 × 157 with a transparent corner: what a wrong resize, crop or background would change."""
    width, height = 211, 157
    y, x = np.mgrid[0:height, 0:width]
    rgba = np.stack([x * 255 // width, y * 255 // height, (x * y) % 256, np.where(x + y < 90, 60, 255)], -1)
    out = io.BytesIO()
    Image.fromarray(rgba.astype(np.uint8)).save(out, "PNG")
    return out.getvalue()
