"""The way to a device file: what each artifact loses, a short look at all that qualify, a longer one at the fastest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgeclip.benchmarks import choice, suite
from edgeclip.benchmarks.choice import Choice
from edgeclip.benchmarks.contenders import Contender, Figures, Goal, Speed, expand
from edgeclip.benchmarks.inputs import Pictures
from edgeclip.benchmarks.losses import Examination, Judge, recorded
from edgeclip.benchmarks.rows import Row
from edgeclip.benchmarks.suite import Budget, Suite
from edgeclip.benchmarks.summary import Cells
from edgeclip.benchmarks.trial import DISCARD, Cell, Trial
from edgeclip.benchmarks.verdict import doubt
from edgeclip.bundle import Bundle

SCREENING = replace(suite.QUICK, seconds=0.8, queries=16, offline_s=0.4, most_warmup_s=0.6)
"""A short look at each."""
FINAL = replace(
    suite.STANDARD, trials=2, seconds=3.0, queries=64, offline_s=2.0, warmup_s=1.0, window_s=0.3, most_warmup_s=4.0,
    extensions=1, patience_s=20.0,
)  # fmt: skip
"""A longer one at those that may be the best: two fresh processes of each."""
START_S = 1.0
"""What a process needs before it is measured, as far as a guess needs it."""


@dataclass
class Pass(Suite):
    """Contenders in turns: one image, one text, and images by batch."""

    def cells(self) -> list[Cell]:
        """What is measured in turns, in its order."""
        stages = {stage for row in self.rows for stage in row.stages}
        singles: list[Cell] = [(stage, 1) for stage in ("image_encode", "text_encode") if stage in stages]
        return singles + [("image_encode", batch) for batch in self.budget.batches if batch != 1]

    def figures(self) -> dict[str, Figures]:
        """By label, of those that lived to the end."""
        found: dict[str, Figures] = {}
        for group in self.groups:
            cells = {cell: Cells(cell, group.trials) for cell in self.cells()}
            doubts = {cell: _doubt(one) for cell, one in cells.items()}
            for row in group.rows:
                if row.label not in self.failed and row.label not in found:
                    found[row.label] = self._figures(row.label, cells, doubts, group.trials)
        return found

    def _figures(
        self, label: str, cells: Mapping[Cell, Cells], doubts: Mapping[Cell, float | None], trials: Sequence[Trial]
    ) -> Figures:
        def latency(stage: str) -> Speed:
            return Speed(cells[stage, 1].median_ms(label), doubts[stage, 1])

        def rate(batch: int) -> Speed:
            cell = "image_encode", batch
            return Speed(cells[cell].throughput(label, "image").per_s, doubts[cell])

        return Figures(
            image_ms=latency("image_encode"),
            text_ms=latency("text_encode") if ("text_encode", 1) in cells else None,
            images_per_s={batch: rate(batch) for batch in self.budget.batches},
            load_ms=min(trial.loaded[label].load_ms for trial in trials),
            peak_rss_mb=max(trial.peak_rss_mb[label] for trial in trials),
        )


@dataclass
class Tuning:
    """One search for the best contender.

    Args:
        rows: what is tuned among, of one bundle.
        references: what losses are measured against, the most precise first.
        judge: data that they are measured on; None takes what the manifest says.
    """

    bundle: Bundle
    rows: Sequence[Row]
    references: Sequence[Row]
    threads: Sequence[int]
    batches: Sequence[int]
    budget_pt: float
    goal: Goal
    pictures: Pictures | None = None
    """None of a search that is only planned."""
    judge: Judge | None = None
    quick: bool = False
    say: Callable[[str], None] = lambda text: None
    commands: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What makes the process of a label, where that is not the usual one."""
    contenders: list[Contender] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    best: Choice | None = None

    def planned(self, *, with_data: bool) -> list[Contender]:
        """What would be measured, and what is known of it before.

        Args:
            with_data: losses would be measured.
        """
        found: list[Contender] = []
        for row in self.rows:
            if row.missing:
                found.append(self._skipped(row))
            elif with_data:
                found += [one.marked("kept", "its loss is to be measured") for one in expand(row, self.threads)]
            else:
                found += [self._judged(replace(one, loss=recorded(row))) for one in expand(row, self.threads)]
        return found

    def planned_s(self, contenders: Sequence[Contender]) -> float:
        """The least time that measuring them would take."""
        kept = [one for one in contenders if one.state == "kept"]
        return expected_s(kept, self._with_batches(SCREENING)) + (
            0 if self.quick else expected_s(kept[:1], self._with_batches(FINAL))
        )

    def run(self) -> None:
        """Everything. A contender that fails keeps its reason, and the others go on."""
        self._examine()
        qualified = [one for one in self.contenders if one.state == "kept"]
        if not qualified:
            return
        self._time(qualified, SCREENING)
        while self.best is None and (finalists := self._finalists()):
            if not self.quick:
                self._time(finalists, FINAL)
            self._conclude([one for one in self.contenders if one.label in {each.label for each in finalists}])

    def _examine(self) -> None:
        assert self.pictures is not None
        able = [row for row in self.rows if not row.missing]
        examination = Examination(
            self.pictures.paths, max(self.threads), self.judge, self.references, self.say, self.commands
        )
        known = examination.of(able)
        for row in self.rows:
            if row.missing:
                self.contenders.append(self._skipped(row))
                continue
            examined = known[row.label]
            if examined.error is not None:
                self.contenders.append(Contender(row, max(self.threads), "failed", examined.error.message))
                continue
            for one in expand(row, self.threads):
                self.contenders.append(self._judged(replace(one, loss=examined.loss), examined.broken))

    def _skipped(self, row: Row) -> Contender:
        """What cannot run here; to have asked for it by name makes that a failure."""
        return Contender(row, max(self.threads), "failed" if row.wanted else "skipped", row.missing)

    def _judged(self, one: Contender, broken: Sequence[str] = ()) -> Contender:
        if broken:
            return one.marked("below gate", "; ".join(broken))
        if one.loss is None:
            return one.marked("not known", self._unknown(one.row))
        if one.loss.bound_pt > self.budget_pt:
            return one.marked("over budget", f"may lose {one.loss.bound_pt:.2f} points, allowed {self.budget_pt:g}")
        return one

    def _unknown(self, row: Row) -> str:
        if self.judge is not None:
            return "nothing in floating point runs here to measure it against"
        return f"nobody measured what {row.precision} loses: name data with --eval"

    def _time(self, contenders: Sequence[Contender], budget: Budget) -> None:
        """One pass; its figures take the place of what was known."""
        assert self.pictures is not None
        budget = self._with_batches(budget)
        title = "screening" if budget.mode == "quick" else "finalists"
        about = f"{title}: {len(contenders)}, about {expected_s(contenders, budget):.0f} s"
        run = Pass(
            bundles={"": self.bundle},
            rows=[one.row for one in contenders],
            scenarios=(),
            budget=budget,
            pictures=self.pictures,
            threads=max(self.threads),
            say=lambda text: self.say(f"{about}; {text}"),
            commands=self.commands,
        )
        run.run()
        self.flags = list(dict.fromkeys([*self.flags, *run.flags]))
        figures = run.figures()
        self.contenders = [self._timed(one, run, figures, budget) for one in self.contenders]

    def _timed(self, one: Contender, run: Pass, figures: Mapping[str, Figures], budget: Budget) -> Contender:
        if one.label in run.failed:
            return one.marked("failed", run.failed[one.label].message)
        found = figures.get(one.label)
        return replace(one, figures=found, is_final=budget.mode == "standard") if found else one

    def _finalists(self) -> list[Contender]:
        alive = [one for one in self.contenders if one.state == "kept"]
        return choice.finalists(alive, self.goal) if alive else []

    def _conclude(self, finalists: Sequence[Contender]) -> None:
        """Choose among those that are left, if any is; what failed is no finalist again."""
        alive = [one for one in finalists if one.state == "kept"]
        if not alive:
            return
        self.best = choice.choose(alive, self.goal)
        kept = [one for one in self.contenders if one.state == "kept"]
        self.contenders = [self._placed(one, kept) if one in kept else one for one in self.contenders]

    def _placed(self, one: Contender, kept: Sequence[Contender]) -> Contender:
        assert self.best is not None
        if one.label == self.best.contender.label:
            return one.marked("chosen", self.best.rule)
        better = choice.dominating(one, kept)
        return one.marked("dominated", f"{better.label} is nowhere worse") if better else one

    def _with_batches(self, budget: Budget) -> Budget:
        return replace(budget, batches=tuple(self.batches))


def _doubt(cells: Cells) -> float | None:
    """How large a difference says nothing; None where two processes of one artifact certainly differ."""
    control = cells.control()
    return doubt(control.ratio, cells.margin) if control and control.passed else None


def expected_s(contenders: Sequence[Contender], budget: Budget) -> float:
    """About how long a pass takes; of what was never timed, the least."""
    each = [_calls_s(one, budget) for one in contenders]
    return sum(each) + max(each, default=0.0)  # the control


def _calls_s(one: Contender, budget: Budget) -> float:
    found = budget.trials * START_S
    for stage, batch in [("image", 1), ("text", 1), *(("image", n) for n in budget.batches if n != 1)]:
        pace = budget.pace(budget.seconds if batch == 1 else budget.offline_s)
        call = _call_s(one, stage, batch)
        found += budget.trials * (max(pace.warmup_s, 2 * call) + max(pace.seconds, pace.turns * (DISCARD + 1) * call))
    return found


def _call_s(one: Contender, stage: str, batch: int) -> float:
    """What one call took; 0 where it was never timed."""
    if one.figures is None:
        return 0.0
    if batch > 1:
        return batch / one.figures.images_per_s[batch].of.value
    found = one.figures.text_ms if stage == "text" else one.figures.image_ms
    return found.of.value / 1e3 if found else 0.0
