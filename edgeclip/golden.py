"""Golden vectors: inputs with their fp32 reference embeddings, kept in every bundle.

They carry what any device needs to check itself: pixels and token ids for the engines, texts for the tokenizer, and one
encoded picture for decoding, resizing and cropping.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edgeclip.backends.base import Array, Embeddings
from edgeclip.errors import BundleFormatError

FILE = "golden.safetensors"


@dataclass(frozen=True)
class Golden:
    """The golden vectors of one model. A tower that the source lacks has no rows."""

    pixels: Array
    """uint8 [N, S, S, 3]."""
    image_embeddings: Embeddings
    """float32 [N, D], L2-normalised, by the fp32 PyTorch model."""
    texts: list[str]
    ids: Array
    """int32 [M, C]: the texts, tokenized."""
    text_embeddings: Embeddings
    """float32 [M, D]."""
    picture: bytes
    """A PNG file of odd size, with transparency."""
    picture_pixels: Array
    """uint8 [S, S, 3]: the picture, preprocessed."""

    def to_bytes(self) -> bytes:
        """As a safetensors file; the same vectors give the same bytes."""
        tensors = {
            "pixels": self.pixels,
            "image_embeddings": self.image_embeddings,
            "texts": np.frombuffer(json.dumps(self.texts).encode(), np.uint8),
            "ids": self.ids,
            "text_embeddings": self.text_embeddings,
            "picture": np.frombuffer(self.picture, np.uint8),
            "picture_pixels": self.picture_pixels,
        }
        return bytes(save(tensors))

    @classmethod
    def from_bytes(cls, data: bytes | bytearray) -> Golden:
        """Parse.

        Raises:
            BundleFormatError: not a safetensors file, or a tensor is missing or misshapen.
        """
        try:
            t = load(bytes(data))
            golden = cls(
                t["pixels"],
                t["image_embeddings"],
                json.loads(t["texts"].tobytes()),
                t["ids"],
                t["text_embeddings"],
                t["picture"].tobytes(),
                t["picture_pixels"],
            )
        except (SafetensorError, KeyError, ValueError) as exc:
            raise BundleFormatError(f"{FILE}: {type(exc).__name__}: {exc}") from exc
        if len(golden.pixels) != len(golden.image_embeddings) or len(golden.ids) != len(golden.text_embeddings):
            raise BundleFormatError(f"{FILE}: inputs and embeddings differ in number")
        return golden
