"""The command line's parts, and `main` inside this process."""

from __future__ import annotations

import io
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

from edgeclip.cli import machine, main, sources, tables
from edgeclip.cli.classify import choose_labels, choose_templates
from edgeclip.cli.export import chosen, default_output
from edgeclip.cli.failures import describe
from edgeclip.cli.group import COMMANDS, Command
from edgeclip.cli.inspect import is_bundle
from edgeclip.cli.output import Output, to_json
from edgeclip.cpuinfo import instruction_sets
from edgeclip.errors import InputError, TextInputError, UsageError


def test_help_names_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capfd.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


def test_without_a_command_help_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Commands:" in capfd.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_examples_and_json(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out = capfd.readouterr().out
    assert f"Examples:\n    edgeclip {name} " in out or f"edgeclip {name}\n" in out
    assert "--json" in out and "--quiet" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_module_has_the_command(name: str) -> None:
    command = import_module(COMMANDS[name][0]).command
    assert isinstance(command, Command)
    assert command.help


def test_the_version_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    from edgeclip import __version__

    assert main(["--version"]) == 0
    assert __version__ in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verfy"], "no such command 'verfy'; did you mean 'verify'?"),
        (["zzz"], "no such command 'zzz'"),
        (["verify", "b", "--bakend", "x"], "--backend"),
        (["verify"], "Missing argument 'BUNDLE'."),
        (["embed", "b", "--threads", "0"], "0 is not in the range x>=1"),
        (["embed", "b"], "nothing to embed"),
        (["embed", "b", "--text", "x", "-o", "x.csv"], "x.csv: unknown format '.csv'"),
        (["embed", "b", "--text", "x", "-o", "no/such/x.npy"], "the directory no/such does not exist"),
        (["classify", "b", "x.png"], "give either --labels or --labels-file"),
        (["export", "source"], "--target is required"),
        (["export", "source", "--target", "onxx"], "unknown target 'onxx'"),
        (["export", "source", "--target", "onnx", "--precision", "fp8"], "unknown precision 'fp8'"),
    ],
)
def test_wrong_usage_exits_2_and_says_why(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err.splitlines()[0]
    assert "\nhint: " in captured.err
    assert captured.out == ""


def test_with_json_an_error_is_one_document(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "absent.edgeclip", "--json"]) == 3
    captured = capfd.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["type"] == "BundleNotFoundError" and error["exit_code"] == 3
    assert error["message"] == "absent.edgeclip: no such file or directory"
    assert captured.err.startswith("error: absent.edgeclip")


def test_json_after_two_dashes_is_no_option(capfd: pytest.CaptureFixture[str]) -> None:
    main(["inspect", "--", "--json"])
    assert capfd.readouterr().out == ""


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("edgeclip.bundle.Bundle.open", fail)
    return main(["unpack", "a", "b"])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("a\nb"), 70, "error: internal error: RuntimeError: a b\nhint: this is a bug in edgeclip"),
        (MemoryError(), 6, "error: out of memory\n"),
        (OSError(28, "No space left on device"), 6, "No space left on device\nhint: free some space"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (InputError("what\nwhere", hint="do\nthis"), 4, "error: what where\nhint: do this\n"),
    ],
)
def test_an_exception_becomes_a_line_and_an_exit_code(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EDGECLIP_DEBUG", raising=False)
    assert failing(error, monkeypatch) == code
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EDGECLIP_DEBUG", "1")
    assert failing(RuntimeError("boom"), monkeypatch) == 70
    assert "Traceback (most recent call last)" in capfd.readouterr().err


def test_a_click_error_names_its_command() -> None:
    context = click.Context(click.Command("embed"), info_name="embed")
    assert describe(click.UsageError("no", context)).hint == "see `embed --help`"


def test_a_plain_table_is_aligned_and_numbers_stand_right() -> None:
    text = tables.plain("T", ("name", "n"), [["a", "1"], ["猫", "22.5"], ["bb", "-3e-07"]])
    assert text == "T\nname       n\na          1\n猫      22.5\nbb    -3e-07\n\n"


def test_columns_without_content_are_left_out() -> None:
    stream = io.StringIO()
    tables.write(stream, "", ("a", "reason"), [["1", ""], ["2", ""]])
    assert stream.getvalue() == "a\n1\n2\n\n"


def test_an_empty_table_is_its_title() -> None:
    stream = io.StringIO()
    tables.write(stream, "T", ("a", "b"), [])
    assert stream.getvalue() == "T\n\n"


def test_records_name_each_value() -> None:
    assert tables.records("T", ("a", "b"), [["1", "2"], ["3", ""]]) == "T\n\na: 1\nb: 2\n\na: 3\n\n"


def test_control_characters_never_reach_the_terminal() -> None:
    assert tables.clean("a\x1b[31mb\nc") == "a\ufffd[31mb\ufffdc"


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "✅ ok"), ("cp1252", "ok"), ("ascii", "ok")])
def test_a_status_is_plain_where_its_mark_cannot_be_shown(encoding: str, shown: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert Output().status("ok") == shown


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_json_survives_any_encoding(encoding: str) -> None:
    value = {"source": "é 🐈 \udcff"}
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as stream:
        stream.write(to_json(value, stream))
        stream.flush()
        assert json.loads(raw.getvalue()) == value


def test_a_folder_gives_its_images_in_order(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(Path(name).relative_to(tmp_path)) for name in sources.images([str(tmp_path)])]
    assert found == ["a.jpg", "b.PNG", str(Path("sub", "c.webp"))]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no image found in .*in folders, names end with \.bmp"):
        sources.images([str(tmp_path)])


def test_a_missing_image_is_refused_unless_it_may_be_skipped() -> None:
    with pytest.raises(InputError, match=r"gone.jpg: no such file or directory"):
        sources.images(["gone.jpg"])
    assert sources.images(["gone.jpg"], missing_ok=True) == ["gone.jpg"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"a\nb\n", ["a", "b"]), (b"a\r\n\r\nb", ["a", "", "b"]), ("\ufeffx\u2028y\n".encode(), ["x\u2028y"]), (b"", [])],
)
def test_texts_are_the_lines_of_a_file(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    (tmp_path / "t").write_bytes(data)
    assert sources.lines(str(tmp_path / "t")) == expected


def test_texts_must_be_utf_8(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"ok\n\xff")
    with pytest.raises(TextInputError, match="not UTF-8 at byte 3"):
        sources.lines(str(tmp_path / "t"))


def test_a_missing_file_of_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        sources.lines(str(tmp_path / "t"))


def test_targets_come_by_commas_and_repeatedly_each_once() -> None:
    assert chosen("target", ("onnx,openvino", "onnx"), ("onnx", "openvino")) == ["onnx", "openvino"]


@pytest.mark.parametrize(
    ("source", "name"),
    [("hf-hub:org/clip@abc", "clip"), ("a/ViT-B-32.pt", "ViT-B-32"), ("model", "model")],
)
def test_the_output_is_named_after_the_source(source: str, name: str) -> None:
    assert default_output(source) == Path(f"{name}.edgeclip")


def test_a_folder_gives_the_output_its_whole_name(tmp_path: Path) -> None:
    (tmp_path / "clip-v1.5").mkdir()
    assert default_output(str(tmp_path / "clip-v1.5")) == Path("clip-v1.5.edgeclip")


def test_labels_are_stripped_and_empty_ones_dropped() -> None:
    assert choose_labels("cat, dog,,", None) == ["cat", "dog"]
    with pytest.raises(UsageError, match="there is no label"):
        choose_labels(" ,", None)


def test_templates_are_named_or_given() -> None:
    assert choose_templates(("x {}",), None) == ("x {}",)
    assert choose_templates((), "bare") == ("{}",)
    with pytest.raises(UsageError, match="give either --template or --templates"):
        choose_templates(("x {}",), "bare")


@pytest.mark.parametrize(("name", "expected"), [("absent", True), ("x.edgeclip", True), ("hf-hub:a/b", False)])
def test_what_is_meant_as_a_bundle(name: str, expected: bool) -> None:
    assert is_bundle(name) is expected


def test_a_bundle_is_told_by_its_beginning(tmp_path: Path) -> None:
    from tests import bundles

    bundles.write(tmp_path / "renamed.bin")
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04" + bytes(60))
    assert is_bundle(str(tmp_path / "renamed.bin"))
    assert not is_bundle(str(tmp_path / "weights.pt"))


def test_the_cpu_is_read_from_what_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast CPU 9\nflags\t\t: fpu avx2 avx512_vnni\n")
    assert machine.cpu_model(tmp_path / "cpuinfo") == "Fast CPU 9"
    assert instruction_sets(tmp_path / "cpuinfo") == ["avx2", "avx512_vnni"]


def test_an_unusable_cache_is_reported_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "file" / "cache"))
    assert "working without a cache: " in machine.cache_state()
