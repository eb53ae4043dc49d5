"""Who is told of alerts, as the configuration names them: each with a queue and a task of its own."""

import asyncio
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tcpgw.alerts import notices
from tcpgw.alerts.engine import Alert
from tcpgw.alerts.groups import Groups, Rhythm
from tcpgw.alerts.upkeep import LASTING, RESEND, Upkeep
from tcpgw.app.background import Background
from tcpgw.config import schema

if TYPE_CHECKING:
    from tcpgw.alerts.senders import Sender

# Seconds for which a webhook's message is worth another try: what is older, people have seen elsewhere. What
# an Alertmanager did not take, the next message to it says as well.
_NEWS, _UPKEEP = 900.0, 2 * RESEND

_Settings = schema.Webhook | schema.Alertmanager


@dataclass(frozen=True)
class _Heard:
    """What a look found, less what is silenced."""

    firing: list[Alert]
    resolved: list[Alert]
    left_out: Mapping[str, int]
    now: float
    wall: float


class Receivers:
    """Those of one gateway. Used in one running event loop.

    Where there are none, nothing that could send is imported.
    """

    def __init__(self, background: Background) -> None:
        self._background = background
        self._all: dict[tuple[str, str], _Webhook | _Manager] = {}
        self._labels: Mapping[str, str] = {}

    def follow(self, alerts: schema.Alerts) -> None:
        """Take these, and no others any more.

        Those that stay go on, with what they know and what waits for them. One that is changed hears again of
        what fires: it may not have been reached before, or be another.
        """
        wanted = dict(_named(alerts))
        for key in self._all.keys() - wanted.keys():
            self._all.pop(key).task.cancel()  # `Background` waits for its end
        for key, settings in wanted.items():
            receiver = self._all.get(key)
            if receiver is None:
                self._all[key] = self._begin(key, settings)
            elif receiver.settings != settings:
                receiver.settings = settings
                receiver.sender.change(*_target(key, settings), timeout=settings.timeout)
                receiver.known.remind()
        rhythm = Rhythm(alerts.group_wait, alerts.group_interval, alerts.repeat)
        for receiver in self._all.values():
            if isinstance(receiver, _Webhook):
                receiver.known.rhythm = rhythm
        self._labels = {"instance": socket.gethostname(), **alerts.labels}

    def look(
        self,
        firing: Iterable[Alert],
        resolved: Iterable[Alert],
        left_out: Mapping[str, int],
        now: float,
        wall: float,
    ) -> None:
        """Have each told what it is to be told now: `firing` without what is silenced."""
        heard = _Heard(list(firing), list(resolved), left_out, now, wall)
        for receiver in self._all.values():
            for body in receiver.bodies(heard, self._labels):
                receiver.sender.send(body)

    def status(self) -> list[dict[str, Any]]:
        """What each has been sent, and how well; of its URL only the host."""
        return [
            {
                "receiver": name,
                "url": receiver.sender.where,
                "sent": receiver.sender.sent,
                "failed": receiver.sender.failed,
                "dropped": receiver.sender.dropped,
                "waiting": receiver.sender.waiting,
                "error": receiver.sender.error,
            }
            for (name, _), receiver in self._all.items()
        ]

    async def close(self) -> None:
        """Tell nobody any more, what waits included. Idempotent."""
        receivers, self._all = self._all.values(), {}
        await asyncio.gather(*(self._background.stop(receiver.task) for receiver in receivers))

    def _begin(self, key: tuple[str, str], settings: _Settings) -> "_Webhook | _Manager":
        from tcpgw.alerts.senders import Sender  # noqa: PLC0415 - aiohttp, which takes its time

        name, _ = key
        lasting = _UPKEEP if isinstance(settings, schema.Alertmanager) else _NEWS
        sender = Sender(name, *_target(key, settings), timeout=settings.timeout, lasting=lasting)
        task = self._background.start(sender.run(), f"alerts to {name}")
        if isinstance(settings, schema.Alertmanager):
            return _Manager(settings, sender, task)
        return _Webhook(name, settings, sender, task)


def _named(alerts: schema.Alerts) -> Iterator[tuple[tuple[str, str], _Settings]]:
    """By name, and for each of a cluster's Alertmanagers by URL."""
    for name, webhook in alerts.webhook.items():
        yield (name, ""), webhook
    if alerts.alertmanager is not None:
        for url in alerts.alertmanager.urls:
            yield ("alertmanager", url), alerts.alertmanager


def _target(key: tuple[str, str], settings: _Settings) -> tuple[str, dict[str, str]]:
    """The URL, and the headers of what is sent there."""
    headers = {header: value.get_secret_value() for header, value in settings.headers.items()}
    if settings.bearer is not None:
        headers["Authorization"] = f"Bearer {settings.bearer.get_secret_value()}"
    if isinstance(settings, schema.Alertmanager):
        return f"{key[1]}/api/v2/alerts", headers
    return settings.url.get_secret_value(), headers


class _Webhook:
    """One that is told by groups."""

    def __init__(
        self, name: str, settings: schema.Webhook, sender: "Sender", task: asyncio.Task[None]
    ) -> None:
        self.name = name
        self.settings = settings
        self.sender = sender
        self.task = task
        self.known = Groups(Rhythm(0.0, 0.0, 0.0))

    def bodies(self, heard: _Heard, labels: Mapping[str, str]) -> Iterator[bytes]:
        for one in self.known.look(heard.firing, heard.resolved, heard.left_out, heard.now):
            yield notices.webhook(one, self.name, labels)


class _Manager:
    """One that groups by itself, and wants to hear again and again."""

    def __init__(self, settings: schema.Alertmanager, sender: "Sender", task: asyncio.Task[None]) -> None:
        self.settings = settings
        self.sender = sender
        self.task = task
        self.known = Upkeep()

    def bodies(self, heard: _Heard, labels: Mapping[str, str]) -> Iterator[bytes]:
        told = self.known.look(heard.firing, heard.now, heard.wall)
        yield from notices.alertmanager(told, labels, heard.wall, LASTING)
