"""The other side: Hugging Face transformers' CLIP with PyTorch, as its documentation uses it.

PyTorch and transformers are imported when a function is called. Embeddings are normalised, as edgeclip's are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SEED = 0
BIAS = 0.02
"""Standard deviation of biases, and of gains around 1."""
BATCH_SIZE = 32


def write_checkpoint(folder: Path) -> None:
    """A ViT-B/32 with random weights, and its preprocessor. The same seed gives the same weights.

    Biases and gains are random too: left at 0 and 1, as they begin, they let engines leave out the arithmetic.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip import CLIPImageProcessorPil

    activation = {"hidden_act": "quick_gelu"}
    config = CLIPConfig(
        text_config={**activation, "bos_token_id": 49406, "eos_token_id": 49407},
        vision_config={**activation, "patch_size": 32},
    )
    torch.manual_seed(SEED)
    model = CLIPModel(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += BIAS * torch.randn_like(parameter)
    model.save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)


class Peer:
    """A loaded `CLIPModel` with its image processor and tokenizer.

    Args:
        folder: what `write_checkpoint` wrote.
        tokenizer: the content of a `tokenizer.json`, whose vocabulary and merges transformers' own class takes.
        dtype: of weights and arithmetic.
    """

    def __init__(
        self, folder: Path, tokenizer: bytes, threads: int, dtype: Literal["float32", "bfloat16"] = "float32"
    ) -> None:
        import torch
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.models.clip import CLIPImageProcessorPil

        _quiet()
        torch.set_num_threads(threads)
        words = json.loads(tokenizer)["model"]
        self._torch = torch
        self._dtype = getattr(torch, dtype)
        self._model = CLIPModel.from_pretrained(folder, dtype=self._dtype).eval()
        self._processor = CLIPImageProcessorPil.from_pretrained(folder)
        self._tokenizer = CLIPTokenizer(vocab=words["vocab"], merges=[tuple(pair) for pair in words["merges"]])

    @property
    def attention(self) -> str:
        """Which implementation of attention transformers chose."""
        return str(self._model.config._attn_implementation)

    def pixels(self, paths: Sequence[Path]) -> Any:
        """Decode and preprocess files. Returns a tensor, [B, 3, S, S]."""
        from PIL import Image

        images = [Image.open(path) for path in paths]
        return self._processor(images=images, return_tensors="pt")["pixel_values"].to(self._dtype)

    def normalised(self, pixels: NDArray[np.uint8]) -> Any:
        """Pictures that were resized and cropped already, uint8 [B, S, S, 3], as a tensor [B, 3, S, S]."""
        mean, std = (self._torch.tensor(each) for each in (self._processor.image_mean, self._processor.image_std))
        images = self._torch.from_numpy(pixels).float() / 255
        return ((images - mean) / std).permute(0, 3, 1, 2).contiguous().to(self._dtype)

    def encode_pixels(self, pixels: Any) -> NDArray[np.float32]:
        """Embed preprocessed pixels. Returns [B, D] float32, L2-normalised."""
        with self._torch.inference_mode():
            return self._unit(self._model.get_image_features(pixel_values=pixels))

    def encode_text(self, texts: Sequence[str], padding: bool | str) -> NDArray[np.float32]:
        """Tokenize and embed. Returns [B, D] float32, L2-normalised."""
        tokens = self._tokenizer(list(texts), padding=padding, truncation=True, max_length=77, return_tensors="pt")
        with self._torch.inference_mode():
            return self._unit(self._model.get_text_features(**tokens))

    def encode_files(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        """Embed files, `BATCH_SIZE` at a time. Returns [B, D] float32, L2-normalised."""
        chunks = [paths[i : i + BATCH_SIZE] for i in range(0, len(paths), BATCH_SIZE)]
        return np.concatenate([self.encode_pixels(self.pixels(chunk)) for chunk in chunks])

    def _unit(self, output: Any) -> NDArray[np.float32]:
        features = getattr(output, "pooler_output", output).float()
        unit: NDArray[np.float32] = (features / features.norm(dim=-1, keepdim=True)).numpy()
        return unit


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
