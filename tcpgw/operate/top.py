"""`tcpgw top`: a screen of what a running gateway does now."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from tcpgw import terminal
from tcpgw.operate.ask import AskError, ConfigFile, ask, call
from tcpgw.operate.figures import age
from tcpgw.operate.frame import ORDERS, Frame, Looks, frame
from tcpgw.operate.keys import Key
from tcpgw.operate.keys import terminal as keyboard

_HELP = "q quit · ↑↓ PgUp PgDn scroll · s sorted by: {}"
# Characters of a line where nobody looks: enough for all columns with common names.
_WIDTH = 160
# Seconds that a gateway has to answer: it has the view at hand, and meanwhile no key is looked at.
_PATIENCE = 2.0


def top(
    config: ConfigFile,
    *,
    once: Annotated[
        bool, typer.Option("--once", help="Print it once, whole and as plain text, and end.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds from one look to the next.")] = 1.0,
) -> None:
    """Watch the running gateway: services, endpoints, listeners, workers and alerts, each second.

    Rates and percentiles are of the last 10 s. Who is sick comes first. Where the terminal is narrow, the
    less important columns are left out; where it is low, endpoints scroll.

    Keys: q or Ctrl-C quits; arrows, j and k, PgUp and PgDn, Home and End scroll; s sorts endpoints otherwise.

    A gateway that restarts or is upgraded is waited for. Colours are left out where NO_COLOR is set.
    """
    if once:
        view = ask(config, "view")
        out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDTH)
        out.print(frame(view, Looks(out.width)).content)
        return
    screen = Console(highlight=False, markup=False)
    if not sys.stdin.isatty() or not screen.is_terminal or screen.is_dumb_terminal:
        raise terminal.end(2, "this is no terminal that top could use: --once prints what it shows")
    watch = _Watch(config, screen, interval, ask(config, "view"))
    with keyboard(sys.stdin.fileno()) as keys:
        try:
            with Live(console=screen, screen=True, auto_refresh=False) as live:
                while not keys.ended and not watch.over:
                    live.update(watch.drawn(), refresh=True)
                    for key in keys.wait(watch.left()):
                        watch.press(key)
                    watch.look()
        except OSError:  # the terminal is gone
            if not keys.ended:
                raise


class _Watch:
    """The view in force, and where the operator looks."""

    def __init__(self, config: Path, screen: Console, interval: float, view: dict[str, Any]) -> None:
        self.over = False
        self._config = config
        self._screen = screen
        self._interval = interval
        self._view = view
        self._answered = time.time()
        self._why = ""
        self._due = time.monotonic() + interval
        self._orders = list(ORDERS)
        self._scroll = 0
        self._page = 1

    def left(self) -> float:
        """Seconds until the next look."""
        return self._due - time.monotonic()

    def look(self) -> None:
        """Ask again, if it is time to."""
        if self.over or self.left() > 0:
            return
        try:
            self._view = call(self._config, "view", timeout=_PATIENCE)
            self._answered, self._why = time.time(), ""
        except AskError as exc:
            self._why = str(exc)
        self._due = time.monotonic() + self._interval

    def press(self, key: Key) -> None:
        match key:
            case Key.QUIT:
                self.over = True
            case Key.SORT:
                self._orders.append(self._orders.pop(0))
                self._scroll = 0
            case Key.FIRST:
                self._scroll = 0
            case Key.LAST:
                self._scroll = sum(len(service["endpoints"]) for service in self._view["services"])
            case _:
                steps = {Key.UP: -1, Key.DOWN: 1, Key.PAGE_UP: -self._page, Key.PAGE_DOWN: self._page}
                self._scroll = max(0, self._scroll + steps[key])

    def drawn(self) -> Any:
        order = self._orders[0]
        width, height = self._screen.size
        looks = Looks(width, height, order, self._scroll, self._stale(), _HELP.format(order))
        made: Frame = frame(self._view, looks)
        self._scroll, self._page = made.scroll, max(1, made.page)
        return made.content

    def _stale(self) -> str:
        if not self._why:
            return ""
        since = time.strftime("%H:%M:%S", time.localtime(self._answered))
        return f"no answer since {since} ({age(time.time() - self._answered)}), trying on: {self._why}"
