"""An operator's word on endpoints: kept, laid over each snapshot, and forgotten with what it was about."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import structlog
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from tcpgw import durable
from tcpgw.app.background import Background
from tcpgw.app.control import RefusedError
from tcpgw.app.overlay import NOTHING, Known, Override, decide, overlay
from tcpgw.config import schema
from tcpgw.config.values import MAX_WEIGHT
from tcpgw.endpoints import Endpoint, Snapshot
from tcpgw.health.verdict import State
from tcpgw.observe.totals import Figures

log = structlog.get_logger()

# Seconds without an endpoint in discovery's answers after which what was said of it is forgotten: clouds give
# addresses to other instances, and an instance that is restarted is back sooner.
ABSENT = 600.0


class _Entry(BaseModel):
    drained: bool = False
    weight: int | None = Field(default=None, ge=1, le=MAX_WEIGHT)


class _Service(BaseModel):
    shift: NonNegativeInt = 0
    endpoints: dict[str, _Entry] = {}


class _File(BaseModel):
    # Goes up when an older tcpgw would misread the file. Another number is refused, not guessed at.
    format: Literal[1] = 1
    services: dict[str, _Service]


class Overrides:
    """What operators said of the endpoints of one gateway, by service. Used in one running event loop.

    Discovery publishes here, and `put` takes what is to be in force. `states` tells the health of endpoints,
    as `Health.status`. `load` before the first snapshot; `follow` each configuration. One change at a time.

    Kept in `gateway.state_dir`, else until the process ends. The file is no condition: where it cannot be
    read or written, that is logged.
    """

    def __init__(
        self,
        put: Callable[[Snapshot], None],
        states: Callable[[], Mapping[str, Figures]],
        background: Background,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._put = put
        self._states = states
        self._background = background
        self._clock = clock
        self._path: Path | None = None
        self._services: Collection[str] = ()
        self._given: dict[str, Snapshot] = {}
        self._weights: dict[str, dict[Endpoint, int]] = {}  # of those
        self._said: dict[str, dict[Endpoint, Override]] = {}
        self._shifts: dict[str, int] = {}
        # Since when discovery leaves them out. Not kept: a gateway that was down does not know.
        self._absent: dict[tuple[str, Endpoint], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._saving = asyncio.Lock()
        self._closed = False

    async def load(self, config: schema.Config) -> None:
        """Take what was kept, and follow this configuration. A damaged file is logged, and is none."""
        self._path = _path(config)
        file = await asyncio.to_thread(_read, self._path) if self._path else None
        if file is not None:
            self._shifts = {name: one.shift for name, one in file.services.items()}
            self._said = {
                name: {Endpoint.parse(text): Override(**dict(entry)) for text, entry in one.endpoints.items()}
                for name, one in file.services.items()
            }
        restored = [f"{name} {one} {override.kind}" for name, one, override in self._all()]
        if restored:
            log.info("overrides_restored", overrides=restored)
        self.follow(config)

    def follow(self, config: schema.Config) -> None:
        """Know the services of this configuration, and no others any more, and keep it where this says."""
        self._services = {service.name for service in config.service}
        for name in self._given.keys() - self._services:
            del self._given[name], self._weights[name]
        for name in self._shifts.keys() - self._services:
            if not self._said.get(name):  # what comes under this name begins anew
                del self._shifts[name]
        before, self._path = self._path, _path(config)
        if before != self._path:
            self._save_soon()
        self._watch()

    async def publish(self, snapshot: Snapshot) -> None:
        """Take what discovery says."""
        self._given[snapshot.service] = snapshot
        self._weights[snapshot.service] = dict(snapshot.members)
        self._put(self._overlaid(snapshot.service))
        self._watch()

    def close(self) -> None:
        """Forget and keep nothing any more: another process may do so now. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def told(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What was said, by service and endpoint: `override` ("drained" or "weight") and `given_weight`.

        That is discovery's weight, None while discovery leaves the endpoint out.
        """
        told: dict[str, dict[str, dict[str, Any]]] = {}
        for service, endpoint, override in self._all():
            given = self._weights.get(service, {}).get(endpoint)
            told.setdefault(service, {})[str(endpoint)] = {"override": override.kind, "given_weight": given}
        return told

    # ---- what operators say ----

    async def drain(self, endpoint: str, service: str | None = None, force: bool = False) -> dict[str, Any]:
        """Give an endpoint nothing new, in that service or all that have it. Idempotent. Raises RefusedError.

        Returns `endpoints`, one for each service (`service`, `endpoint`, `weight`, `given_weight`,
        `override`, `changed`), and whether that is `kept` for the next process, or else `why` not.
        """
        return await self._say(
            "endpoint_drained", endpoint, service, lambda one: one._replace(drained=True), force=force
        )

    async def undrain(self, endpoint: str, service: str | None = None) -> dict[str, Any]:
        """Take `drain` back, and return as it does. Idempotent. Raises RefusedError."""
        return await self._say(
            "endpoint_undrained", endpoint, service, lambda one: one._replace(drained=False)
        )

    async def weight(
        self, endpoint: str, weight: int | str | None, service: str | None = None
    ) -> dict[str, Any]:
        """Give an endpoint another weight, or with "auto" or None discovery's back. Else as `drain`.

        A drained one has it once it is no longer drained.
        """
        if weight == "auto":
            weight = None
        if weight is not None and (type(weight) is not int or not 1 <= weight <= MAX_WEIGHT):
            raise RefusedError(
                f"weight {weight!r}: a whole number from 1 to {MAX_WEIGHT}, or auto for discovery's;"
                " `tcpgw drain` gives an endpoint nothing"
            )
        return await self._say(
            "endpoint_weight", endpoint, service, lambda one: one._replace(weight=weight), force=True
        )

    async def _say(
        self,
        event: str,
        text: str,
        service: str | None,
        change: Callable[[Override], Override],
        *,
        force: bool = False,
    ) -> dict[str, Any]:
        try:
            endpoint = Endpoint.parse(text)
        except ValueError as exc:
            raise RefusedError(str(exc)) from None
        decided = decide(self._known(), endpoint, service, change, force=force)
        changed = {name for name in decided if self._set(name, endpoint, decided[name])}
        answer = [self._described(name, endpoint) | {"changed": name in changed} for name in decided]
        for one in answer:
            if one["changed"]:
                log.info(
                    event, **{key: one[key] for key in ("service", "endpoint", "weight", "given_weight")}
                )
        self._watch()
        why = await self._save()
        return {"endpoints": answer, "kept": not why, "why": why}

    def _known(self) -> dict[str, Known]:
        health = self._states()
        return {
            name: Known(
                self._weights.get(name, {}),
                self._said.get(name, {}),
                {Endpoint.parse(one): State(state) for one, state in _states_of(health, name)},
            )
            for name in sorted(self._services)
        }

    def _described(self, service: str, endpoint: Endpoint) -> dict[str, Any]:
        override = self._said.get(service, {}).get(endpoint, NOTHING)
        given = self._weights.get(service, {}).get(endpoint)
        return {
            "service": service,
            "endpoint": str(endpoint),
            "weight": None if given is None else override.of(given),
            "given_weight": given,
            "override": override.kind,
        }

    # ---- what follows ----

    def _all(self) -> Iterator[tuple[str, Endpoint, Override]]:
        for service, said in sorted(self._said.items()):
            for endpoint, override in sorted(said.items()):
                yield service, endpoint, override

    def _overlaid(self, service: str) -> Snapshot:
        return overlay(self._given[service], self._said.get(service, {}), self._shifts.get(service, 0))

    def _set(self, service: str, endpoint: Endpoint, override: Override) -> bool:
        """Say it, and put what follows in force. Returns whether it is news."""
        said = self._said.setdefault(service, {})
        if said.get(endpoint, NOTHING) == override:
            return False
        before = self._overlaid(service).members if service in self._given else ()
        if override == NOTHING:
            del said[endpoint]
            self._absent.pop((service, endpoint), None)
        else:
            said[endpoint] = override
        if service in self._given and self._overlaid(service).members != before:
            self._shifts[service] = self._shifts.get(service, 0) + 1
            self._put(self._overlaid(service))
        return True

    def _watch(self) -> None:
        """Forget what was said of those that are absent for long, and come back when more of it is due."""
        now = self._clock()
        gone = {(service, endpoint) for service, endpoint, _ in self._all() if self._lacks(service, endpoint)}
        self._absent = {one: self._absent.get(one, now) for one in gone}
        due = [one for one, since in self._absent.items() if now - since >= ABSENT]
        for service, endpoint in due:
            override = self._said[service][endpoint]
            self._set(service, endpoint, NOTHING)
            hint = (
                f"discovery leaves it out since {ABSENT:g} s: what comes at this address is another instance"
            )
            log.warning(
                "override_forgotten",
                service=service, endpoint=str(endpoint), override=override.kind, hint=hint,
            )  # fmt: skip
        if due:
            self._save_soon()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._absent and not self._closed:
            wait = max(0.0, min(self._absent.values()) + ABSENT - now)
            self._timer = asyncio.get_running_loop().call_later(wait, self._watch)

    def _lacks(self, service: str, endpoint: Endpoint) -> bool:
        """Whether discovery is known to leave it out: before its first answer nothing is known."""
        if service not in self._services:
            return True
        return service in self._given and endpoint not in self._weights[service]

    # ---- the file ----

    def _save_soon(self) -> None:
        async def save() -> None:
            await self._save()

        self._background.start(save(), "keeping overrides")

    async def _save(self) -> str:
        """Keep it. Returns why a process that starts now does not find it, or ""."""
        async with self._saving:
            if self._path is None:
                return "gateway.state_dir is not set"
            if self._closed:
                return "it is being replaced; say it to the next one"
            said_of = {name: said for name, said in self._said.items() if said}
            services = {
                name: _Service(
                    shift=self._shifts.get(name, 0),
                    endpoints={
                        str(one): _Entry(**said._asdict()) for one, said in said_of.get(name, {}).items()
                    },
                )
                for name in sorted(self._shifts.keys() | said_of.keys())
            }
            return await asyncio.to_thread(_write, self._path, _File(services=services))


def _states_of(health: Mapping[str, Figures], service: str) -> Iterator[tuple[str, str]]:
    yield from health.get(service, {}).get("states", {}).items()


def _path(config: schema.Config) -> Path | None:
    folder = config.gateway.state_dir
    return None if folder is None else folder / "overrides.json"


def _read(path: Path) -> _File | None:
    try:
        file = _File.model_validate_json(path.read_bytes())
        for service in file.services.values():
            for endpoint in service.endpoints:
                Endpoint.parse(endpoint)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else str(error)
        hint = "what was drained gets its weight again: drain it anew"
        log.warning("overrides_ignored", path=str(path), error=why, hint=hint)
        return None
    return file


def _write(path: Path, file: _File) -> str:
    """Returns why not, or ""."""
    try:
        durable.replace(path, file.model_dump_json(indent=1).encode() + b"\n")
    except OSError as error:
        hint = "make gateway.state_dir writable; until then overrides end with this process"
        log.warning("overrides_not_saved", path=str(path), error=str(error), hint=hint)
        return f"gateway.state_dir cannot be written: {error}"
    return ""
