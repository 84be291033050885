"""edgeclip beside Hugging Face transformers, with the same weights: `python -m edgeclip.benchmarks.spine`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from edgeclip.benchmarks import calls, cold, environment, photographs, report, results, sides, timing
from edgeclip.benchmarks.calls import Contender
from edgeclip.benchmarks.cold import Child
from edgeclip.benchmarks.prepare import Materials, prepare
from edgeclip.benchmarks.quiet import Disturbances, Progress, quietly
from edgeclip.benchmarks.report import Report
from edgeclip.benchmarks.results import Goal, Group
from edgeclip.benchmarks.sides import MAIN, PEER, PEER_BF16, Sides
from edgeclip.benchmarks.timing import Samples
from edgeclip.cpus import available_cpus
from edgeclip.errors import EdgeClipError

BATCHES = (1, 32)
PARTS = ("cold", "cli", "image", "text", "preprocess", "file", "folder")
ONE_TOWER = ", image tower only"
HALF = ", fp16 artifact"
INT8 = ", w8a8 artifact"
BF16 = ", bf16 arithmetic"
OURS = "edgeclip"
BARE = "python -c pass"
HELP = "python -m edgeclip --help"


@dataclass(frozen=True)
class Budget:
    """How long a run may take."""

    seconds: float
    """Per contender and group."""
    queries: int
    """At least, per contender and group."""
    processes: int
    """At least, per whole process that is timed."""
    passes: int
    """Over the folder, per contender."""
    folder: int
    """Photographs in it."""
    patience: float
    """Seconds that each group waits for other processes to end."""


STANDARD = Budget(seconds=20.0, queries=15, processes=5, passes=6, folder=500, patience=60.0)
QUICK = Budget(seconds=3.0, queries=6, processes=3, passes=2, folder=60, patience=2.0)


@dataclass(frozen=True)
class Bench:
    """One run: what it measures with, and where it says how far it is."""

    materials: Materials
    budget: Budget
    threads: int
    say: Callable[[str], None]

    def quietly(self, title: str) -> AbstractContextManager[list[str]]:
        """`quiet.quietly`, with this run's patience."""
        return quietly(title, self.budget.patience, self.say)

    def time(
        self,
        key: str,
        title: str,
        contenders: Mapping[str, Contender],
        missing: Mapping[str, str],
    ) -> Group:
        """Time calls in this process, in milliseconds."""
        # Engines plan anew for every shape: each argument once before the clock starts.
        warmup = max(3, *(contender.distinct for contender in contenders.values()))
        budget = self.budget
        with self.quietly(title) as flags:
            seconds = timing.time_calls(contenders, budget_s=budget.seconds, min_queries=budget.queries, warmup=warmup)
        samples = {name: some * 1e3 for name, some in seconds.items()}
        return results.group(key, title, "ms", samples, missing=missing, flags=flags)


def image(bench: Bench, both: Sides) -> list[Group]:
    """Image towers on pixels that are ready."""
    return [
        bench.time(
            f"image/{batch}",
            f"Image encode, batch {batch}, pixels ready",
            calls.image_encode(both, bench.materials, batch),
            both.missing,
        )
        for batch in BATCHES
    ]


def text(bench: Bench, both: Sides) -> list[Group]:
    """Text towers, from strings."""
    missing = _engines(both)
    return [
        bench.time(
            f"text/{batch}", f"Text encode, batch {batch}, from strings", calls.text_encode(both, batch), missing
        )
        for batch in BATCHES
    ]


def preprocess(bench: Bench, both: Sides) -> list[Group]:
    """Files to pixels."""
    return [
        bench.time(
            f"preprocess/{size:g}",
            f"Decode and preprocess, {size:g} megapixels",
            calls.preprocessing(both, bench.materials, size),
            {},
        )
        for size in photographs.SIZES
    ]


def file(bench: Bench, both: Sides) -> list[Group]:
    """Files to embeddings, one at a time."""
    return [
        bench.time(
            f"file/{size:g}",
            f"File to embedding, {size:g} megapixels",
            calls.file_to_embedding(both, bench.materials, size),
            _engines(both),
        )
        for size in photographs.SIZES
    ]


def folder(bench: Bench, both: Sides) -> list[Group]:
    """A folder of files to embeddings: throughput."""
    paths = bench.materials.folder
    title = f"Folder of {len(paths)} photographs to embeddings"
    contenders = calls.folder(both, paths)
    with bench.quietly(title) as flags:
        for warm in calls.folder(both, paths[:32]).values():
            warm()
        seconds = timing.time_calls(contenders, budget_s=0, min_queries=bench.budget.passes, warmup=0)
    rates = {name: len(paths) / samples for name, samples in seconds.items()}
    missing = _engines(both)
    return [results.group("folder", title, "images/s", rates, missing=missing, higher_is_better=True, flags=flags)]


def cold_start(bench: Bench) -> list[Group]:
    """Whole processes up to one embedding: time, CPU time and memory."""
    with bench.quietly("Cold start, whole processes") as flags:
        found = _processes(bench, _embedding_processes(bench))
    embedding = {name: pairs for name, pairs in found.items() if name != BARE}
    walls = {name: timing.column(pairs, lambda one: one.wall_s) for name, pairs in embedding.items()}
    cpus = {name: timing.column(pairs, lambda one: one.cpu_s) for name, pairs in embedding.items()}
    peaks = {name: timing.column(pairs, lambda one: one.peak_mb) for name, pairs in embedding.items()}
    bare = timing.column(found[BARE], lambda one: one.peak_mb)
    title = "Process start to first embedding of a 0.3-megapixel file"
    groups = [
        *_by_towers("cold/wall", title, "s", walls, flags),
        *_by_towers("cold/cpu", f"{title}, CPU time to the process's end", "CPU s", cpus, flags),
    ]
    if bare.min() > 0:
        over = {name: peak - bare for name, peak in peaks.items()}
        groups += _by_towers("memory/peak", "Peak memory of that process", "MB", peaks, [])
        groups += _by_towers("memory/over", "The same, over a bare interpreter", "MB", over, [])
    return groups


def _by_towers(key: str, title: str, unit: str, samples: Mapping[str, Samples], flags: list[str]) -> list[Group]:
    """Three groups, so that like is compared with like: as many towers, and bf16 with bf16."""
    half = {name: some for name, some in samples.items() if name.endswith(BF16 + ONE_TOWER)}
    one = {name: some for name, some in samples.items() if name.endswith(ONE_TOWER) and name not in half}
    both = {name: some for name, some in samples.items() if not name.endswith(ONE_TOWER)}
    return [
        results.group(key, f"{title}, both towers", unit, both, flags=flags),
        results.group(f"{key}/image", f"{title}, image tower only", unit, one, flags=flags),
        results.group(f"{key}/image/bf16", f"{title}, image tower only, bf16 on both sides", unit, half, flags=flags),
    ]


def command_line(bench: Bench) -> list[Group]:
    """What the command line and the import cost before they do anything."""
    commands = {BARE: cold.nothing(), HELP: cold.cli_help(), "import edgeclip": cold.bare_import()}
    with bench.quietly("Command line, CPU time") as flags:
        found = _processes(bench, commands)
    cpus = {name: timing.column(pairs, lambda one: one.cpu_s * 1e3) for name, pairs in found.items()}
    return [results.group("cli", "CPU time of a process", "CPU ms", cpus, differences=True, flags=flags)]


def _embedding_processes(bench: Bench) -> dict[str, list[str]]:
    made, photograph = bench.materials, bench.materials.singles[0.3][0]
    return {
        PEER: cold.peer_embedding(made.checkpoint, photograph, bench.threads),
        PEER + ONE_TOWER: cold.peer_embedding(made.checkpoint, photograph, bench.threads, image_only=True),
        PEER + BF16 + ONE_TOWER: cold.peer_embedding(
            made.checkpoint, photograph, bench.threads, image_only=True, dtype="bfloat16"
        ),
        OURS: cold.embedding(made.bundle, photograph),
        OURS + ONE_TOWER: cold.embedding(made.bundle, photograph, "image"),
        OURS + HALF: cold.embedding(made.bundle, photograph, "", "fp16"),
        OURS + HALF + ONE_TOWER: cold.embedding(made.bundle, photograph, "image", "fp16"),
        OURS + HALF + BF16 + ONE_TOWER: cold.embedding(made.bundle, photograph, "image", "fp16", "bf16"),
        OURS + INT8: cold.embedding(made.bundle, photograph, "", "w8a8"),
        OURS + INT8 + ONE_TOWER: cold.embedding(made.bundle, photograph, "image", "w8a8"),
        BARE: cold.bare(),
    }


def _processes(bench: Bench, commands: Mapping[str, list[str]]) -> dict[str, list[tuple[Child, Child]]]:
    budget = bench.budget
    return timing.interleave(commands, cold.run, budget_s=budget.seconds, min_queries=budget.processes, warmup=1)


def _engines(both: Sides) -> dict[str, str]:
    """What is missing, the peer's variants left out."""
    return {label: reason for label, reason in both.missing.items() if label != PEER_BF16}


IN_PROCESS: dict[str, Callable[[Bench, Sides], list[Group]]] = {
    "image": image,
    "text": text,
    "preprocess": preprocess,
    "file": file,
    "folder": folder,
}
WHOLE: dict[str, Callable[[Bench], list[Group]]] = {"cold": cold_start, "cli": command_line}


def goals(groups: list[Group]) -> list[Goal]:
    """What the project promises."""

    def held(name: str, bound: float, key: str, contender: str, *, at_most: bool = False) -> Goal:
        return results.goal(name, bound, results.find(groups, key), contender, at_most=at_most)

    return [
        held("12-megapixel file to embedding, f32", 3.0, "file/12", MAIN),
        held("12-megapixel file to embedding, bf16", 3.0, "file/12", sides.BF16),
        held("cold start to first embedding, both towers", 5.0, "cold/wall", OURS),
        held("cold start to first embedding, image tower only", 5.0, "cold/wall/image", OURS + ONE_TOWER),
        held("cold start, image tower only, weights stored in fp16", 5.0, "cold/wall/image", OURS + HALF + ONE_TOWER),
        held(
            "cold start, image tower only, bf16 on both sides",
            5.0,
            "cold/wall/image/bf16",
            OURS + HALF + BF16 + ONE_TOWER,
        ),
        held("folder of photographs, f32", 2.0, "folder", MAIN),
        held("CPU time of --help over bare Python", 60.0, "cli", HELP, at_most=True),
    ]


def measure(bench: Bench, parts: tuple[str, ...], found: Report) -> None:
    """Run the parts; whole processes first, while this one has no thread pools."""
    disturbances = Disturbances(bench.threads)
    for part, whole in WHOLE.items():
        if part in parts:
            _add(found, whole(bench))
    both = sides.load(bench.materials, bench.threads)
    found.config["attention"] = both.peer.attention
    bench.say("the same files and captions through both sides")
    found.agreement = sides.compare(both, [*bench.materials.photographs(), *bench.materials.folder[:8]])
    for part, inside in IN_PROCESS.items():
        if part in parts:
            _add(found, inside(bench, both))
    both.close()
    found.canary_ms.append(timing.canary() * 1e3)
    busy = any("busy" in flag for group in found.groups for flag in group.flags)
    found.flags += disturbances.flags(found.canary_ms, busy=busy)
    found.goals = goals(found.groups)


def _add(found: Report, groups: list[Group]) -> None:
    found.canary_ms.append(timing.canary() * 1e3)
    found.groups += groups


def _config(budget: Budget, threads: int, made: Materials, *, quick: bool) -> dict[str, Any]:
    return {
        "mode": "quick: not comparable" if quick else "standard",
        "threads": threads,
        "budget_s": budget.seconds,
        "min_queries": budget.queries,
        "folder_passes": budget.passes,
        "batches": BATCHES,
        "control": MAIN,
        "inputs": {"n": len(made.folder), "sha256": photographs.digest(made.folder), "mix": photographs.MIX},
        "seed": timing.SEED,
    }


@click.command()
@click.option(
    "--tokenizer", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="OpenAI's merges."
)
@click.option(
    "--budget", type=float, default=STANDARD.seconds, show_default=True, help="Seconds per contender and group."
)
@click.option("--quick", is_flag=True, help="Three seconds, a small folder; not comparable, and not written to docs/.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Only these parts.")
@click.option("--threads", type=click.IntRange(min=1), help="Of both sides; those that this process may use.")
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("build/bench"), show_default=True, help="Kept files."
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the reports; docs/reports by default.")
def main(
    tokenizer: Path,
    budget: float,
    quick: bool,
    only: tuple[str, ...],
    threads: int | None,
    work: Path,
    output: Path | None,
) -> None:
    """Measure edgeclip beside transformers with the same weights. About half an hour."""
    allowed = QUICK if quick else replace(STANDARD, seconds=budget)
    try:
        _run(tokenizer, allowed, only or PARTS, threads or available_cpus(), work, output, quick=quick)
    except EdgeClipError as exc:
        raise click.ClickException(str(exc)) from exc


def _run(
    tokenizer: Path,
    budget: Budget,
    parts: tuple[str, ...],
    threads: int,
    work: Path,
    output: Path | None,
    *,
    quick: bool,
) -> None:
    say = Progress()
    made = prepare(work, tokenizer, budget.folder, say)
    found = Report(environment.describe(threads), _config(budget, threads, made, quick=quick))
    measure(Bench(made, budget, threads, say), parts, found)
    whole = not quick and set(parts) == set(PARTS)
    folder = output or (Path("docs/reports") if whole else work / "reports")
    report.to_terminal(found, sys.stdout)
    for path in report.write(found, folder):
        say(f"written: {path}")


if __name__ == "__main__":
    main()
