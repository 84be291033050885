"""The suite: artifacts, scenarios and trials, in their order. `findings` makes the record of what it has found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgeclip.benchmarks import cold, energy, environment, timing
from edgeclip.benchmarks.cold import Child
from edgeclip.benchmarks.conditions import Device
from edgeclip.benchmarks.energy import Counter
from edgeclip.benchmarks.inputs import Pictures
from edgeclip.benchmarks.quiet import Disturbances, quietly
from edgeclip.benchmarks.record import Energy, Mode, Scenario, Sustained
from edgeclip.benchmarks.rows import Row
from edgeclip.benchmarks.stages import ENCODE, HOST
from edgeclip.benchmarks.sustained import image_energy, sustain
from edgeclip.benchmarks.trial import Cell, Pace, Trial
from edgeclip.benchmarks.verdict import TRIALS, margin_of
from edgeclip.benchmarks.workers import COMMAND, Worker
from edgeclip.bundle import Bundle
from edgeclip.errors import EdgeClipError
from edgeclip.profiles import Profile

Say = Callable[[str], None]
FREE_SHARE = 0.7
"""Of the free memory, that processes may take."""
PROCESS_MB = 250
BY_SIZE = 3
"""A process takes so much, and its files so often: engines keep what they were given beside what they make of it."""
MULTI_STREAM: list[Cell] = [("e2e_image", 8), ("image_encode", 8)]
"""A query of a multi-stream has eight images, as in MLPerf."""


@dataclass(frozen=True)
class Budget:
    """How long a run may take."""

    mode: Mode
    trials: int
    seconds: float
    """For each artifact and stage, of all trials; this and the next, with `extensions`, as in `trial.Pace`."""
    queries: int
    host_s: float
    offline_s: float
    batches: tuple[int, ...]
    processes: int
    sustained_s: float
    energy_s: float
    warmup_s: float
    window_s: float
    most_warmup_s: float
    extensions: int
    patience_s: float
    """How long each trial waits for other processes to end."""

    def shortened(self, seconds: float) -> Budget:
        """The same in another time for each artifact and stage, and in three trials where that is less."""
        if seconds >= self.seconds:
            return replace(self, seconds=seconds)
        share = seconds / self.seconds
        return replace(
            self,
            mode="short",
            trials=TRIALS,
            seconds=seconds,
            queries=round(share * self.queries),
            extensions=0,
            host_s=share * self.host_s,
            offline_s=share * self.offline_s,
            warmup_s=share * self.warmup_s,
            window_s=share * self.window_s,
        )

    def pace(self, seconds: float) -> Pace:
        """Of one trial, where all of them take so long."""
        turns = max(2, self.queries // self.trials // 8)
        return Pace(
            seconds / self.trials,
            turns,
            self.warmup_s,
            self.window_s,
            self.most_warmup_s,
            self.extensions,
            margin_of(self.trials),
        )


STANDARD = Budget(
    mode="standard",
    trials=5,
    seconds=60.0,
    queries=1024,
    host_s=10.0,
    offline_s=20.0,
    batches=(8, 32),
    processes=10,
    sustained_s=600.0,
    energy_s=10.0,
    warmup_s=3.0,
    window_s=1.0,
    most_warmup_s=30.0,
    extensions=2,
    patience_s=60.0,
)
QUICK = Budget(
    mode="quick",
    trials=1,
    seconds=1.2,
    queries=32,
    host_s=0.4,
    offline_s=0.5,
    batches=(8, 32),
    processes=2,
    sustained_s=5.0,
    energy_s=1.0,
    warmup_s=0.2,
    window_s=0.1,
    most_warmup_s=1.0,
    extensions=0,
    patience_s=0.0,
)


@dataclass
class Group:
    """Artifacts whose processes fit into memory together; the first is in every group, to compare the others with."""

    rows: list[Row]
    trials: list[Trial] = field(default_factory=list)
    host: dict[str, str] = field(default_factory=dict)
    """Bundle -> the label whose process does the host's part; each bundle is in one group alone."""


@dataclass
class Suite:
    """One run.

    Args:
        bundles: by name.
        rows: of all bundles.
        commands: what makes the process of a label, where that is not the usual one.
    """

    bundles: Mapping[str, Bundle]
    rows: Sequence[Row]
    scenarios: Sequence[Scenario]
    budget: Budget
    pictures: Pictures
    threads: int
    say: Say = lambda text: None
    seed: int = 0
    commands: Mapping[str, Sequence[str]] = field(default_factory=dict)
    memory_mb: float | None = None
    """For all processes together; None is what is free."""
    profile: Profile | None = None
    """Of the device, which the record names."""
    groups: list[Group] = field(default_factory=list)
    failed: dict[str, EdgeClipError] = field(default_factory=dict)
    canary_ms: list[float] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    starts: dict[str, list[Child]] = field(default_factory=dict)
    sustained: dict[str, Sustained] = field(default_factory=dict)
    energy: dict[str, Energy] = field(default_factory=dict)

    def run(self) -> None:
        """Everything. An artifact that fails is left out of what follows."""
        disturbances = Disturbances(self.threads)
        memory = self.memory_mb if self.memory_mb is not None else FREE_SHARE * environment.free_mb()
        self.groups = grouped(self._alive(), memory) if self.cells() else []
        for number in range(self.budget.trials):
            for group in self.groups:
                self._trial(group, number)
        if "cold" in self.scenarios:
            self._cold()
        self._by_themselves()
        self._canary()
        busy = any(flag.startswith("busy") for flag in self.flags)
        self.flags = disturbances.flags(self.canary_ms, busy=busy)

    def cells(self) -> list[Cell]:
        """What is measured in turns, in its order."""
        found: list[Cell] = []
        if "single-stream" in self.scenarios:
            found += [(stage, 1) for stage in ENCODE]
        if "multi-stream" in self.scenarios:
            found += MULTI_STREAM
        if "offline" in self.scenarios:
            found += [(stage, batch) for stage in ("image_encode", "text_encode") for batch in self.budget.batches]
        return list(dict.fromkeys(found))

    def _alive(self) -> list[Row]:
        return [row for row in self.rows if not row.missing and row.label not in self.failed]

    def _images(self) -> list[Row]:
        return [row for row in self._alive() if "image_encode" in row.stages]

    def _trial(self, group: Group, number: int) -> None:
        trial = Trial(self.pictures.paths, self.threads)
        group.trials.append(trial)
        title = f"trial {number + 1} of {self.budget.trials}"
        rows = [row for row in group.rows if row.label not in self.failed]
        with quietly(f"{title}: loading", self.budget.patience_s, self.say) as flags:
            self._canary()
            with trial.open(rows, self.seed + number, self.commands):
                if number == 0:
                    trial.parity = trial.each(Worker.parity)
                    done = {name for one in self.groups for name in one.host}
                    able = [row for row in reversed(rows) if row.label in trial.workers and row.bundle not in done]
                    group.host = {row.bundle: row.label for row in able}
                self._measure(group, trial, title)
                self._canary()
        self.flags += flags
        self.failed |= trial.failed

    def _measure(self, group: Group, trial: Trial, title: str) -> None:
        """Single queries first: what a process holds at most is read after them, before it meets large batches."""
        for cell in self.cells():
            if cell[1] > 1 and not trial.peak_rss_mb:
                trial.peak_rss_mb = trial.each(Worker.peak_rss_mb)
            self.say(f"{title}: {cell[0].replace('_', ' ')}, batch {cell[1]}")
            trial.measure(cell, self.budget.pace(self._seconds(cell)))
        trial.peak_rss_mb = trial.peak_rss_mb or trial.each(Worker.peak_rss_mb)
        if "single-stream" in self.scenarios and group.host:
            self.say(f"{title}: the host's part")
            for stage in HOST:
                able = [
                    row.label for row in group.rows if row.label in group.host.values() and stage in row.host_stages
                ]
                trial.measure((stage, 1), self.budget.pace(self.budget.host_s), only=able)

    def _seconds(self, cell: Cell) -> float:
        return self.budget.seconds if self.is_latency(cell) else self.budget.offline_s

    def is_latency(self, cell: Cell) -> bool:
        """Whether its latencies count, and not its throughput alone."""
        return cell[1] == 1 or ("multi-stream" in self.scenarios and cell in MULTI_STREAM)

    def _cold(self) -> None:
        """Whole processes in turns, from their start to a first embedding."""
        commands = {
            row.label: cold.embedding(
                row.path, self.pictures.paths[0], row.tower or "", row.precision, backend=row.backend
            )
            for row in self._images()
            if row.reference is None
        }

        def observe(label: str) -> Child | None:
            if label in self.failed:
                return None
            self.say(f"cold start: {label}")
            try:
                return cold.run(commands[label])
            except EdgeClipError as exc:
                self.failed[label] = exc
                return None

        with quietly("cold start", self.budget.patience_s, self.say) as flags:
            found = timing.interleave(
                {label: label for label in commands},
                observe,
                budget_s=0,
                min_queries=self.budget.processes,
                warmup=1,
            )
        self.flags += flags
        self.starts = {
            label: [child for pair in pairs for child in pair if child]
            for label, pairs in found.items()
            if label not in self.failed
        }

    def _by_themselves(self) -> None:
        """One process after the other, with the device to itself."""
        with energy.counter() as counter:
            for row in self._images() if self._needs_more(counter) else ():
                worker = Worker(row, self.commands.get(row.label, COMMAND))
                self.say(f"{row.label} by itself")
                try:
                    worker.load(self.pictures.paths, self.threads)
                    if "sustained" in self.scenarios:
                        self.sustained[row.label] = sustain(worker, Device(), self.budget.sustained_s)
                    self.energy[row.label] = image_energy(worker, counter, self.budget.energy_s)
                except EdgeClipError as exc:
                    self.failed[row.label] = exc
                finally:
                    worker.close()

    def _needs_more(self, counter: Counter | None) -> bool:
        return "sustained" in self.scenarios or (counter is not None and "single-stream" in self.scenarios)

    def _canary(self) -> None:
        self.canary_ms.append(timing.canary() * 1e3)


def grouped(rows: Sequence[Row], memory_mb: float) -> list[Group]:
    """All rows in one group where the memory is enough, and a second process of the first; else as few as it takes."""
    groups: list[Group] = []
    for row in rows:
        needed = sum(map(_needs_mb, [rows[0], *groups[-1].rows, row])) if groups else 0.0
        if not groups or (needed > memory_mb and len(groups[-1].rows) > 1):
            groups.append(Group([rows[0]] if groups else []))
        groups[-1].rows.append(row)
    return groups


def _needs_mb(row: Row) -> float:
    return PROCESS_MB + BY_SIZE * row.size_bytes / 1e6
