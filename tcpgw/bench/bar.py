"""The progress bar, on a terminal."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tcpgw.bench.plan import Plan


class Bar:
    """A progress bar over all runs, on stderr so that the table alone can be kept. Off: nothing is shown."""

    def __init__(self, plan: Plan, runs: int, *, on: bool) -> None:
        self._each = plan.warm_up + plan.duration
        self._done = 0
        self._began = 0.0
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=Console(stderr=True, highlight=False),
            auto_refresh=False,  # no thread: the generator's processes report five times a second
            transient=True,
            disable=not on,
        )
        self._task = self._progress.add_task("", total=runs * self._each, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def run(self, what: str) -> None:
        """A run begins."""
        self._began = time.monotonic()
        self._progress.update(self._task, description=what, figures="", refresh=True)

    def show(self, answers: int, failed: int) -> None:
        """So much was answered and failed in this run."""
        if not answers + failed:  # it has just begun: until now its processes started
            self._began = time.monotonic()
        passed = time.monotonic() - self._began
        self._progress.update(
            self._task,
            completed=self._done * self._each + min(passed, self._each),
            figures=f"{answers / max(passed, 0.001):,.0f}/s" + (f", {failed:,} failed" if failed else ""),
            refresh=True,
        )

    def ran(self) -> None:
        """The run is over."""
        self._done += 1
        self._progress.update(self._task, completed=self._done * self._each, refresh=True)
