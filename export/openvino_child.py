"""The child process of `to_openvino`: ONNX file in, IR out."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from edgeclip.backends.ov_library import ov


def main(source: str, xml: str, half: str) -> None:
    model = ov.Core().read_model(source)
    model.set_friendly_name(Path(xml).stem)
    ov.save_model(model, xml, compress_to_fp16=bool(int(half)))
    _drop_paths(Path(xml))


def _drop_paths(xml: Path) -> None:
    """The run-time information repeats the command line, and with it the exporting machine's paths."""
    text = xml.read_text(encoding="utf-8")
    xml.write_text(re.sub(r"\s*<rt_info>(?:(?!</?rt_info>).)*</rt_info>\s*(?=</net>)", "\n", text, flags=re.S), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
