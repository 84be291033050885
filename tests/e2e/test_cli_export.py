"""`export`, `inspect` of checkpoints, and `demo --export` as they are used."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

from edgeclip import outcome
from edgeclip.bundle import Bundle, put_file
from edgeclip.cli import demo_export, main
from edgeclip.cli.output import Output
from edgeclip.errors import ExportError
from edgeclip.export import pipeline
from edgeclip.export.demo_checkpoint import to_huggingface, write_demo_checkpoint
from edgeclip.parity import Bounds
from edgeclip.train.checkpoints import build, read_checkpoint
from edgeclip.train.models.clip import Clip
from edgeclip.train.models.config import ClipConfig, load_config
from tests import tiny
from tests.cli import document, edgeclip, patched, without


def small() -> ClipConfig:
    """A ViT-B/32 in the small."""
    b32 = load_config("ViT-B-32")
    size = {"width": 64, "layers": 2, "heads": 4, "mlp_width": 128}
    text = msgspec.structs.replace(b32.text, vocab_size=tiny.VOCAB_SIZE, **size)
    return msgspec.structs.replace(
        b32, name="small", embed_dim=32, image_size=64, image=msgspec.structs.replace(b32.image, **size), text=text
    )


def test_export_publishes_a_bundle_and_shows_the_measurements(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.edgeclip"
    done = edgeclip("export", tiny_checkpoint, "--target", "onnx,openvino", "-o", path, "--random-weights")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("✅ ok") == 4 and "bounds of fp32: mean >= 0.99995" in done.stdout
    assert Bundle.open(path).digest in done.stdout
    assert {(a.target, a.tower) for a in Bundle.open(path).manifest.artifacts} == {
        (target, tower) for target in ("onnx", "openvino") for tower in ("image", "text")
    }


def test_export_adds_to_a_bundle_and_replaces_only_by_force(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.edgeclip"
    options = ("export", tiny_checkpoint, "--target", "onnx", "-o", path, "--json", "--tower", "image")
    first = edgeclip(*options)
    found = document(first)
    assert first.returncode == 0 and found["published"] and found["artifacts"][0]["status"] == "ok"
    assert found["digest"] == Bundle.open(path).digest
    again = edgeclip(*options)
    assert again.returncode == 2
    assert document(again)["error"]["message"].endswith("has onnx fp32 image already")


def test_a_target_that_cannot_be_made_is_in_the_table(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: object) -> None:
        raise ExportError("openvino: the converter was killed by signal 11")

    monkeypatch.setattr(pipeline, "to_openvino", crash)
    path = tmp_path / "x.edgeclip"
    arguments = ["export", str(tiny_checkpoint), "--target", "onnx,openvino", "--tower", "text", "-o", str(path)]
    assert main(arguments) == 70 and not path.exists()
    shown = capfd.readouterr().out
    assert "❌ failed" in shown and "killed by signal 11" in shown and "✅ ok" in shown
    assert "Nothing was published." in shown
    assert main([*arguments, "--keep-going", "--json"]) == 70
    assert json.loads(capfd.readouterr().out)["published"] is True
    assert [a.target for a in Bundle.open(path).manifest.artifacts] == ["onnx"]


def test_an_artifact_below_its_gate_exits_1_unless_allowed(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outcome, "bounds_for", lambda *_: Bounds(2.0, 0.9, 1.0, 1.0))
    path = tmp_path / "x.edgeclip"
    arguments = ["export", str(tiny_checkpoint), "--target", "onnx", "--tower", "text", "-o", str(path)]
    assert main(arguments) == 1 and not path.exists()
    shown = capfd.readouterr()
    assert "❎ below gate" in shown.out and "cosine mean 1 < 2" in shown.out
    assert "--allow-below-gate publishes it all the same" in shown.err
    assert main([*arguments, "--allow-below-gate"]) == 0
    assert not Bundle.open(path).manifest.artifacts[0].parity.passed


def test_export_without_pytorch_exits_5(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = patched(without("torch"), "export", tiny_checkpoint, "--target", "onnx", "-o", tmp_path / "x.edgeclip")
    assert done.returncode == 5
    assert "needs torch, which is not installed" in done.stderr and "pip install 'edgeclip[export]'" in done.stderr


def test_export_never_replaces_what_is_no_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = patched(
        without("torch"), "export", tiny_checkpoint, "--target", "onnx", "--force", "-o", tmp_path / "thesis.txt"
    )
    assert done.returncode == 2 and "exists and is not a bundle" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_inspect_of_a_checkpoint(tiny_checkpoint: Path) -> None:
    found = document(edgeclip("inspect", tiny_checkpoint, "--json"))
    assert found["kind"] == "checkpoint" and found["format"] == "huggingface"
    assert found["tokenizer"] == "tokenizer.json" and found["config"]["embed_dim"] == 48
    assert found["parameters"]["image"] > 0 < found["parameters"]["text"]


def test_inspect_of_a_text_file_exits_4(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("no checkpoint, and not short, either: it has more than eight characters")
    done = edgeclip("inspect", tmp_path / "notes")
    assert done.returncode == 4 and "neither safetensors nor a PyTorch checkpoint" in done.stderr


def test_the_demo_checkpoint_is_one_that_transformers_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    write_demo_checkpoint(tmp_path, small(), tokenizer=str(tiny.tokenizer_file(tmp_path)))
    model, report = transformers.CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = build(read_checkpoint(tmp_path))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs = model.visual_projection(model.vision_model(pixels).pooler_output)
        torch.testing.assert_close(ours.encode_image(pixels), theirs, atol=1e-5, rtol=1e-4)


def test_the_demo_checkpoint_reads_back_as_it_was_made(tmp_path: Path) -> None:
    write_demo_checkpoint(tmp_path, small(), tokenizer=str(tiny.tokenizer_file(tmp_path)))
    torch.manual_seed(0)
    expected = Clip(small()).state_dict()
    found = read_checkpoint(tmp_path).state_dict
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert len(to_huggingface(expected)) == len(expected)


def test_the_demo_goes_all_the_way(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, which carries the photographs, is not installed")
    output = Output()
    demo_export.run(output, small(), str(tiny.tokenizer_file(tmp_path)), tmp_path / "demo")
    shown = capfd.readouterr().out
    for part in ("Export", "Verification", "Photographs", "Labels", "Time", "china.jpg", "flower.jpg", "a temple"):
        assert part in shown
    assert "The weights are random: labels and probabilities mean nothing; agreement and speed do." in shown
    assert Bundle.open(tmp_path / "demo" / "small-random.edgeclip").manifest.model.random_weights
    assert all(backend["cosine_min"] > 0.99999 for backend in output.document["backends"])
    json.dumps(output.document, default=str)


def test_the_demo_without_photographs_says_how_to_get_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_export, "carried_by", lambda _: [])
    monkeypatch.setattr(demo_export, "export", lambda *_: None)
    monkeypatch.setattr(demo_export, "verify", lambda *_: None)
    demo_export.run(Output(), small(), str(tiny.tokenizer_file(tmp_path)), tmp_path / "demo")
    assert "pip install scikit-learn" in capfd.readouterr().out


def test_what_an_export_does_not_make_again_stays_in_the_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.edgeclip"
    tiny.bundle(tiny_checkpoint, path, targets=("onnx",), precisions=("fp32",))
    put_file(Bundle.open(path), "report.json", b"{}")
    tiny.bundle(tiny_checkpoint, path, targets=("onnx",), precisions=("fp16",))
    assert Bundle.open(path).read("report.json") == b"{}" and len(Bundle.open(path).manifest.artifacts) == 4
