"""What a run measured, one JSON line a step that is logged; TensorBoard too, where it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeclip.errors import ResourceError, TargetUnavailableError


class Metrics:
    """Writes `metrics.jsonl` in the run's folder. A context manager."""

    def __init__(self, folder: Path, *, first_step: int = 0, tensorboard: bool = False) -> None:
        """
        Args:
            first_step: a resumed run's; what was written of this and later steps goes.

        Raises:
            TargetUnavailableError: TensorBoard is asked for, and is not installed.
        """
        path = folder / "metrics.jsonl"
        kept = [line for line in _lines(path) if line.get("step", 0) < first_step]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = _board(folder) if tensorboard else None

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line.

        Raises:
            ResourceError: the disk is full.
        """
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as exc:
            raise ResourceError(f"{self._file.name}: cannot be written: {exc.strerror or exc}") from exc
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines; one that was torn by a crash is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as exc:
        raise TargetUnavailableError(
            "loop.tensorboard needs tensorboard, which is not installed", hint="pip install tensorboard"
        ) from exc
    return SummaryWriter(str(folder / "tensorboard"))
