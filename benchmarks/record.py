"""The record of a run, `edgeclip.report/1`: typed structs, from which every report is drawn.

Times are milliseconds, sizes bytes or megabytes (10⁶), each by its name's end. Names neither the host nor any path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgeclip.benchmarks.report import rounded
from edgeclip.benchmarks.timing import Estimate
from edgeclip.benchmarks.verdict import Verdict
from edgeclip.errors import UsageError
from edgeclip.manifest import Sha256, Struct

SCHEMA: Literal["edgeclip.report/1"] = "edgeclip.report/1"
SCHEMA_FILE = Path(__file__).parent / "report.schema.json"
MAX_BYTES = 64 << 20

Scenario = Literal["single-stream", "multi-stream", "offline", "cold", "sustained"]
Mode = Literal["standard", "short", "quick"]
Status = Literal["ok", "below gate", "failed", "skipped"]
Count = Annotated[int, Meta(ge=0)]
Digest = Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]


class Warmup(Struct, frozen=True):
    """Calls that do not count, of all trials together."""

    seconds: float
    calls: Count
    steady: bool
    """Whether calls took equally long at the end, in every trial."""


class Stage(Struct, frozen=True):
    """How long one thing takes."""

    stage: str
    batch: Count
    n: Count
    """Timed calls."""
    mean_ms: float
    stdev_ms: float
    min_ms: float
    max_ms: float
    p50_ms: Estimate
    """Its interval is a bootstrap over rounds, and over trials where there were several."""
    p90_ms: Estimate | None
    """This and the next: None where there are too few calls; intervals between order statistics."""
    p95_ms: Estimate | None
    p99_ms: Estimate | None
    p90_early_stopping_ms: float | None
    """What p90 is at most, with 99 % confidence."""
    trial_p50_ms: tuple[float, ...]
    quantiles_ms: tuple[float, ...]
    """The 0th, 1st, … 100th percentile."""
    warmup: Warmup
    flags: tuple[str, ...] = ()


class Throughput(Struct, frozen=True):
    """How many inputs a second, in batches."""

    tower: Literal["image", "text"]
    batch: Count
    per_s: Estimate
    flags: tuple[str, ...] = ()


class Cold(Struct, frozen=True):
    """A whole process, from its start to its first embedding of an image file; files are in the page cache."""

    n: Count
    start_ms: Estimate
    cpu_ms: Estimate
    peak_rss_mb: float


class Memory(Struct, frozen=True):
    """Of the process that was timed, at batch 1."""

    base_rss_mb: float
    """Before the bundle was loaded."""
    peak_rss_mb: float
    vram_mb: float | None = None
    """Taken on the GPU by the process; None where there is none, or it does not tell."""


class Energy(Struct, frozen=True):
    """Of one image, above what the device takes when idle."""

    counter: str
    """What was read; "no counter" where there is none."""
    image_mj: float | None = None
    idle_w: float | None = None
    n: Count = 0
    """Images."""


class Moment(Struct, frozen=True):
    """A second or more of a sustained run."""

    at_s: float
    p50_ms: float
    clock_mhz: float | None = None
    celsius: float | None = None


class Sustained(Struct, frozen=True):
    """Single images one after the other, without pauses."""

    seconds: float
    n: Count
    first_ms: float
    """Median of the first tenth of the time."""
    last_ms: float
    moments: tuple[Moment, ...]
    throttled: tuple[str, ...] = ()
    """What said so."""
    flags: tuple[str, ...] = ()


class Parity(Struct, frozen=True):
    """How close the golden inputs' embeddings are to the fp32 reference, on this device."""

    passed: bool
    failures: tuple[str, ...]
    image_cosines: tuple[float, ...]
    text_cosines: tuple[float, ...]


class Accuracy(Struct, frozen=True):
    """One score of an artifact, as `edgeclip eval` measured it."""

    suite: str
    data: str
    metric: str
    value: float
    low: float
    high: float
    n: Count
    drop_pt: float | None = None
    """Percentage points below the reference."""


class Result(Struct, frozen=True):
    """One artifact on one backend."""

    label: str
    """Tells it from the others of the run."""
    bundle: str
    """Name of its bundle in this run."""
    target: str
    precision: str
    backend: str
    status: Status
    reason: str = ""
    engine: str = ""
    """With its version."""
    device: str = ""
    compute: str = ""
    size_bytes: Count = 0
    load_ms: tuple[float, ...] = ()
    """Of each trial: from the path to a model that is ready."""
    first_ms: tuple[float, ...] = ()
    """Of each trial: the first image and the first text."""
    stages: tuple[Stage, ...] = ()
    throughput: tuple[Throughput, ...] = ()
    cold: Cold | None = None
    memory: Memory | None = None
    energy: Energy | None = None
    sustained: Sustained | None = None
    parity: Parity | None = None
    accuracy: tuple[Accuracy, ...] = ()
    flags: tuple[str, ...] = ()

    def stage(self, name: str, batch: int = 1) -> Stage | None:
        """One of its stages, if it was measured."""
        return next((one for one in self.stages if (one.stage, one.batch) == (name, batch)), None)


class Control(Struct, frozen=True):
    """The first artifact against itself in a second process."""

    stage: str
    batch: Count
    ratio: Estimate
    passed: bool


class Comparison(Struct, frozen=True):
    """What two artifacts' times of the same rounds say."""

    a: str
    b: str
    stage: str
    batch: Count
    ratio: Estimate
    """Median of b by median of a: below 1 where b is faster."""
    verdict: Verdict


class Described(Struct, frozen=True):
    """A bundle."""

    name: str
    digest: Digest
    model: str
    preprocess: Sha256
    """Of how its pixels are made."""
    host: tuple[Stage, ...] = ()
    """What the host does for it, whatever the backend."""


class Inputs(Struct, frozen=True):
    """What was embedded."""

    name: str
    sha256: Digest
    """Of the files, or of the recipe of generated ones."""
    images: Count
    texts: Count


class Config(Struct, frozen=True):
    """How it was measured."""

    mode: Mode
    scenarios: tuple[Scenario, ...]
    threads: Count
    trials: Count
    seconds: float
    """For each artifact and stage, of all trials."""
    queries: Count
    """At least, for each artifact and stage."""
    margin: float
    """What is no difference within the run, as a share."""
    inputs: Inputs
    seed: int


class Power(Struct, frozen=True):
    """What decides how fast the device may run."""

    mode: str
    governor: str
    battery: bool
    celsius: float | None


class Profiled(Struct, frozen=True):
    """The device profile that the run was set up by."""

    name: str
    differs: tuple[str, ...] = ()
    """Which of the device's settings were not as the profile says, just after the run."""
    clocks_mhz: dict[str, float] = {}
    """Those that could be read, just after the run."""


class Environment(Struct, frozen=True):
    """What was measured on."""

    fingerprint: Digest
    """Of CPU, GPUs, drivers, system, engines' versions and power mode: equal ones are the same device."""
    cpu: str
    isa: tuple[str, ...]
    cores: Count
    usable_cpus: Count
    gpus: tuple[str, ...]
    memory_mb: Count
    os: str
    python: str
    container: bool
    power: Power
    packages: dict[str, str]
    variables: dict[str, str]
    """Those that change how fast numeric libraries are."""
    profile: Profiled | None = None


class Record(Struct, frozen=True):
    """The root."""

    schema: Literal["edgeclip.report/1"]
    created: str
    tool: str
    env: Environment
    config: Config
    bundles: tuple[Described, ...]
    results: tuple[Result, ...]
    controls: tuple[Control, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    canary_ms: tuple[float, ...] = ()
    """A fixed piece of work, at several times."""
    flags: tuple[str, ...] = ()

    def host_of(self, result: Result) -> tuple[Stage, ...]:
        """What the host does for an artifact."""
        return next(one.host for one in self.bundles if one.name == result.bundle)


def encode(record: Record) -> bytes:
    """Serialise; numbers to six digits. The same record gives the same bytes."""
    plain = rounded(msgspec.to_builtins(record))
    return msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n"


def read(path: Path) -> Record:
    """Read and validate a record.

    Raises:
        UsageError: there is no such file, or it is no record.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: larger than {MAX_BYTES} bytes: not a report of edgeclip bench")
        return decode(path.read_bytes())
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise UsageError(
            f"{path}: not a report of edgeclip bench: {exc}",
            hint=f"`edgeclip bench --report FILE.html` writes one, FILE.json, of the form {SCHEMA}",
        ) from exc


def decode(data: bytes) -> Record:
    """Parse and validate strictly.

    Raises:
        msgspec.DecodeError: it is not JSON, or not a record; with the place.
    """
    return msgspec.json.decode(data, type=Record)


def schema() -> bytes:
    """The JSON schema of a record, as `SCHEMA_FILE` has it."""
    found = msgspec.json.schema(Record)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA}
    return msgspec.json.format(msgspec.json.encode(head | found), indent=1) + b"\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_bytes(schema())
