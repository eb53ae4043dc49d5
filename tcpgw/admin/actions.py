"""What operators do by hand: bodies of requests in, calls of the source out."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints, ValidationError

from tcpgw.admin.source import Source
from tcpgw.config.values import MAX_WEIGHT, EndpointAddress
from tcpgw.errors import TcpgwError

# Characters: more than any name here may have, and little enough to be kept.
_Word = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class BadRequestError(TcpgwError):
    """A request that cannot be read; its text says what to send instead."""

    blame = "client"


class Nothing(BaseModel):
    """No body, or an empty object."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Which(Nothing):
    """An endpoint."""

    endpoint: EndpointAddress
    service: _Word | None = None


class Weight(Which):
    """An endpoint and its weight, None for discovery's."""

    weight: StrictInt | None = Field(ge=1, le=MAX_WEIGHT)


class Alert(Nothing):
    """One alert, of those with its name the one with these labels."""

    alert: str
    labels: dict[str, str] = {}


class Silence(Alert):
    """One alert, and how long it shall send no notices. What there may be, the source knows."""

    seconds: float
    comment: str = ""


async def _drain(source: Source, body: Which) -> Any:
    return await source.drain(str(body.endpoint), body.service)


async def _undrain(source: Source, body: Which) -> Any:
    return await source.undrain(str(body.endpoint), body.service)


async def _weight(source: Source, body: Weight) -> Any:
    return await source.weight(str(body.endpoint), body.weight, body.service)


async def _silence(source: Source, body: Silence) -> Any:
    return await source.silence(body.alert, body.labels, body.seconds, body.comment)


async def _unsilence(source: Source, body: Alert) -> Any:
    return await source.unsilence(body.alert, body.labels)


async def _reload(source: Source, _: Nothing) -> Any:
    return await source.reload()


ACTIONS: Mapping[str, tuple[type[Nothing], Callable[[Source, Any], Awaitable[Any]]]] = {
    "drain": (Which, _drain),
    "undrain": (Which, _undrain),
    "weight": (Weight, _weight),
    "silence": (Silence, _silence),
    "unsilence": (Alert, _unsilence),
    "reload": (Nothing, _reload),
}
"""What each takes, and what becomes of it."""


def read(kind: type[Nothing], body: bytes) -> Any:
    """Return a body as an object of that kind. Raises BadRequestError."""
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as error:
        faults = "; ".join(_fault(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()[:5])
        known = ", ".join(kind.model_fields) or "nothing"
        # Not chained: what was sent may be a secret in the wrong place.
        raise BadRequestError(f"{faults}; the body is JSON with {known}") from None


def _fault(where: str, message: str) -> str:
    return f"{where}: {message}" if where else message
