"""`Source`: any CLIP checkpoint as towers, tokenizer and facts, ready to be exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeclip.export.vocabulary import find_tokenizer
from edgeclip.manifest import ModelSpec, Preprocess, Provenance, TokenizerSpec
from edgeclip.quantize.scales import Learned
from edgeclip.train.checkpoints import Checkpoint, build, read_checkpoint
from edgeclip.train.models.clip import Clip
from edgeclip.train.models.config import Activation, ClipConfig, ResNetConfig, VitConfig


@dataclass(frozen=True)
class Source:
    """A model to export. The PyTorch model is in fp32, in evaluation mode."""

    clip: Clip
    preprocess: Preprocess
    tokenizer: bytes
    """A `tokenizer.json`."""
    tokenizer_spec: TokenizerSpec
    model: ModelSpec
    provenance: Provenance
    learned: Learned | None = None
    """Scales that were learned with the weights."""


def open_source(
    reference: str | Path,
    *,
    tokenizer: str | Path | None = None,
    architecture: str | None = None,
    activation: Activation | None = None,
    allow_pickle: bool = False,
    name: str | None = None,
    random_weights: bool = False,
    licence: str | None = None,
) -> Source:
    """Read a checkpoint.

    Args:
        reference: a path, or `hf-hub:org/name[@revision]`.
        tokenizer: where its tokenizer is, when the checkpoint brings none; see `find_tokenizer`.
        architecture, activation: what a bare state dict does not tell.
        allow_pickle: load pickles that hold more than tensors; they can run code.
        name: of the model; the checkpoint's own by default.
        random_weights: say in the bundle that the weights were never trained.
        licence: of the weights, when the checkpoint does not say.

    Raises:
        CheckpointError: it cannot be read or does not fit its architecture.
        UsageError: no tokenizer is found.
    """
    checkpoint = read_checkpoint(reference, allow_pickle=allow_pickle, architecture=architecture, activation=activation)
    clip = build(checkpoint).eval()
    config = checkpoint.config
    data, spec = find_tokenizer(
        checkpoint.tokenizer,
        tokenizer,
        vocab_size=config.text.vocab_size,
        context_length=config.text.context_length,
    )
    return Source(
        clip=clip,
        preprocess=checkpoint.preprocess,
        tokenizer=data,
        tokenizer_spec=spec,
        model=_model_spec(clip, checkpoint, name, random_weights=random_weights),
        provenance=Provenance(
            source_format=checkpoint.format,
            source_sha256=checkpoint.sha256,
            source=checkpoint.source,
            recipe=checkpoint.origin.recipe,
            data=checkpoint.origin.data,
            licence=licence or checkpoint.origin.licence,
        ),
        learned=checkpoint.scales,
    )


def _model_spec(clip: Clip, checkpoint: Checkpoint, name: str | None, *, random_weights: bool) -> ModelSpec:
    config = checkpoint.config
    return ModelSpec(
        name=name or config.name,
        embed_dim=config.embed_dim,
        logit_scale=round(float(clip.logit_scale.detach().exp()), 6),
        activation=config.text.activation,
        image_architecture=_describe_image(config),
        text_architecture=f"transformer width {config.text.width} layers {config.text.layers}",
        random_weights=random_weights,
        matryoshka=checkpoint.matryoshka,
    )


def _describe_image(config: ClipConfig) -> str:
    image = config.image
    if isinstance(image, VitConfig):
        return f"vit patch {image.patch} width {image.width} layers {image.layers}"
    if isinstance(image, ResNetConfig):
        return f"resnet width {image.width} layers {_dashed(image.layers)}"
    return f"repvgg widths {_dashed(image.widths)} depths {_dashed(image.depths)}"


def _dashed(numbers: Sequence[int]) -> str:
    return "-".join(map(str, numbers))
