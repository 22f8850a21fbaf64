"""The progress bar of a run, for those that are worth one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.errors import LiveError

from mosaicmd.kernel.integrators import Integrator
from mosaicmd.kernel.metrics import Progress, progress
from mosaicmd.kernel.units import PICOSECOND

SHORT_RUN_SECONDS = 5.0
"""A run shorter than this shows nothing unless asked to."""

_NS_PER_DAY = 86400.0 / (1000.0 * PICOSECOND)


@contextlib.contextmanager
def run_progress(
    wanted: bool | None, integrator: Integrator, step: int, end: int
) -> Iterator[Callable[[int], None]]:
    """A function to be told the step after every chunk.

    Args:
        wanted: show progress always, never, or (``None``) once the run is expected to
            take longer than :data:`SHORT_RUN_SECONDS`.
        integrator: names the run, and its time step gives the speed in ns/day.
        step: where the run begins.
        end: where it will end.
    """
    name = f"MD ({integrator.settings['integrator']})"
    rate = (integrator.timestep * _NS_PER_DAY, "ns/day")
    began, first, last = time.monotonic(), step, step
    shown: Progress | None = None
    with contextlib.ExitStack() as stack:

        def show(step: int) -> Progress:
            try:
                return stack.enter_context(progress(end, name, start=step, rate=rate))
            except LiveError:  # the terminal shows the bar of who asked for this run
                return Progress(end, step, rate)

        def advance(now: int) -> None:
            nonlocal shown, last
            expected = (time.monotonic() - began) * (end - first) / (now - first)
            if shown is not None:
                shown.advance(now - last)
            elif wanted is None and expected > SHORT_RUN_SECONDS and now < end:
                shown = show(now)
            last = now

        if wanted and step < end:
            shown = show(step)
        yield advance
