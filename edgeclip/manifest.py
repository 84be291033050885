"""`manifest.json` as typed structs: what a bundle holds, how to feed it, and what it was measured to do.

The decoder is strict: unknown, missing or mistyped fields, duplicate keys, NaN, deep nesting and oversized documents
are refused with the JSON path. Nothing is allocated from a number in the manifest before it has passed its bounds.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edgeclip import paths
from edgeclip.errors import BundleFormatError, BundleVersionError

NAME = "manifest.json"
FORMAT_VERSION = 1
MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_DIGITS = 40

Tower = Literal["image", "text"]
Target = Literal["onnx", "openvino", "coreml", "tensorrt"]
Precision = Literal["fp32", "fp16", "w8a16", "w8a8", "w6a16", "w4a16"]
Compute = Literal["f32", "bf16", "f16"]
"""Arithmetic of an engine."""

PositiveInt = Annotated[int, Meta(ge=1, le=1 << 20)]
Size = Annotated[int, Meta(ge=1, le=4096)]
TokenId = Annotated[int, Meta(ge=0, le=1 << 24)]
ByteCount = Annotated[int, Meta(ge=0, le=1 << 40)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Rgb = tuple[float, float, float]
Byte = Annotated[int, Meta(ge=0, le=255)]


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every struct in the manifest."""


class Preprocess(Struct, frozen=True):
    """How pixels are made, exactly as the model was trained. Mean and std are applied inside the exported graph."""

    size: Size
    """Side S of the square that the image tower takes, in pixels."""
    mean: Rgb
    """Per channel, of values scaled to [0, 1]."""
    std: Rgb
    resize: Literal["shortest", "squash"] = "shortest"
    """`shortest`: the short side becomes S, then a centre crop; `squash`: both sides become S."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop: Literal["round", "floor"] = "round"
    """How half a pixel of crop offset is rounded: to even as torchvision does, or down as transformers does."""
    exif: Literal["apply", "ignore"] = "apply"
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    """What lies under transparent pixels."""

    def __post_init__(self) -> None:
        if not all(-10.0 <= m <= 10.0 for m in self.mean):
            raise ValueError(f"mean must lie in [-10, 10], got {self.mean}")
        if not all(1e-6 <= s <= 10.0 for s in self.std):
            raise ValueError(f"std must lie in [1e-6, 10], got {self.std}")


class TokenizerSpec(Struct, frozen=True):
    """What the runtime must know beside `tokenizer.json`."""

    file: Name
    context_length: Annotated[int, Meta(ge=3, le=4096)]
    vocab_size: PositiveInt
    sot_id: TokenId
    eot_id: TokenId
    pad_id: TokenId
    causal: bool = True
    """Tokens after the end-of-text token cannot change the embedding, so that the runtime may cut them off."""


class ModelSpec(Struct, frozen=True):
    """What the embeddings are."""

    name: Name
    embed_dim: PositiveInt
    logit_scale: Annotated[float, Meta(gt=0, le=1e4)]
    """exp(t): the factor from cosine to logit."""
    activation: Literal["quick_gelu", "gelu"]
    image_architecture: Name
    text_architecture: Name
    random_weights: bool = False
    """The weights were never trained: the embeddings mean nothing."""
    matryoshka: Annotated[tuple[PositiveInt, ...], Meta(max_length=64)] = ()
    """Numbers of first coordinates that make an embedding of their own, normalised again; ascending."""

    def __post_init__(self) -> None:
        if list(dims := (*self.matryoshka, self.embed_dim)) != sorted(set(dims)):
            raise ValueError(f"matryoshka must ascend below embed_dim {self.embed_dim}, got {list(self.matryoshka)}")


class TensorSpec(Struct, frozen=True):
    """One tensor of a graph's signature. A string in `shape` names a dynamic axis."""

    name: Name
    dtype: Literal["uint8", "int32", "float32"]
    shape: Annotated[tuple[PositiveInt | Name, ...], Meta(min_length=1, max_length=8)]


class Parity(Struct, frozen=True):
    """Agreement of an artifact with the fp32 PyTorch reference on the golden inputs."""

    n: PositiveInt
    cosine_mean: float
    cosine_min: float
    max_abs: float
    top1_agreement: float
    """Share of golden inputs whose nearest reference embedding is their own, in [0, 1]."""
    passed: bool
    """Whether every bound of the artifact's precision held."""
    backend: Name
    """What ran it, with its version."""


class FileEntry(Struct, frozen=True):
    """One file of the bundle. Every file but `manifest.json` has one."""

    path: Name
    size: ByteCount
    sha256: Sha256


class CalibrationSpec(Struct, frozen=True):
    """The samples that the ranges of activations were measured on."""

    source: Name
    """Base name of the folder or file."""
    images: Annotated[int, Meta(ge=0, le=1 << 24)]
    texts: Annotated[int, Meta(ge=0, le=1 << 24)]
    seed: int
    """Of the selection."""
    sha256: Sha256
    """Of the preprocessed pixels and token ids."""


class Layer(Struct, frozen=True):
    """One layer that could be quantized: a convolution or a matrix product."""

    name: Name
    op: Name
    precision: Precision
    """What its weights and activations are in."""
    distortion: Annotated[float, Meta(ge=0)] | None = None
    """1 − cosine of the embeddings where this layer alone is quantized; None where it was not measured."""


class Step(Struct, frozen=True):
    """One candidate of a budget search."""

    kept: Annotated[int, Meta(ge=0, le=1 << 16)]
    """Layers left in floating point, the most sensitive ones."""
    drop_pt: float
    """Percentage points lost against fp32 on the evaluation set."""
    high_pt: float
    """One-sided 95 % bound of the loss."""
    fits: bool


class Budget(Struct, frozen=True):
    """What quantizing may cost, and what it was measured to cost; of both towers together."""

    data: Name
    metric: Name
    """`top1`, `text_to_image_r1`, or `agreement` with fp32 where there are no labels."""
    n: PositiveInt
    """Samples of the evaluation set."""
    max_drop_pt: Annotated[float, Meta(ge=0, le=100)] | None
    """What was allowed; None where the loss was only measured."""
    reference: Annotated[float, Meta(ge=0, le=1)]
    """fp32's score."""
    drop_pt: float
    """Percentage points that the artifact loses."""
    low_pt: float
    high_pt: float
    """The two-sided 95 % interval of the loss."""
    kept: Annotated[int, Meta(ge=0, le=1 << 16)]
    """Layers left in floating point."""
    steps: Annotated[tuple[Step, ...], Meta(max_length=64)] = ()
    """Candidates in the order tried."""


class Quantization(Struct, frozen=True):
    """How an artifact was quantized."""

    layers: Annotated[tuple[Layer, ...], Meta(max_length=4096)]
    calibration: CalibrationSpec | None = None
    learned: bool = False
    """Scales were learned while the model was trained with rounding; none was measured."""
    budget: Budget | None = None


class Axis(Struct, frozen=True):
    """The sizes of one dynamic axis that an engine is built for."""

    min: PositiveInt
    opt: PositiveInt
    """What it is tuned for."""
    max: PositiveInt

    def __post_init__(self) -> None:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"sizes must ascend: min {self.min}, opt {self.opt}, max {self.max}")


class Profile(Struct, frozen=True):
    """The sizes that an engine is built for."""

    batch: Axis
    context: Axis | None = None
    """Token ids of a row; of the text tower alone."""


class Artifact(Struct, frozen=True):
    """One tower for one target at one precision."""

    tower: Tower
    target: Target
    precision: Precision
    file: Name
    """The graph's main file; `files` has all of them, this one included."""
    files: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=256)]
    input: TensorSpec
    output: TensorSpec
    parity: Parity
    opset: Annotated[int, Meta(ge=7, le=100)] | None = None
    tools: dict[str, str] = {}
    """Name and version of each library that made the artifact."""
    quantization: Quantization | None = None
    profile: Profile | None = None
    """Of target `tensorrt`, whose engines are built on the device."""
    deployment: Name | None = None
    """Of target `coreml`: the oldest system that runs it, as `iOS17`, which stands for macOS 14 too."""

    def __post_init__(self) -> None:
        if self.profile and (self.profile.context is not None) != (self.tower == "text"):
            raise ValueError(f"a profile of the {self.tower} tower has {'no' if self.tower == 'text' else 'a'} context")


class Provenance(Struct, frozen=True):
    """Where the weights come from."""

    source_format: Literal["openai", "openclip", "huggingface", "edgeclip"]
    source_sha256: Sha256
    """Of the checkpoint: the weights' file, or the sorted list of files and digests where there are several."""
    source: str = ""
    """Base name or hub reference, never a path of the exporting machine."""
    recipe: str = ""
    data: str = ""
    licence: str = ""


class Manifest(Struct, frozen=True):
    """The root of `manifest.json`."""

    format_version: int
    created_by: Name
    model: ModelSpec
    preprocess: Preprocess
    tokenizer: TokenizerSpec | None
    """None where the bundle has no text tower."""
    golden: Name
    artifacts: Annotated[tuple[Artifact, ...], Meta(max_length=64)]
    files: Annotated[tuple[FileEntry, ...], Meta(min_length=1, max_length=1024)]
    provenance: Provenance


def encode(manifest: Manifest) -> bytes:
    """Serialise; the same manifest gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode(data: bytes) -> Manifest:
    """Parse and validate.

    Raises:
        BundleFormatError: naming the rule that is broken and, for a field, its JSON path.
        BundleVersionError: written by a newer edgeclip.
        BundlePathError: a path could leave the bundle, or collides with another.
    """
    parse_json(data, NAME)
    _check_version(data)
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError, ValueError) as exc:
        raise BundleFormatError(f"manifest.json: {exc}") from exc
    _check_paths(manifest)
    _check_references(manifest)
    return manifest


def parse_json(data: bytes, name: str) -> Any:
    """Parse JSON by rules that parsers leave open, so that every parser reads the same from it.

    Raises:
        BundleFormatError: naming the document and the rule.
    """
    if len(data) > MAX_BYTES:
        raise BundleFormatError(f"{name}: {len(data)} bytes or more, the limit is {MAX_BYTES}")
    if data.startswith(b"\xef\xbb\xbf"):
        raise BundleFormatError(f"{name}: starts with a byte order mark")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BundleFormatError(f"{name}: not UTF-8 at byte {exc.start}") from exc
    if _deeper_than(data, MAX_DEPTH):
        raise BundleFormatError(f"{name}: nested deeper than {MAX_DEPTH}")
    try:
        parsed = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer)
        _require_unicode(parsed)
        return parsed
    except (ValueError, RecursionError) as exc:
        raise BundleFormatError(f"{name}: {exc}") from exc


def _deeper_than(data: bytes, limit: int) -> bool:
    """Whether brackets outside strings nest deeper. One pass that neither backtracks nor keeps anything."""
    depth = 0
    in_string = False
    for match in re.finditer(rb'\\.|["\[\]{}]', data, flags=re.DOTALL):
        token = match[0]
        if token == b'"':
            in_string = not in_string
        elif not in_string and token in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif not in_string and token in b"]}":
            depth -= 1
    return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    obj: dict[str, Any] = {}
    for key, value in pairs:
        if key in obj:
            raise ValueError(f"duplicate key {key!r}")
        obj[key] = value
    return obj


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits, the limit is {MAX_DIGITS}")
    return int(digits)


def _require_unicode(value: Any) -> None:
    """Refuse escaped halves of surrogate pairs, which no UTF-8 can hold."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise ValueError("a lone surrogate in a string") from exc
    elif isinstance(value, dict):
        for key, item in value.items():
            _require_unicode(key)
            _require_unicode(item)
    elif isinstance(value, list):
        for item in value:
            _require_unicode(item)


class _Version(msgspec.Struct):
    format_version: int


def _check_version(data: bytes) -> None:
    try:
        found = msgspec.json.decode(data, type=_Version).format_version
    except msgspec.DecodeError as exc:
        raise BundleFormatError(f"manifest.json: {exc}") from exc
    if found > FORMAT_VERSION:
        raise BundleVersionError(
            f"manifest.json: format version {found}, this edgeclip reads up to {FORMAT_VERSION}",
            hint="pip install -U edgeclip",
        )
    if found < 1:
        raise BundleFormatError(f"manifest.json: format version {found} does not exist - at `$.format_version`")


def named(manifest: Manifest) -> dict[str, str]:
    """Every path that the manifest uses, by where it does."""
    found = {"$.golden": manifest.golden}
    if manifest.tokenizer:
        found["$.tokenizer.file"] = manifest.tokenizer.file
    for i, artifact in enumerate(manifest.artifacts):
        found[f"$.artifacts[{i}].file"] = artifact.file
        found |= {f"$.artifacts[{i}].files[{j}]": path for j, path in enumerate(artifact.files)}
    return found


def _check_paths(manifest: Manifest) -> None:
    """No path may leave the bundle, and the files must be able to lie side by side, with the manifest among them."""
    for path in named(manifest).values():
        paths.check(path)
    listed = [entry.path for entry in manifest.files]
    if len(set(listed)) != len(listed):
        raise BundleFormatError("manifest.json: a path is listed twice - at `$.files`")
    paths.check_set([NAME, *listed])


def _check_references(manifest: Manifest) -> None:
    """Every file that is named must be listed; every artifact must be unique."""
    listed = {entry.path for entry in manifest.files}
    for i, artifact in enumerate(manifest.artifacts):
        if artifact.file not in artifact.files:
            raise BundleFormatError(
                f"manifest.json: {artifact.file!r} is not among its files - at `$.artifacts[{i}].file`"
            )
    for where, path in named(manifest).items():
        if path not in listed:
            raise BundleFormatError(f"manifest.json: {path!r} is not among `$.files` - at `{where}`")
    keys = [(a.tower, a.target, a.precision) for a in manifest.artifacts]
    if len(set(keys)) != len(keys):
        raise BundleFormatError("manifest.json: an artifact is listed twice - at `$.artifacts`")
    if manifest.tokenizer is None and any(a.tower == "text" for a in manifest.artifacts):
        raise BundleFormatError("manifest.json: a text tower needs a tokenizer - at `$.tokenizer`")
