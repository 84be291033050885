"""The report of the built-in model at every target and precision: `python -m edgeclip.benchmarks.student_report`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgeclip.benchmarks.quiet import Progress
from edgeclip.benchmarks.subjects import Workshop
from edgeclip.cli import main as edgeclip
from edgeclip.errors import EdgeClipError

SCENARIOS = ("single-stream", "multi-stream", "offline", "cold")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A folder with train/ and eval/.")
@click.option("--tokenizer", type=click.Path(path_type=Path), required=True, help="OpenAI's merges.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/precisions"), show_default=True)
@click.option("--keep", is_flag=True, help="Take a bundle that is there although other code made it.")
@click.option("--accuracy", type=click.Path(path_type=Path), help="What `edgeclip eval -o` wrote of that bundle.")
@click.option("--report", type=click.Path(path_type=Path), required=True, help="FILE.html; .md and .json beside it.")
@click.option("--quick", is_flag=True, help="Not comparable.")
@click.option("--seconds", type=click.IntRange(min=1), help="For each artifact and stage; 60 by default.")
def main(
    data: Path,
    tokenizer: Path,
    work: Path,
    keep: bool,
    accuracy: Path | None,
    report: Path,
    quick: bool,
    seconds: int | None,
) -> None:
    """Make the bundle with all that the built-in model can be exported to, where it is not there, and time it."""
    try:
        bundle = Workshop(work, data, tokenizer, Progress(), keep).student().bundle
    except EdgeClipError as exc:
        raise SystemExit(f"error: {exc}") from exc
    arguments = ["bench", str(bundle), "--report", str(report)]
    arguments += [word for name in SCENARIOS for word in ("--scenario", name)]
    arguments += ["--quick"] if quick else []
    arguments += ["--seconds", str(seconds)] if seconds else []
    arguments += ["--accuracy", str(accuracy)] if accuracy else []
    sys.exit(edgeclip(arguments))


if __name__ == "__main__":
    main()
