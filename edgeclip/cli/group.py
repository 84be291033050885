"""The commands, and how one is found and run."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any, NoReturn

import click

from edgeclip import __version__
from edgeclip.cli.failures import ReaderGoneError
from edgeclip.cli.output import Output

COMMANDS: dict[str, tuple[str, str]] = {
    "export": ("edgeclip.cli.export", "Turn a CLIP checkpoint into a bundle, or add to one."),
    "quantize": ("edgeclip.cli.quantize", "Add integer artifacts to a bundle, within an accuracy budget."),
    "train": ("edgeclip.cli.train", "Train a CLIP model from a recipe."),
    "distill": ("edgeclip.cli.distill", "Train a small CLIP model that learns from larger ones."),
    "reinforce": ("edgeclip.cli.reinforce", "Store what a teacher says of the data, for students to learn from."),
    "verify": ("edgeclip.cli.verify", "Check a bundle's files, and that this device computes what it should."),
    "build": ("edgeclip.cli.build", "Build a bundle's TensorRT engines ahead of their first use."),
    "inspect": ("edgeclip.cli.inspect", "Show what a bundle or a checkpoint is."),
    "embed": ("edgeclip.cli.embed", "Embed images and texts."),
    "classify": ("edgeclip.cli.classify", "Classify images by labels that you choose."),
    "eval": ("edgeclip.cli.eval", "Measure how accurate bundles are, on many data sets."),
    "bench": ("edgeclip.cli.bench", "Time bundles on this device, and report it."),
    "tune": ("edgeclip.cli.tune", "Find what of a bundle is best on this device, and keep it for load()."),
    "report": ("edgeclip.cli.report", "Draw the report of a benchmark again, from its JSON."),
    "compare": ("edgeclip.cli.compare", "Compare two benchmarks, or hold one against bounds."),
    "search": ("edgeclip.cli.search", "Find a folder's photographs by texts, or by other pictures."),
    "doctor": ("edgeclip.cli.doctor", "Show which engines run here, and what the others need."),
    "unpack": ("edgeclip.cli.unpack", "Write a bundle's files to a directory."),
    "demo": ("edgeclip.cli.demo", "Run the built-in model on photographs."),
}
"""Name -> module, whose `command` it is, and one line of help."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS and not ctx.resilient_parsing:
            _refuse(ctx, args[0])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as exc:  # click would exit with 1, which means a failed gate here
            raise ReaderGoneError from exc


class Command(click.Command):
    """A command with `--json` and `--quiet`. Its callback's first argument is the `Output`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document to standard output."),
            click.Option(["-q", "--quiet"], is_flag=True, help="No progress and no remarks."),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        output = ctx.ensure_object(Output)
        output.as_json = ctx.params.pop("as_json")
        output.quiet = ctx.params.pop("quiet")
        with output.alone():
            return super().invoke(ctx)


def examples(*lines: str) -> str:
    """An epilog that shows how a command is called."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def _refuse(ctx: click.Context, name: str) -> NoReturn:
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    ctx.fail(f"no such command {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "edgeclip demo",
        "edgeclip export ./clip-vit-base-patch32 --target onnx,openvino -o b32.edgeclip",
        "edgeclip verify b32.edgeclip --backend all",
        "edgeclip embed b32.edgeclip photos/ -o photos.npz",
        "edgeclip classify b32.edgeclip photo.jpg --labels cat,dog",
        'edgeclip search photos/ "a dog on a beach"',
    ),
)
@click.version_option(__version__, prog_name="edgeclip")
@click.pass_context
def root(ctx: click.Context) -> None:
    """CLIP on edge devices: the same call, the same embedding, on every engine.

    Exit codes: 0 done, 1 a measured value is outside its bound, 2 wrong usage, 3 bad bundle, 4 bad input, 5 engine or
    device not available, 6 out of disk or memory, 70 a bug, 130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
