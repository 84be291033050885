"""Small synthetic bundles: right in everything but that their graphs compute nothing."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeclip.bundle import Bundle, write_bundle
from edgeclip.golden import FILE, Golden
from edgeclip.manifest import (
    Artifact,
    FileEntry,
    Manifest,
    ModelSpec,
    Parity,
    Precision,
    Preprocess,
    Provenance,
    Target,
    TensorSpec,
    TokenizerSpec,
    Tower,
    encode,
)

PARITY = Parity(
    n=8,
    cosine_mean=0.9999,
    cosine_min=0.999,
    max_abs=1e-3,
    top1_agreement=1.0,
    passed=True,
    backend="onnxruntime 1.20.0",
)


def field(number: int, payload: bytes | int) -> bytes:
    """A protobuf field: bytes are length-delimited, an int is a varint."""
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def node(op: bytes, *, domain: bytes = b"", name: bytes = b"n0", attributes: Iterable[bytes] = ()) -> bytes:
    """A NodeProto."""
    head = field(1, b"pixels") + field(2, b"embeds") + field(3, name) + field(4, op)
    return head + b"".join(field(5, attribute) for attribute in attributes) + (field(7, domain) if domain else b"")


def tensor(name: bytes, raw: bytes, *extra: bytes) -> bytes:
    """A TensorProto of floats."""
    return field(1, len(raw) // 4) + field(2, 1) + field(8, name) + field(9, raw) + b"".join(extra)


def graph(*nodes: bytes, initializers: Iterable[bytes] = ()) -> bytes:
    """A GraphProto."""
    parts = [field(1, n) for n in nodes] + [field(2, b"g")] + [field(5, t) for t in initializers]
    return b"".join(parts)


def onnx(raw: bytes = b"\0" * 64, *nodes: bytes, extra: bytes = b"") -> bytes:
    """A ModelProto with one weight of the given bytes."""
    body = graph(*(nodes or (node(b"Cast"),)), initializers=[tensor(b"w", raw)])
    return field(1, 8) + field(7, body) + field(8, field(2, 18)) + extra


def openvino_xml(size: int, *, offset: str = "0", length: str | None = None, version: str = "opset1") -> bytes:
    """An IR with one constant."""
    length = str(size) if length is None else length
    data = f'<data element_type="u8" shape="{size}" offset="{offset}" size="{length}"/>'
    layer = f'<layer id="0" name="w" type="Const" version="{version}">{data}</layer>'
    return f'<?xml version="1.0"?>\n<net name="t" version="11"><layers>{layer}</layers></net>'.encode()


def coreml_manifest(model: str = "com.apple.CoreML/model.mlmodel", weights: str = "com.apple.CoreML/weights") -> bytes:
    """`Manifest.json` of a package."""
    items = {"A": {"name": "model.mlmodel", "path": model}, "B": {"name": "weights", "path": weights}}
    return json.dumps({"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": "A"}).encode()


def artifact(
    tower: Tower = "image", target: Target = "onnx", precision: Precision = "fp32", files: Iterable[str] = ()
) -> Artifact:
    """An artifact whose first file is its graph."""
    names = tuple(files) or (f"{target}-{precision}/{tower}.onnx",)
    image = TensorSpec(name="pixels", dtype="uint8", shape=("batch", 8, 8, 3))
    text = TensorSpec(name="tokens", dtype="int32", shape=("batch", 7))
    return Artifact(
        tower=tower,
        target=target,
        precision=precision,
        file=names[0],
        files=names,
        input=image if tower == "image" else text,
        output=TensorSpec(name="embeds", dtype="float32", shape=("batch", 4)),
        parity=PARITY,
        opset=18,
        tools={"onnx": "1.20.0"},
    )


def artifacts() -> tuple[Artifact, ...]:
    """Every target once, and a text tower."""
    package = "coreml-fp16/image.mlpackage"
    inside = ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin")
    return (
        artifact("image", "coreml", "fp16", [f"{package}/{name}" for name in inside]),
        artifact("image", "onnx", "fp32"),
        artifact("image", "openvino", "w8a8", ["openvino-w8a8/image.xml", "openvino-w8a8/image.bin"]),
        artifact("text", "onnx", "fp32"),
    )


def files(seed: int = 0, size: int = 256) -> dict[str, bytes]:
    """Contents for `artifacts()`; weights are `size` random bytes."""
    rng = random.Random(seed)
    package = "coreml-fp16/image.mlpackage"
    return {
        "golden.safetensors": rng.randbytes(64),
        "tokenizer.json": b'{"version": "1.0"}',
        f"{package}/Manifest.json": coreml_manifest(),
        f"{package}/Data/com.apple.CoreML/model.mlmodel": rng.randbytes(32),
        f"{package}/Data/com.apple.CoreML/weights/weight.bin": rng.randbytes(size),
        "onnx-fp32/image.onnx": onnx(rng.randbytes(size)),
        "onnx-fp32/text.onnx": onnx(rng.randbytes(size)),
        "openvino-w8a8/image.xml": openvino_xml(size),
        "openvino-w8a8/image.bin": rng.randbytes(size),
    }


def manifest(**changes: Any) -> Manifest:
    """A manifest without its file entries, which writing computes."""
    placeholder = FileEntry(path="golden.safetensors", size=0, sha256="0" * 64)
    whole = Manifest(
        format_version=1,
        created_by="edgeclip 0.1.0",
        model=ModelSpec(
            name="tiny",
            embed_dim=4,
            logit_scale=100.0,
            activation="quick_gelu",
            image_architecture="vit",
            text_architecture="transformer",
            random_weights=True,
        ),
        preprocess=Preprocess(size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        tokenizer=TokenizerSpec(file="tokenizer.json", context_length=7, vocab_size=16, sot_id=14, eot_id=15, pad_id=0),
        golden="golden.safetensors",
        artifacts=artifacts(),
        files=(placeholder,),
        provenance=Provenance(source_format="edgeclip", source_sha256="0" * 64),
    )
    return msgspec.structs.replace(whole, **changes)


def write(path: Path, seed: int = 0, size: int = 256, *, replace: bool = False) -> Bundle:
    """Write the synthetic bundle to a file."""
    return write_bundle(path, manifest(), files(seed, size), replace=replace)


def write_directory(path: Path, seed: int = 0, size: int = 256) -> Bundle:
    """Write the synthetic bundle to a new directory."""
    archive = path.with_name(f"{path.name}.packed")
    write(archive, seed, size).unpack(path)
    archive.unlink()
    return Bundle.open(path)


def contents(bundle: Bundle) -> dict[str, bytes]:
    """Every file's verified content."""
    return {entry.path: bundle.read(entry.path) for entry in bundle.manifest.files}


def made_wrong(source: Path, path: Path) -> Path:
    """Write a bundle as `source`, whole and well-formed, with the golden embeddings of the images in another order."""
    bundle = Bundle.open(source)
    files = contents(bundle)
    golden = Golden.from_bytes(files[FILE])
    shifted = np.roll(golden.image_embeddings, 1, axis=0)
    files[FILE] = Golden(**{**vars(golden), "image_embeddings": shifted}).to_bytes()
    write_bundle(path, bundle.manifest, files, replace=False)
    return path


def document(path: Path) -> dict[str, Any]:
    """The manifest of a bundle directory as plain JSON."""
    parsed: dict[str, Any] = json.loads((path / "manifest.json").read_bytes())
    return parsed


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest of a bundle directory."""
    parsed = document(path)
    change(parsed)
    (path / "manifest.json").write_bytes(json.dumps(parsed).encode())


def encoded(**changes: Any) -> bytes:
    """A valid `manifest.json` with its file entries."""
    entries = tuple(FileEntry(path=name, size=len(data), sha256="0" * 64) for name, data in sorted(files().items()))
    return encode(manifest(**{"files": entries} | changes))


def zip_bytes(entries: Mapping[str, bytes] | Iterable[tuple[str | zipfile.ZipInfo, bytes]], **options: Any) -> bytes:
    """A zip made by the standard library, as somebody else's tool would make it."""
    buffer = io.BytesIO()
    pairs = entries.items() if isinstance(entries, Mapping) else entries
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, data in pairs:
            archive.writestr(name, data)
    return buffer.getvalue()
