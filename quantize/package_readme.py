"""The page that lies beside Core ML packages in a bundle, for whoever puts them into an app; made from the manifest."""

from __future__ import annotations

from collections.abc import Sequence

from edgeclip.manifest import Artifact, Manifest, Preprocess, TokenizerSpec

NAME = "README.md"


def readmes(manifest: Manifest) -> dict[str, bytes]:
    """A page for each folder of Core ML packages, by its path in the bundle. The same manifest gives the same bytes."""
    folders: dict[str, list[Artifact]] = {}
    for artifact in manifest.artifacts:
        if artifact.target == "coreml":
            folders.setdefault(f"coreml-{artifact.precision}", []).append(artifact)
    return {f"{folder}/{NAME}": _page(manifest, held).encode() for folder, held in folders.items()}


def _page(manifest: Manifest, artifacts: Sequence[Artifact]) -> str:
    model = manifest.model
    about = [
        f"# {model.name} for Core ML, {artifacts[0].precision}",
        "The weights were never trained: embeddings mean nothing." if model.random_weights else "",
        "Drag the packages into an Xcode project, which makes a class of each.",
        *(_tower(artifact, manifest) for artifact in sorted(artifacts, key=lambda artifact: artifact.tower)),
        f"Embeddings are {model.embed_dim} float32 numbers of length 1: a cosine is a dot product. Zero-shot classes "
        f"have the probabilities softmax({model.logit_scale:g} x cosine).",
        f"Licence of the weights: {manifest.provenance.licence or 'as the checkpoint has it, which does not say'}.",
        f"Made by {manifest.created_by}. How to use it from Swift: docs/coreml.md in edgeclip's repository.",
    ]
    return "\n\n".join(part for part in about if part) + "\n"


def _tower(artifact: Artifact, manifest: Manifest) -> str:
    described = _image(manifest.preprocess) if artifact.tower == "image" else _text(manifest.tokenizer)
    parity = artifact.parity
    return (
        f"## {artifact.tower}.mlpackage\n\n{described}\n\n"
        f"Runs on {artifact.deployment or 'iOS17'} or newer. Against the fp32 model, on {parity.n} inputs: "
        f"cosine {parity.cosine_mean:.6f} on average, {parity.cosine_min:.6f} at worst, by {parity.backend}"
        f"{'' if parity.passed else '; below its gate'}."
    )


def _image(spec: Preprocess) -> str:
    how = {
        "shortest": f"resized so that its short side has {spec.size} pixels, the centre cut out",
        "squash": f"both sides resized to {spec.size} pixels",
    }[spec.resize]
    background = ", ".join(map(str, spec.background))
    return (
        f"Input `pixels`: an image, RGB, {spec.size} x {spec.size} ({spec.interpolation}; {how}; turned upright: "
        f"{'yes' if spec.exif == 'apply' else 'no'}; transparent pixels over {background}). Mean and deviation are "
        "applied inside.\n\nOutput `embeddings`: float32 [1, D]."
    )


def _text(spec: TokenizerSpec | None) -> str:
    assert spec is not None
    return (
        f"Input `ids`: int32 [B, {spec.context_length}], B from 1 to 8. A row is {spec.sot_id} (start), the text's ids "
        f"by `tokenizer.json`, {spec.eot_id} (end), then {spec.pad_id} up to {spec.context_length} ids. Longer texts "
        f"are cut so that {spec.eot_id} is last.\n\nOutput `embeddings`: float32 [B, D]."
    )
