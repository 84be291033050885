"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

import click

from edgeclip.errors import TargetUnavailableError
from edgeclip.manifest import Precision, Target, Tower

if TYPE_CHECKING:
    from edgeclip.manifest import Compute
    from edgeclip.model import Model

PRECISIONS: tuple[str, ...] = get_args(Precision)
COMPUTES = ("f32", "bf16", "f16")
Function = TypeVar("Function", bound=Callable[..., Any])

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
max_batch_option = click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    help="Rows that a TensorRT engine takes at once, 32 by default; more take more memory.",
)
coreml_target_option = click.option(
    "--coreml-target",
    metavar="SYSTEM",
    help="Oldest system that runs a Core ML package: iOS17 (macOS14) or iOS18 (macOS15); by precision if not said.",
)
tower_option = click.option("--tower", type=click.Choice(get_args(Tower)), help="Only this tower.")


@dataclass(frozen=True)
class Engine:
    """The engine that the command line asks for."""

    backend: str = "auto"
    precision: Precision | None = None
    device: str | None = None
    compute: Compute = "f32"
    threads: int | None = None

    def load(self, bundle: Path | None, tower: Tower | None = None, *, tuned: bool = False) -> Model:
        """Load the bundle's towers, or one of them; None is the built-in model. Raises as `edgeclip.load`.

        Args:
            tuned: what was not asked for is as `edgeclip tune` found it best; never of what is to be measured.
        """
        from edgeclip.loading import load

        return load(
            bundle,
            backend=self.backend,
            precision=self.precision,
            tower=tower,
            device=self.device,
            compute=self.compute,
            threads=self.threads,
            tuned=tuned,
        )


_ENGINE = (
    click.option("--backend", default="auto", show_default=True, help="auto, or one that edgeclip doctor lists."),
    click.option("--precision", type=click.Choice(PRECISIONS), help="Of the artifact; the most precise by default."),
    click.option("--device", help="As the backend names it: see edgeclip doctor. The CPU; for tensorrt the first GPU."),
    click.option("--compute", type=click.Choice(COMPUTES), default="f32", show_default=True, help="Arithmetic."),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all that this process may use."),
)


def engine_options(function: Function) -> Function:
    """Add the engine's options; the function gets them as `engine`."""

    @functools.wraps(function)
    def wrapper(
        *args: Any,
        backend: str,
        precision: Precision | None,
        device: str | None,
        compute: Compute,
        threads: int | None,
        **kwargs: Any,
    ) -> Any:
        return function(*args, engine=Engine(backend, precision, device, compute, threads), **kwargs)

    return cast("Function", _with(wrapper, *_ENGINE))


_STREAM = (
    click.option("--batch-size", type=click.IntRange(min=1), help="Images per run; 32, or what edgeclip tune found."),
    click.option(
        "--on-error",
        type=click.Choice(["raise", "skip"]),
        default="raise",
        show_default=True,
        help="What an image that cannot be read does: stop, or be left out and listed.",
    ),
)


def stream_options(function: Function) -> Function:
    """Add `--batch-size` and `--on-error`."""
    return cast("Function", _with(function, *_STREAM))


_CHECKPOINT = (
    click.option("--architecture", metavar="NAME", help="Of a bare state dict, as ViT-B-32."),
    click.option("--activation", type=click.Choice(["quick_gelu", "gelu"]), help="When the checkpoint does not say."),
    click.option("--allow-pickle", is_flag=True, help="Load pickles that hold more than tensors: they can run code."),
)


def checkpoint_options(function: Function) -> Function:
    """Add what reading a checkpoint may need to be told."""
    return cast("Function", _with(function, *_CHECKPOINT))


def need(*modules: str, extra: str, what: str) -> None:
    """Make sure that an optional part is installed; imports nothing.

    Raises:
        TargetUnavailableError: naming the first module that is missing, and how to get it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise TargetUnavailableError(
                f"{what} needs {module}, which is not installed", hint=f"pip install 'edgeclip[{extra}]'"
            )


def need_export() -> None:
    """`need` for everything that touches a checkpoint."""
    need("torch", "onnx", "onnxscript", extra="export", what="reading checkpoints and exporting them")


def need_toolchains(targets: Sequence[Target]) -> None:
    """`need` for what targets are made with, so that its lack is known before anything slow."""
    if "coreml" in targets:
        need("coremltools", extra="coreml", what="target coreml")


def _with(function: Callable[..., Any], *options: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        function = option(function)
    return function
