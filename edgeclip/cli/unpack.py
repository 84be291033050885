"""`edgeclip unpack`: a bundle's files, as a directory that is a bundle, too."""

from __future__ import annotations

from pathlib import Path

import click

from edgeclip.bundle import Bundle
from edgeclip.cli import progress
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import bundle_argument
from edgeclip.cli.output import Output


@click.command(cls=Command, epilog=examples("edgeclip unpack b32.edgeclip b32/"))
@bundle_argument
@click.argument("directory", type=click.Path(path_type=Path))
@click.pass_obj
def command(output: Output, bundle: Path, directory: Path) -> None:
    """Write the files of BUNDLE to a new DIRECTORY, each checked against its hash.

    The directory appears when it is complete, and every command takes it in place of the file.
    """
    opened = Bundle.open(bundle)
    with progress.steps(output) as begin:
        begin(f"unpacking {bundle.name}")
        opened.unpack(directory)
    count = len(opened.manifest.files) + 1
    output.document |= {"directory": str(directory), "files": count, "digest": opened.digest}
    output.line(f"{count} files in {directory}; {opened.digest}")
