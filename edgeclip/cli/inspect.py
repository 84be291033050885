"""`edgeclip inspect`: what a bundle or a checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.bundle import MANIFEST, Bundle
from edgeclip.card import read_card
from edgeclip.cli import cards, progress
from edgeclip.cli.export import HUB
from edgeclip.cli.group import Command, examples
from edgeclip.cli.hashing import hash_files
from edgeclip.cli.options import checkpoint_options, need_export
from edgeclip.cli.output import Output
from edgeclip.cli.parity import megabytes
from edgeclip.errors import UsageError
from edgeclip.manifest import Artifact, Axis, Manifest, Quantization

if TYPE_CHECKING:
    from edgeclip.train.checkpoints import Checkpoint

_ZIP = b"PK\x03\x04"


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip inspect b32.edgeclip",
        "edgeclip inspect b32.edgeclip --check --layers",
        "edgeclip inspect ViT-B-32.pt",
    ),
)
@click.argument("path")
@click.option("--check", is_flag=True, help="Hash every file of the bundle.")
@click.option("--layers", is_flag=True, help="Show the precision of every layer of the quantized artifacts.")
@checkpoint_options
@click.pass_obj
def command(output: Output, /, path: str, check: bool, layers: bool, **reading: Any) -> None:
    """Show what PATH is: a bundle, or a checkpoint (which needs PyTorch)."""
    if is_bundle(path):
        bundle = Bundle.open(path)
        checked = hash_files(output, bundle) if check else 0
        show_bundle(output, bundle, checked)
        show_profiles(output, bundle.manifest)
        show_quantization(output, bundle.manifest, layers=layers)
        return
    if check or layers:
        raise UsageError(f"{path}: --{'check' if check else 'layers'} is for bundles, and this is none")
    need_export()
    with progress.steps(output) as begin:
        begin("reading the checkpoint")
        from edgeclip.train.checkpoints import read_checkpoint

        checkpoint = read_checkpoint(path, **reading)
    show_checkpoint(output, checkpoint)


def is_bundle(name: str) -> bool:
    """Whether it is meant as a bundle: by its name, or by what begins it. What does not exist is sought as one."""
    path = Path(name)
    if name.startswith(HUB):
        return False
    if path.suffix == ".edgeclip" or not path.exists():
        return True
    if path.is_dir():
        return (path / MANIFEST).is_file()
    with path.open("rb") as file:
        head = file.read(64)
    return head.startswith(_ZIP) and head[30:].startswith(MANIFEST.encode())


def show_bundle(output: Output, bundle: Bundle, checked: int) -> None:
    """Print a bundle's facts, its artifacts, and what it was measured to do."""
    manifest = bundle.manifest
    card = read_card(bundle)
    size = sum(entry.size for entry in manifest.files)
    output.document |= {
        "kind": "bundle",
        "path": str(bundle.path),
        "digest": bundle.digest,
        "size_bytes": size,
        "files_hashed": checked,
        "manifest": manifest,
        "card": None,
    }
    output.facts("Bundle", _bundle_facts(bundle, size, checked))
    output.facts("Model", _model_facts(manifest))
    sizes = {entry.path: entry.size for entry in manifest.files}
    columns = ("artifact", "MB", "opset", "gate", "cos min", "top-1", "measured on")
    output.table("Artifacts", columns, [_artifact_row(output, artifact, sizes) for artifact in manifest.artifacts])
    if card is not None:
        cards.show(output, card, stale=card.is_stale(manifest))


def show_profiles(output: Output, manifest: Manifest) -> None:
    """Print the sizes that engines are built for, where the device builds them."""
    rows = [
        [_name(artifact), _sizes(artifact.profile.batch), _sizes(artifact.profile.context)]
        for artifact in manifest.artifacts
        if artifact.profile
    ]
    if rows:
        output.table("Engines", ("artifact", "batch", "context"), rows)


def _sizes(axis: Axis | None) -> str:
    return f"{axis.min} to {axis.max}, best at {axis.opt}" if axis else ""


def show_quantization(output: Output, manifest: Manifest, *, layers: bool) -> None:
    """Print how many layers of each artifact are integers and what that costs; with `layers`, each one."""
    made = [(artifact, artifact.quantization) for artifact in manifest.artifacts if artifact.quantization]
    if not made:
        return
    rows = [[_name(artifact), *_quantized(quantization)] for artifact, quantization in made]
    output.table("Quantization", ("artifact", "integer layers", "calibrated on", "loss, points", "measured on"), rows)
    for artifact, quantization in made if layers else ():
        listed = [
            [layer.name, layer.op, layer.precision, "" if layer.distortion is None else f"{layer.distortion:.1e}"]
            for layer in quantization.layers
        ]
        output.table(_name(artifact), ("layer", "op", "precision", "distortion alone"), listed)


def _quantized(quantization: Quantization) -> list[str]:
    count = sum(layer.precision not in ("fp32", "fp16") for layer in quantization.layers)
    source, budget = quantization.calibration, quantization.budget
    return [
        f"{count} of {len(quantization.layers)}",
        f"{source.source}: {source.images} pictures, {source.texts} texts" if source else _unmeasured(quantization),
        f"{budget.drop_pt:.2f} [{budget.low_pt:.2f}, {budget.high_pt:.2f}]" if budget else "not measured",
        f"{budget.metric} of {budget.data}, n {budget.n}" if budget else "",
    ]


def _unmeasured(quantization: Quantization) -> str:
    return "learned in training" if quantization.learned else ""


def show_checkpoint(output: Output, checkpoint: Checkpoint) -> None:
    """Print a checkpoint's facts."""
    counts = {tower: _parameters(checkpoint, f"{tower}.") for tower in ("image", "text")}
    tokenizer = checkpoint.tokenizer.name if checkpoint.tokenizer else None
    output.document |= {
        "kind": "checkpoint",
        "source": checkpoint.source,
        "format": checkpoint.format,
        "sha256": checkpoint.sha256,
        "licence": checkpoint.origin.licence,
        "parameters": counts,
        "tokenizer": tokenizer,
        "config": checkpoint.config,
        "preprocess": checkpoint.preprocess,
    }
    config = checkpoint.config
    output.facts(
        "Checkpoint",
        {
            "source": checkpoint.source,
            "format": checkpoint.format,
            "sha256": checkpoint.sha256,
            "licence": checkpoint.origin.licence or "not said",
            "architecture": config.name,
            "activation": config.activation,
            "embedding": f"{config.embed_dim} dimensions",
            "image": f"{config.image_size} x {config.image_size}, {counts['image'] / 1e6:.1f} M parameters",
            "text": f"context {config.text.context_length}, vocabulary {config.text.vocab_size}, "
            f"{counts['text'] / 1e6:.1f} M parameters",
            "tokenizer": tokenizer or "none: export needs --tokenizer",
        },
    )


def _parameters(checkpoint: Checkpoint, prefix: str) -> int:
    return sum(tensor.numel() for name, tensor in checkpoint.state_dict.items() if name.startswith(prefix))


def _bundle_facts(bundle: Bundle, size: int, checked: int) -> dict[str, str]:
    manifest = bundle.manifest
    origin = manifest.provenance
    return {
        "path": str(bundle.path),
        "size": f"{megabytes(size)} MB in {len(manifest.files) + 1} files",
        "digest": bundle.digest,
        "files": f"all {checked} hashed and intact" if checked else "not hashed: --check does",
        "made by": f"{manifest.created_by}, format {manifest.format_version}",
        "with": _tools(manifest),
        "source": f"{origin.source or 'not said'} ({origin.source_format}, sha256 {origin.source_sha256[:16]}...)",
        "trained by": origin.recipe or "not said",
        "trained on": origin.data or "not said",
        "licence": origin.licence or "not said",
    }


def _model_facts(manifest: Manifest) -> dict[str, str]:
    model, pixels, tokenizer = manifest.model, manifest.preprocess, manifest.tokenizer
    facts = {
        "name": model.name,
        "weights": "random: embeddings mean nothing" if model.random_weights else "trained",
        "image tower": model.image_architecture,
        "text tower": model.text_architecture,
        "embedding": f"{model.embed_dim} dimensions, logit scale {model.logit_scale:g}",
        "activation": model.activation,
        "preprocess": f"{pixels.resize} to {pixels.size}, {pixels.interpolation}, crop {pixels.crop}, "
        f"exif {pixels.exif}",
        "mean, std": f"{_numbers(pixels.mean)}; {_numbers(pixels.std)}",
    }
    if tokenizer:
        facts["tokenizer"] = (
            f"context {tokenizer.context_length}, vocabulary {tokenizer.vocab_size}, "
            f"start {tokenizer.sot_id}, end {tokenizer.eot_id}, pad {tokenizer.pad_id}"
        )
    return facts


def _tools(manifest: Manifest) -> str:
    """Every library, in every version, that made an artifact."""
    pairs = (pair for artifact in manifest.artifacts for pair in artifact.tools.items())
    return ", ".join(dict.fromkeys(f"{tool} {version}" for tool, version in pairs))


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _name(artifact: Artifact) -> str:
    return f"{artifact.target} {artifact.precision} {artifact.tower}"


def _artifact_row(output: Output, artifact: Artifact, sizes: dict[str, int]) -> list[str]:
    parity = artifact.parity
    return [
        _name(artifact),
        megabytes(sum(sizes[name] for name in artifact.files)),
        str(artifact.opset or ""),
        output.status("ok" if parity.passed else "below gate"),
        f"{parity.cosine_min:.7f}",
        f"{parity.top1_agreement:.3f}",
        parity.backend,
    ]
