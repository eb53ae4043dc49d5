"""What an operator said of endpoints, laid over what discovery says of them: pure.

Of an endpoint in a service the operator may say that it is drained, or that it has another weight, or both:
one that is no longer drained has the weight back that was given to it last.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from tcpgw.app.control import RefusedError
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.health.verdict import State, may_be_given


class Override(NamedTuple):
    """`weight` None: discovery's. One that says neither is none."""

    drained: bool = False
    weight: int | None = None

    @property
    def kind(self) -> str | None:
        """What operators are shown: "drained", "weight", or None."""
        return "drained" if self.drained else "weight" if self.weight is not None else None

    def of(self, given: int) -> int:
        """The weight of an endpoint to which discovery gives `given`."""
        if self.drained:
            return 0
        return given if self.weight is None else self.weight


NOTHING = Override()
Said = Mapping[Endpoint, Override]


def overlay(given: Snapshot, said: Said, shift: int) -> Snapshot:
    """Return the snapshot that is to be in force: discovery's own where nothing was ever said.

    `shift` is how often what was said has changed the service's members: with it versions go on growing,
    whichever of the two changes.
    """
    if not shift and not said:
        return given
    members = tuple(Member(one, said.get(one, NOTHING).of(weight)) for one, weight in given.members)
    return replace(given, version=given.version + shift, members=members)


@dataclass(frozen=True)
class Known:
    """What is known of a service: discovery's weights, what was said, and its endpoints' health."""

    given: Mapping[Endpoint, int]
    said: Said
    states: Mapping[Endpoint, State]

    def weight(self, endpoint: Endpoint) -> int:
        return self.said.get(endpoint, NOTHING).of(self.given.get(endpoint, 0))

    def usable(self, endpoint: Endpoint) -> bool:
        """Whether it may be given something, as far as is known."""
        return may_be_given(self.weight(endpoint), self.states.get(endpoint))


def decide(
    services: Mapping[str, Known],
    endpoint: Endpoint,
    service: str | None,
    change: Callable[[Override], Override],
    *,
    force: bool = False,
) -> dict[str, Override]:
    """Return what is to be said of an endpoint from now on, in that service or all that have it.

    Raises RefusedError where nobody has it, and where a service would be left without a usable endpoint,
    unless `force`.
    """
    names = _named(services, endpoint, service)
    said = {name: change(services[name].said.get(endpoint, NOTHING)) for name in names}
    for name, override in said.items():
        known = services[name]
        drains = known.weight(endpoint) and not override.of(known.given.get(endpoint, 0))
        if drains and not force and not any(known.usable(one) for one in known.given if one != endpoint):
            raise RefusedError(_last(name, endpoint, known))
    return said


def _named(services: Mapping[str, Known], endpoint: Endpoint, service: str | None) -> list[str]:
    if service is not None and service not in services:
        raise RefusedError(f"no service is called {service!r}: there are {', '.join(sorted(services))}")
    names = [
        name
        for name, known in services.items()
        if service in (None, name) and (endpoint in known.given or endpoint in known.said)
    ]
    if not names:
        who = "no service has" if service is None else f"service {service} does not have"
        raise RefusedError(f"{who} an endpoint {endpoint}: `tcpgw status` lists what there is")
    return names


def _last(service: str, endpoint: Endpoint, known: Known) -> str:
    others = [
        f"{one} {'weight 0' if not known.weight(one) else known.states[one].value}"
        for one in sorted(known.given)
        if one != endpoint
    ]
    rest = f" (others: {', '.join(others[:5])}{', …' if others[5:] else ''})" if others else ""
    if known.usable(endpoint):
        what = (
            f"{endpoint} is the last usable endpoint of service {service}{rest}:"
            " its clients would be turned away"
        )
    else:
        state = known.states[endpoint].value
        what = (
            f"{endpoint} is {state}, and no other endpoint of service {service} is usable{rest}:"
            " it is one of those that are tried in a panic"
        )
    # A command of its own: over HTTP and on the page there is no way to insist.
    return f"{what}. `tcpgw drain --force` drains it all the same"
