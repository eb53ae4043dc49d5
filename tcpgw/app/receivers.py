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
        """Take these, and no others any more. Those that stay as they were go on, with what they know."""
        wanted = dict(_named(alerts))
        for key, receiver in list(self._all.items()):
            if wanted.get(key) != receiver.settings:
                del self._all[key]
                receiver.task.cancel()  # `Background` waits for its end
        for key, settings in wanted.items():
            if key not in self._all:
                self._all[key] = self._begin(key, settings)
        rhythm = Rhythm(alerts.group_wait, alerts.group_interval, alerts.repeat)
        for receiver in self._all.values():
            if isinstance(receiver, _Webhook):
                receiver.groups.rhythm = rhythm
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

        name, url = key
        headers = {header: value.get_secret_value() for header, value in settings.headers.items()}
        if settings.bearer is not None:
            headers["Authorization"] = f"Bearer {settings.bearer.get_secret_value()}"
        if isinstance(settings, schema.Alertmanager):
            url, lasting = f"{url}/api/v2/alerts", _UPKEEP
        else:
            url, lasting = settings.url.get_secret_value(), _NEWS
        sender = Sender(name, url, headers, timeout=settings.timeout, lasting=lasting)
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


class _Webhook:
    """One that is told by groups."""

    def __init__(
        self, name: str, settings: schema.Webhook, sender: "Sender", task: asyncio.Task[None]
    ) -> None:
        self.name = name
        self.settings = settings
        self.sender = sender
        self.task = task
        self.groups = Groups(Rhythm(0.0, 0.0, 0.0))

    def bodies(self, heard: _Heard, labels: Mapping[str, str]) -> Iterator[bytes]:
        for one in self.groups.look(heard.firing, heard.resolved, heard.left_out, heard.now):
            yield notices.webhook(one, self.name, labels)


class _Manager:
    """One that groups by itself, and wants to hear again and again."""

    def __init__(self, settings: schema.Alertmanager, sender: "Sender", task: asyncio.Task[None]) -> None:
        self.settings = settings
        self.sender = sender
        self.task = task
        self._upkeep = Upkeep()

    def bodies(self, heard: _Heard, labels: Mapping[str, str]) -> Iterator[bytes]:
        told = self._upkeep.look(heard.firing, heard.now, heard.wall)
        yield from notices.alertmanager(told, labels, heard.wall, LASTING)
