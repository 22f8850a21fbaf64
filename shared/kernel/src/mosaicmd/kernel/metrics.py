"""What a run tells while it goes on: metrics as JSON lines, and progress with the time left."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from mosaicmd.kernel.files import atomic_write_bytes, explain_full_disk


class MetricLog:
    """Metrics of a run, one JSON object per line: ``{"step": 3, "loss": 0.25}``.

    Numbers keep all their digits. JSON has no NaN and no infinities: they are stored as
    the strings ``"nan"``, ``"inf"`` and ``"-inf"``, which :func:`read_metrics` turns back.
    No time stamps are added, so the file of a run that was interrupted and resumed is that
    of one that was not, if the metrics are.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._drop_torn_line()

    def append(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add the metrics of one step: numbers, texts, and arrays of numbers by name.

        Raises:
            ValueError: for a metric named ``step`` and for values that are no numbers.
            DiskFullError: if there is no room.
        """
        if "step" in metrics:
            raise ValueError("`metrics` must not hold the name `step`, which is the step itself")
        record = {"step": int(step)} | {n: _to_json(n, value) for n, value in metrics.items()}
        line = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
        with explain_full_disk(self.path, len(line)), open(self.path, "ab") as stream:
            stream.write(line)

    def truncate(self, step: int) -> None:
        """Drop all lines after ``step``: to be called when resuming from that step.

        Raises:
            ValueError: naming the line that is not one of this log.
        """
        if self.path.exists():
            lines = self.path.read_bytes().splitlines(keepends=True)
            kept = [
                line
                for number, line in enumerate(lines, start=1)
                if _parse(line, self.path, number)["step"] <= step
            ]
            if len(kept) < len(lines):
                atomic_write_bytes(self.path, b"".join(kept))

    def _drop_torn_line(self) -> None:
        """Remove the part of a line that a killed run has left at the end."""
        content = self.path.read_bytes() if self.path.exists() else b""
        if content and not content.endswith(b"\n"):
            atomic_write_bytes(self.path, content[: content.rfind(b"\n") + 1])


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a :class:`MetricLog`, with NaN and infinities as numbers again.

    Raises:
        ValueError: naming the line that is not one of this log.
    """
    lines = Path(path).read_bytes().splitlines()
    return [_parse(line, Path(path), number) for number, line in enumerate(lines, start=1)]


class Progress:
    """How far a run has come; made by :func:`progress`."""

    def __init__(self, total: int, start: int, rate: tuple[float, str]) -> None:
        self.total, self.completed = total, start
        self._start, self._began, self._rate = start, time.monotonic(), rate
        self.note = ""

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """Report ``n`` more steps, and what to show beside them."""
        self.completed += n
        self.note = self.note if note is None else note
        self.show()

    def show(self) -> None:
        """Bring the display up to date; a quiet progress has none."""

    def describe(self) -> str:
        """Steps, percentage, speed, time left and note, in one line."""
        elapsed = time.monotonic() - self._began
        done = self.completed - self._start
        parts = [f"{self.completed}/{self.total} ({100 * self.completed // max(self.total, 1)} %)"]
        if done and elapsed > 0.0:
            factor, unit = self._rate
            left = timedelta(seconds=round((self.total - self.completed) * elapsed / done))
            parts += [f"{factor * done / elapsed:.3g} {unit}", f"{left} left"]
        return ", ".join(parts + [self.note] * bool(self.note))


class _Lines(Progress):
    """A line every now and then, for logs."""

    def __init__(self, total: int, start: int, rate: tuple[float, str], name: str, every: float):
        super().__init__(total, start, rate)
        self._name, self._every, self._last = name, every, self._began

    def show(self) -> None:
        now = time.monotonic()
        if now - self._last >= self._every or self.completed == self.total:
            self._last = now
            sys.stderr.write(f"{self._name}: {self.describe()}\n")
            sys.stderr.flush()


class _Bar(Progress):
    """A bar that is redrawn in place, for terminals."""

    def __init__(self, total: int, start: int, rate: tuple[float, str], bar: Any, task: Any):
        super().__init__(total, start, rate)
        self._bar, self._task = bar, task

    def show(self) -> None:
        self._bar.update(self._task, completed=self.completed, status=self.describe())


@contextlib.contextmanager
def progress(
    total: int,
    description: str,
    *,
    start: int = 0,
    rate: tuple[float, str] = (1.0, "steps/s"),
    quiet: bool = False,
    every: float = 30.0,
) -> Iterator[Progress]:
    """Show how far a run has come, how fast it goes and when it will be done, on stderr.

    On a terminal this is a bar; elsewhere a line at most every so many seconds, and one at
    the end::

        with progress(n_steps, "NVT", rate=(86400 * timestep_ns, "ns/day")) as bar:
            for _ in range(n_chunks):
                ...
                bar.advance(chunk, f"T {temperature:.0f} K")

    Args:
        total: steps of the whole run.
        description: name of the run.
        start: steps that were done before, by a run that this one resumes.
        rate: factor and unit that the steps per second are shown in.
        quiet: show nothing.
        every: seconds between lines where there is no terminal.
    """
    if quiet:
        yield Progress(total, start, rate)
        return
    if not sys.stderr.isatty():
        yield _Lines(total, start, rate, description, every)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}")
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=start, status="")
        yield _Bar(total, start, rate, bar, task)


def _to_json(name: str, value: Any) -> Any:
    if isinstance(value, str | bool | int) or value is None:
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"metric `{name}` is {value!r}, which is no number")
    return _spell_out(array.tolist())


def _spell_out(value: Any) -> Any:
    """Lists and numbers with what JSON lacks as text."""
    if isinstance(value, list):
        return [_spell_out(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read_out(value: Any) -> Any:
    if isinstance(value, list):
        return [_read_out(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} of {path} is no JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError(f'line {number} of {path} has no "step"; is it a metric log?')
    return {name: _read_out(value) for name, value in record.items()}
