"""`edgeclip eval`: how accurate bundles are, on as many data sets as there are, whatever engine runs them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip import errors
from edgeclip.cli import verify
from edgeclip.cli.export import asked_precisions, chosen
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import COMPUTES, Engine, need
from edgeclip.cli.output import Output, to_json
from edgeclip.errors import EdgeClipError, UsageError
from edgeclip.manifest import Compute, Precision

if TYPE_CHECKING:
    from edgeclip.benchmarks.accuracy_rows import AccuracyRow, Evaluation, Missing
    from edgeclip.benchmarks.embedding_child import EngineSpec
    from edgeclip.benchmarks.suite_plan import Request

SUITES = ("quick", "classification", "retrieval", "linear-probe", "robustness", "bias")
COLUMNS = ("artifact", "status", "data", "metric", "group", "value", "95 % interval", "images", "drop", "95 % of drop")
ALL = "all"


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip eval --data eval/",
        "edgeclip eval b32.edgeclip --suite classification --data eval/ --data hf-hub:clip-benchmark/wds_imagenet1k",
        "edgeclip eval b32.edgeclip --backend all --reference b32-fp32.edgeclip --data eval/ -o accuracy.json",
        "edgeclip eval b32.edgeclip --suite linear-probe --data pets/ --split-test",
        "edgeclip eval b32.edgeclip --suite bias --data faces.csv --labels labels.csv --labels with-child.csv",
    ),
)
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path))
@click.option("--suite", type=click.Choice(SUITES), default="quick", show_default=True, help="What is measured.")
@click.option(
    "--data",
    "places",
    multiple=True,
    metavar="DATA",
    help="CLIP_benchmark test sets or a folder of them, class folders, a CSV, or hf-hub:ORG/NAME[@REVISION]; may be "
    "given again. $EDGECLIP_DATA/eval by default.",
)
@click.option("--sets", help="Names of data sets, with commas; all by default.")
@click.option("--limit", type=click.IntRange(min=0), help="Images of each set, 0 for all; 500 in the quick suite.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="A bundle that the others are held against, on the same images.",
)
@click.option("--backend", "backends", multiple=True, help="Names with commas, or all that run here; auto by default.")
@click.option("--precision", "precisions", multiple=True, help="Names with commas; the most precise by default.")
@click.option("--device", help="As the backend names it.")
@click.option("--compute", type=click.Choice(COMPUTES), default="f32", show_default=True, help="Arithmetic.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all that this process may use.")
@click.option("--split-test", is_flag=True, help="Train a probe on half of the test images where there are no others.")
@click.option(
    "--baseline", type=click.Path(path_type=Path), help="Accuracies for effective robustness: a CSV, or training runs."
)
@click.option("--original", default="", metavar="NAME", help="The data set that the others are shifts of.")
@click.option("--labels", "designs", multiple=True, type=click.Path(path_type=Path), help="Of a bias probe: a CSV.")
@click.option("--no-cache", is_flag=True, help="Embed everything afresh, and keep nothing.")
@click.option("-o", "--output", "path", type=click.Path(path_type=Path), help="Write the JSON document to a file, too.")
@click.pass_obj
def command(
    output: Output,
    /,
    bundles: tuple[Path, ...],
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    reference: Path | None,
    no_cache: bool,
    path: Path | None,
    device: str | None,
    compute: Compute,
    threads: int | None,
    **asked: Any,
) -> None:
    """Measure the accuracy of BUNDLES, or of the built-in model.

    Suites: zero-shot top-1, top-5, mean per-class recall and mean average precision (classification); recall at 1, 5
    and 10 both ways (retrieval); both, of the first images of each set (quick); logistic regression on embeddings
    (linear-probe); accuracy under natural shifts (robustness); rates of kinds of labels by group (bias).

    Every artifact runs in a process of its own; one that fails is a row with its reason, the others go on, and the exit
    code is that of the first that failed. Embeddings are kept in the cache by content: a run that was killed goes on
    where it stopped.
    """
    from edgeclip.benchmarks.evaluation import Runner
    from edgeclip.benchmarks.suite_plan import plan
    from edgeclip.cli.writers import check_place, write_text

    if path is not None:
        check_place(path, ".json")
    request = requested(asked)
    if request.suite == "linear-probe":
        need("sklearn", extra="eval", what="a linear probe")
    suite = plan(request)
    engine = Engine("auto", None, device, compute, threads)
    wanted = asked_engines(engine, backends, precisions)
    engines, missing = specs(request.suite, chosen_bundles(bundles), wanted)
    against = spec(reference, engine) if reference is not None else None
    found = Runner(request.suite, suite, output, cache=not no_cache).evaluate(engines, against, missing)
    show(output, found)
    if path is not None:
        write_text(path, to_json(output.document, output.stream, indent=1) + "\n")
        output.note(f"-> {path}")
    raise_if_missing(found)


def requested(asked: dict[str, Any]) -> Request:
    """The data and the suite that options name.

    Raises:
        UsageError: no data.
    """
    from edgeclip.benchmarks import robustness
    from edgeclip.benchmarks.suite_plan import Request

    return Request(
        suite=asked["suite"],
        places=asked["places"] or usual_places(),
        sets=tuple(name.strip() for name in (asked["sets"] or "").split(",") if name.strip()),
        limit=asked["limit"],
        split_test=asked["split_test"],
        baseline=asked["baseline"] or robustness.BUILT_IN,
        original=asked["original"],
        designs=asked["designs"],
    )


def usual_places() -> tuple[str, ...]:
    """Where data lie if nothing is said.

    Raises:
        UsageError: nowhere.
    """
    root = os.environ.get("EDGECLIP_DATA")
    if not root:
        raise UsageError(
            "no data to evaluate on", hint="--data DIR, or EDGECLIP_DATA, whose folder eval/ has test sets"
        )
    return (str(Path(root) / "eval"),)


def chosen_bundles(bundles: Sequence[Path]) -> Sequence[Path]:
    """Those that are named, or the built-in one."""
    from edgeclip.loading import BUILT_IN

    return list(dict.fromkeys(bundles)) or [BUILT_IN]


def asked_engines(engine: Engine, backends: Sequence[str], precisions: Sequence[str]) -> list[Engine]:
    """Every backend that is named with every precision.

    Raises:
        UsageError: an unknown one.
    """
    from edgeclip.backends import BACKENDS

    names = chosen("backend", backends, (ALL, "auto", *BACKENDS)) if backends else ["auto"]
    kinds: Sequence[Precision | None] = asked_precisions(precisions) if precisions else [None]
    return [replace(engine, backend=name, precision=kind) for name in names for kind in kinds]


def specs(suite: str, bundles: Sequence[Path], engines: Sequence[Engine]) -> tuple[list[EngineSpec], list[Missing]]:
    """What to run, each once, and the bundles that cannot be opened to see what they hold.

    The backend `all` is every backend that runs here, with every precision that the bundle has for it.
    """
    from edgeclip.benchmarks.accuracy_rows import Missing
    from edgeclip.benchmarks.embedding_child import fault
    from edgeclip.benchmarks.evaluation import label

    found: list[EngineSpec] = []
    missing: list[Missing] = []
    for bundle in bundles:
        for engine in engines:
            try:
                found += [spec(bundle, one) for one in ([engine] if engine.backend != ALL else _all(bundle, engine))]
            except EdgeClipError as exc:
                missing.append(Missing(artifact=label(spec(bundle, engine)), suite=suite, fault=fault(exc)))
    return list(dict.fromkeys(found)), missing


def spec(bundle: Path, engine: Engine) -> EngineSpec:
    """An engine as a child process is told of it."""
    from edgeclip.benchmarks.embedding_child import EngineSpec

    return EngineSpec(
        bundle=str(bundle),
        backend=engine.backend,
        precision=engine.precision,
        device=engine.device,
        compute=engine.compute,
        threads=engine.threads,
    )


def show(output: Output, found: Evaluation) -> None:
    """Print every number, what is missing, and what must be known of them."""
    import msgspec

    output.document |= msgspec.to_builtins(found)
    rows = [_row(output, one, _called(one, found)) for one in found.rows]
    rows += [_missing(output, one) for one in found.missing]
    against = f", drop in points against {found.reference.label}" if found.reference else ""
    output.table(f"Accuracy, {found.suite}{against}", (*COLUMNS, "note"), rows)
    for remark in found.remarks:
        output.line(remark)


def raise_if_missing(found: Evaluation) -> None:
    """
    Raises:
        EdgeClipError: of the kind of the first result that is missing.
    """
    if not found.missing:
        return
    first = found.missing[0]
    kind = getattr(errors, first.fault.type, EdgeClipError)
    others = f"; {len(found.missing) - 1} more results are missing" if len(found.missing) > 1 else ""
    where = f"{first.artifact}: {first.data}: " if first.data else f"{first.artifact}: "
    raise kind(f"{where}{first.fault.message}{others}", hint=first.fault.hint)


def _all(bundle: Path, engine: Engine) -> list[Engine]:
    from edgeclip.bundle import Bundle

    return [one.engine for one in verify.plan(Bundle.open(bundle).manifest, engine, None)]


def _called(one: AccuracyRow, found: Evaluation) -> str:
    """The artifact's label, and of which bundle it is where two share one."""
    bundles = {other.subject.bundle for other in found.rows if other.subject.label == one.subject.label}
    short = one.subject.bundle.removeprefix("sha256:")[:8]
    return f"{one.subject.label} of {short}" if len(bundles) > 1 else one.subject.label


def _row(output: Output, one: AccuracyRow, artifact: str) -> list[str]:
    from edgeclip.benchmarks.suites import EFFECTIVE, RELATIVE

    sign, unit = ("+", "pt") if one.metric in (EFFECTIVE, RELATIVE) else ("", "%")
    drop = (
        [f"{one.drop_pt:+.2f}", f"{one.drop_low_pt:+.2f} to {one.drop_high_pt:+.2f}"]
        if one.drop_pt is not None
        else ["", ""]
    )
    return [
        artifact,
        output.status("ok"),
        one.data,
        one.metric.replace("_", " "),
        one.group,
        f"{100 * one.value:{sign}.1f} {unit}",
        f"{100 * one.low:{sign}.1f} to {100 * one.high:{sign}.1f}",
        str(one.n),
        *drop,
        one.note,
    ]


def _missing(output: Output, one: Missing) -> list[str]:
    return [one.artifact, output.status("failed"), one.data, *[""] * (len(COLUMNS) - 3), one.fault.message]
