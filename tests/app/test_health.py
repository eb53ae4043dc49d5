"""What is told of services' health, to whom and when: with a clock and timers of the test's own."""

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from tcpgw.app import health as module
from tcpgw.app.background import Background
from tcpgw.app.health import Health
from tcpgw.app.reports import plain
from tcpgw.balancing.standing import Share
from tcpgw.config.load import loads
from tcpgw.config.schema import Config
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.health.exchange import Secure
from tcpgw.relay.outcomes import News

A, B, C = (Endpoint("10.0.0.1", port) for port in (1, 2, 3))
OUT = Share(0.0, by_key=False)
TRIAL = Share(0.1, by_key=False)
UNCHECKED = 'active = "off"'


class World:
    """Time, and what is due in it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._due: list[tuple[float, Callable[[], object], Any]] = []

    def call_later(self, delay: float, call: Callable[[], object]) -> Any:
        handle = SimpleNamespace(cancelled=False)
        handle.cancel = lambda: setattr(handle, "cancelled", True)
        self._due.append((self.now + delay, call, handle))
        return handle

    @property
    def timers(self) -> int:
        return sum(not handle.cancelled for _, _, handle in self._due)

    def pass_by(self, seconds: float) -> None:
        """Let so much time pass, and happen what is due."""
        end = self.now + seconds
        while due := [one for one in self._due if one[0] <= end and not one[2].cancelled]:
            at, call, handle = min(due, key=lambda one: one[0])
            handle.cancel()
            self.now = max(self.now, at)
            call()
        self.now = end


class Judged:
    """A Health, and what it told last of each service."""

    def __init__(self, world: World, background: Background) -> None:
        self.world = world
        self.told: list[tuple[str, Mapping[Endpoint, Share], frozenset[Endpoint]]] = []
        self.health = Health(lambda *one: self.told.append(one), background, lambda: world.now)

    @property
    def shares(self) -> Mapping[Endpoint, Share]:
        return self.told[-1][1]

    @property
    def watched(self) -> frozenset[Endpoint]:
        return self.told[-1][2]

    def follow(self, *services: str, health: str = UNCHECKED, more: str = "") -> None:
        self.health.follow(config(*services, health=health, more=more), {})

    def publish(self, *endpoints: Endpoint, service: str = "s", version: int = 1) -> None:
        members = [Member(endpoint) for endpoint in endpoints]
        self.health.publish(Snapshot.of(service, members, taken_at=0.0, version=version))

    def happened(self, endpoint: Endpoint, *news: Any, service: str = "s") -> None:
        """What a worker tells, long enough after what was told before that it is acted upon at once."""
        self.world.pass_by(module._PAUSE)
        self.tell(endpoint, *news, service=service)

    def tell(self, endpoint: Endpoint, *news: Any, service: str = "s") -> None:
        self.health.happened(plain({service: {endpoint: News(*news)}}))

    def states(self, service: str = "s") -> dict[str, str]:
        found: dict[str, str] = self.health.status()[service]["states"]
        return found


def config(*services: str, health: str = UNCHECKED, more: str = "") -> Config:
    tables = "".join(
        f"""
        [[service]]
        name = "{name}"
        discovery = {{ type = "static", endpoints = ["{A}"] }}
        health = {{ {health} }}
        {more}
        [[listener]]
        name = "{name}"
        bind = "127.0.0.1:0"
        route = "{name}"
        """
        for name in services
    )
    return loads(tables, Path())


@pytest.fixture
async def judged(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Judged]:
    world, background = World(), Background()
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(get_running_loop=lambda: world))
    made = Judged(world, background)
    yield made
    made.health.close()
    await background.close()
    assert not world.timers


def test_an_episode(judged: Judged) -> None:
    """Out with the failure that is too many, in trial by time alone, then back; each is told once."""
    judged.follow("s")
    judged.publish(A, B, C)
    for one in (A, B, C):
        judged.happened(one, 1, 0, 0)
    judged.told.clear()
    judged.happened(A, 0, 4, 4, "reset")
    assert judged.told == [("s", {}, frozenset([A]))]
    judged.happened(A, 0, 1, 5, "reset")
    assert judged.told[1:] == [("s", {A: OUT}, frozenset([A]))]
    judged.world.pass_by(29.9)
    assert judged.told[2:] == [("s", {A: OUT}, frozenset())]
    judged.world.pass_by(0.2)
    assert judged.told[3:] == [("s", {A: TRIAL}, frozenset([A]))]
    judged.happened(A, 3, 0, 0)
    assert judged.told[4:] == [("s", {}, frozenset())]
    assert judged.world.timers == 0


def test_successes_count_elsewhere_for_a_window_after_a_failure(judged: Judged) -> None:
    """From any worker: who fails in one may work in another, and that ends the streak."""
    judged.follow("s", health=f'{UNCHECKED}, passive = {{ window = "5s" }}')
    judged.publish(A, B)
    judged.happened(B, 1, 0, 0)
    judged.happened(A, 1, 1, 1, "reset")
    assert judged.watched == {A}
    judged.world.pass_by(4.0)
    judged.happened(A, 0, 1, 2, "reset")
    judged.world.pass_by(4.9)
    assert judged.watched == {A}
    judged.world.pass_by(0.2)
    assert judged.watched == set()


def test_the_unknown_are_watched_where_nobody_checks(judged: Judged) -> None:
    """Their first success makes them healthy; with checks these tell, and without any judge nobody asks."""
    judged.follow("s")
    judged.publish(A, B)
    assert judged.watched == {A, B}
    judged.happened(A, 1, 0, 0)
    assert judged.watched == {B}
    assert judged.states() == {str(A): "healthy", str(B): "unknown"}
    judged.follow("s", health='active = "off", passive = "off"')
    assert judged.watched == set()


def test_all_are_watched_for_a_rate(judged: Judged) -> None:
    """A rate is of all outcomes, so all successes are asked for, but of the ejected: these count nowhere."""
    judged.follow("s", health=f"{UNCHECKED}, passive = {{ failure_rate = 0.5, failures = 10 }}")
    judged.publish(A, B)
    judged.happened(A, 1, 0, 0)
    judged.happened(B, 1, 0, 0)
    assert judged.watched == {A, B}
    judged.happened(A, 0, 10, 10, "reset")
    assert judged.states() == {str(A): "ejected", str(B): "healthy"}
    judged.world.pass_by(10.0)
    assert judged.watched == {B}
    judged.follow("s", health='active = "off", passive = "off"')
    assert judged.watched == set()


def test_what_changes_nothing_is_not_told(judged: Judged) -> None:
    """However often endpoints succeed, and whatever is said of those that nobody knows."""
    judged.follow("s")
    judged.publish(A, B)
    judged.happened(A, 1, 0, 0)
    judged.happened(B, 1, 0, 0)
    told = len(judged.told)
    judged.happened(A, 100, 0, 0)
    judged.happened(C, 0, 9, 9, "reset")
    judged.happened(A, 0, 9, 9, "reset", service="nobody's")
    assert len(judged.told) == told
    assert judged.world.timers == 0


def test_many_findings_are_told_together(judged: Judged) -> None:
    """A few are told when they come, the others of a crowd 50 ms later, all in one."""
    many = [Endpoint("10.0.0.2", port) for port in range(1, 31)]
    judged.follow("s")
    judged.publish(*many)
    judged.world.pass_by(1.0)
    judged.told.clear()
    for one in many:
        judged.tell(one, 1, 0, 0)
    assert len(judged.told) == 8
    assert set(judged.states().values()) == {"healthy"}
    judged.world.pass_by(0.06)
    assert judged.told[8:] == [("s", {}, frozenset())]
    judged.tell(many[0], 0, 5, 5, "reset")
    assert judged.told[9:] == [("s", {many[0]: OUT}, frozenset([many[0]]))]


def test_a_snapshot_is_told_at_once(judged: Judged) -> None:
    """What was found a moment before is told with it, and not once more."""
    judged.follow("s")
    judged.publish(A, B)
    judged.tell(A, 1, 0, 0)
    told = len(judged.told)
    judged.publish(A, B, C, version=2)
    assert judged.told[told:] == [("s", {}, frozenset([B, C]))]
    assert judged.world.timers == 0


def test_other_settings_keep_what_is_known(judged: Judged) -> None:
    """A reload ends no ejection; where traffic judges no more, nothing is held against anybody."""
    judged.follow("s")
    judged.publish(A, B)
    judged.happened(A, 0, 5, 5, "reset")
    judged.follow("s", health=f"{UNCHECKED}, passive = {{ failures = 2 }}, panic = 0.1")
    assert judged.states()[str(A)] == "ejected"
    judged.publish(A, B, C, version=2)
    assert judged.shares == {A: OUT}
    judged.follow("s", health='active = "off", passive = "off"')
    assert judged.shares == {}


TLS_CA = "tls = { ca = '/ca.pem' }"
SECURE = Secure(ssl.create_default_context(), "")
TLS = "tls = { verify = false }"


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (("", ""), ("active = { type = 'tcp', rise = 5, fall = 9 }", TLS), True),
        (("", ""), ("passive = { failures = 9 }, panic = 0.1", ""), True),
        (("", ""), ("active = { type = 'tcp', interval = '9s' }", ""), False),
        (("", ""), ("active = { type = 'tls' }", ""), False),
        (("active = { type = 'tls' }", ""), ("active = { type = 'tls' }", TLS), True),
        (("active = { type = 'tls' }", ""), ("active = { type = 'tls', verify = false }", ""), False),
        (("active = { type = 'http' }", ""), ("active = { type = 'http' }", TLS), False),
        (("active = { type = 'http', port = 80 }", ""), ("active = { type = 'http', port = 80 }", TLS), True),
        (("active = { type = 'http' }", ""), ("active = { type = 'http', path = '/' }", ""), False),
        (("", ""), (UNCHECKED, ""), False),
    ],
)
async def test_checks_go_on_where_a_reload_does_not_concern_them(
    judged: Judged, before: tuple[str, str], after: tuple[str, str], *, same: bool
) -> None:
    """What judges by them, or TLS that they do not speak, begins none anew; what they are made of does."""
    judged.follow("t", "s", health=before[0], more=before[1])
    checks = judged.health._judges["s"]._checks
    assert checks is not None
    judged.follow("s", health=after[0], more=after[1])  # and it has another place
    assert (judged.health._judges["s"]._checks is checks) == same


@pytest.mark.parametrize(
    ("active", "tls", "file", "same"),
    [
        ("{ type = 'tcp' }", TLS_CA, "tls.ca", True),
        ("{ type = 'http' }", TLS_CA, "tls.ca", False),
        ("{ type = 'http', port = 80 }", TLS_CA, "tls.ca", True),
        ("{ type = 'tls', ca = '/ca.pem' }", "", "health.active.ca", False),
    ],
)
async def test_checks_begin_anew_with_files_that_they_use(
    judged: Judged, monkeypatch: pytest.MonkeyPatch, active: str, tls: str, file: str, *, same: bool
) -> None:
    """And with no others."""
    monkeypatch.setattr(module, "check_secure", lambda *_: SECURE)
    loaded = config("s", health=f"active = {active}", more=tls)
    judged.health.follow(loaded, {f"service[0].{file}": b"old"})
    checks = judged.health._judges["s"]._checks
    judged.health.follow(loaded, {f"service[0].{file}": b"old", "service[0].discovery.x": b"new"})
    assert judged.health._judges["s"]._checks is checks
    judged.health.follow(loaded, {f"service[0].{file}": b"new"})
    assert (judged.health._judges["s"]._checks is checks) == same


def test_a_service_that_comes_back_is_new(judged: Judged) -> None:
    """And it is told of anew, be it that there is nothing to say: somebody may remember the old one."""
    judged.follow("s", "t")
    judged.publish(A, B)
    judged.happened(A, 0, 5, 5, "reset")
    assert judged.shares == {A: OUT}
    judged.follow("t")
    assert judged.health.status().keys() == {"t"}
    told = len(judged.told)
    judged.publish(A, B)
    judged.follow("s", "t")
    assert judged.told[told:][-1] == ("s", {}, frozenset([A, B]))
    assert judged.states() == {str(A): "unknown", str(B): "unknown"}


def test_without_a_first_snapshot(judged: Judged) -> None:
    """A service is followed before anything is known of it, and those of the first snapshot start at once."""
    judged.follow("s", more='balance = { slow_start = "1m" }')
    assert judged.told == [("s", {}, frozenset())]
    judged.publish(A, B)
    assert judged.shares == {}
    judged.publish(A, B, C, version=2)
    assert judged.shares == {C: Share(0.1, by_key=True)}


def test_what_the_log_says(judged: Judged) -> None:
    """What failed, how often, for how long it is out; who is spared and why; when all are used, and why."""
    with capture_logs() as logs:
        judged.follow("s", health=f"{UNCHECKED}, panic = 0.6")
        judged.publish(A, B)
        judged.happened(B, 1, 0, 0)
        judged.happened(A, 0, 5, 5, "timeout")
        judged.happened(B, 0, 5, 5, "reset")
        judged.happened(B, 0, 9, 9, "reset")
        judged.world.pass_by(30.0)
        judged.happened(A, 3, 0, 0)
    said = [(one["log_level"], one["event"], one.get("endpoint"), one.get("why")) for one in logs]
    assert said == [
        ("debug", "endpoint_state", str(B), "real traffic succeeded"),
        ("warning", "endpoint_state", str(A), "5 failed in a row, the last by timeout: out for 30 s"),
        ("error", "panic", None, None),
        (
            "warning", "endpoint_spared", str(B),
            "spared in spite of 5 failed in a row, the last by reset: no other endpoint is usable",
        ),
        ("info", "endpoint_state", str(A), "its ejection is over"),
        ("info", "endpoint_state", str(A), "3 succeeded in its trial"),
        ("warning", "panic_over", None, None),
    ]  # fmt: skip
    assert [(one["usable"], one["endpoints"]) for one in logs if "panic" in one["event"]] == [(1, 2), (2, 2)]
