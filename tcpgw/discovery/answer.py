"""Finding the instances in ModelArts' answer. Pure.

The published documentation shows the answer of `host_endpoints` only as a picture, so its form is not
certain, and this reader does not depend on it. It looks at every collection in the document:

- a list of objects with an address and a port, or of texts such as `10.0.0.1:8080` or `http://10.0.0.1:8080`;
- an object whose values are such objects (instances by name, or one instance alone).

Lists that stand at the same place of sibling objects (`nodes[*].host_endpoints`) count as one. Where
several collections hold endpoints, the best name wins (`host_endpoints`, then any name with `endpoint` in
it), then the most endpoints, then the first in the document; what was passed over is complained of. An
empty list that the same rules would choose is an empty answer, not an error: a service may have no instance.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jmespath
from jmespath.exceptions import JMESPathError

from tcpgw.config.values import MAX_WEIGHT
from tcpgw.discovery.redaction import excerpt, scrub
from tcpgw.endpoints import Endpoint, Member
from tcpgw.errors import AnswerError

Networks = Sequence[IPv4Network | IPv6Network]

# Names without case, `_` and `-`, the most telling first.
_ADDRESSES = ("ip", "hostip", "ipaddress", "host", "address", "addr", "endpoint", "url")
_PORTS = ("port", "hostport", "nodeport")
_ERRORS = ("errorcode", "errormsg", "error")
_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
# Far deeper than any answer, and it bounds the paths that are kept.
_MAX_DEPTH = 32
_MAX_COMPLAINTS = 5
# Beside its own errors the package lets those of its functions through, such as max_by over mixed types.
_JMESPATH_ERRORS = (
    JMESPathError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RecursionError,
)

_Path = tuple[str, ...]


class Answer(NamedTuple):
    """`members` in the document's order, and for the operator what could not be taken, and why."""

    members: tuple[Member, ...]
    complaints: tuple[str, ...] = ()


@dataclass(slots=True)
class _Collection:
    """The entries at one place of the document."""

    path: _Path
    name: str
    size: int = 0
    members: list[Member] = field(default_factory=list)
    outside: list[Endpoint] = field(default_factory=list)
    unread: list[tuple[str, str, Any]] = field(default_factory=list)  # index, reason, entry of the first few
    near: int = 0  # entries with an address that is of no use: surely meant as instances

    @property
    def rank(self) -> tuple[int, int, int]:
        name = _plain(self.name)
        named = 2 if name == "hostendpoints" else 1 if "endpoint" in name else 0
        return named, len(self.members), len(self.outside)

    def __str__(self) -> str:
        return scrub("".join(self.path).removeprefix("."), limit=80) or "the document"


def read(body: bytes, networks: Networks, expression: str | None = None) -> Answer:
    """Decode and parse. Raises AnswerError alone, whatever `body` holds."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        start = scrub(body[:2000].decode("utf-8", "replace"), limit=120)
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deep"
        raise AnswerError(f"the answer is not JSON ({reason}); it begins: {start or 'nothing'}") from None
    return parse(document, networks, expression)


def parse(document: Any, networks: Networks, expression: str | None = None) -> Answer:
    """Find the instances in a decoded document. `expression` (JMESPath) says where they are.

    Raises AnswerError where there is nothing that can be read as a list of instances, empty or not, and where
    every address found lies outside `networks`. Entries that cannot be read are left out and complained of.
    """
    if expression is not None:
        document = _search(expression, document)
    collections = _collections(document, networks)
    chosen = max(filter(_holds_endpoints, collections), key=lambda c: c.rank, default=None)
    empty = max(filter(_is_empty, collections), key=lambda c: c.rank, default=None)
    if empty is not None and (chosen is None or empty.rank[0] > chosen.rank[0]):
        _refuse_error(document)
        if _may_be_empty(empty, collections):
            return Answer((), tuple(_passed_over(empty, collections)))
    if chosen is None:
        _refuse_error(document)
        raise AnswerError(_nothing(document, collections))
    if not chosen.members:
        raise AnswerError(_all_outside(chosen, networks))
    return Answer(tuple(chosen.members), tuple(_complaints(chosen, collections)))


def _search(expression: str, document: Any) -> Any:
    where = f"service[..].discovery.jmespath ({scrub(expression, limit=80)})"
    try:
        found = jmespath.search(expression, document)
    except _JMESPATH_ERRORS as error:
        raise AnswerError(f"{where} cannot be applied to the answer: {scrub(str(error))}") from None
    if found is None:
        raise AnswerError(f"{where} finds nothing in the answer: {excerpt(document)}")
    return [found] if isinstance(found, str) else found


# ---- walking the document ----


def _collections(document: Any, networks: Networks) -> list[_Collection]:
    """Every collection, outermost first, entries at the same place of sibling objects together."""
    found: dict[_Path, _Collection] = {}
    if isinstance(document, dict) and any(name in _named(document) for name in _ADDRESSES):
        _take(found.setdefault((), _Collection((), "")), document, "", networks)
    queue: deque[tuple[_Path, str, Any]] = deque([((), "", document)])
    while queue:
        path, name, node = queue.popleft()
        if isinstance(node, list):
            _enter(found, (*path, "[*]"), name, enumerate(node), networks)
        elif isinstance(node, dict):
            _enter_object(found, path, name, node, networks)
        if len(path) < _MAX_DEPTH:
            queue.extend(_children(path, node))
    return list(found.values())


def _children(path: _Path, node: Any) -> Iterator[tuple[_Path, str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, dict | list):
                yield (*path, f".{key}"), str(key), value
    elif isinstance(node, list):
        for item in node:
            if isinstance(item, dict | list):
                yield (*path, "[*]"), "", item


def _enter(found: dict[_Path, _Collection], path: _Path, name: str, items: Any, networks: Networks) -> None:
    collection = found.setdefault(path, _Collection(path, name))
    for index, item in items:
        _take(collection, item, str(index), networks)


def _enter_object(
    found: dict[_Path, _Collection], path: _Path, name: str, node: dict[Any, Any], networks: Networks
) -> None:
    """Take the values that look like instances, and the nulls by which Go programs mean an empty list."""
    for key, value in node.items():
        if isinstance(value, dict) and any(known in _named(value) for known in _ADDRESSES):
            # Of one instance alone the key is the name: `{"endpoint": {"ip": ...}}`.
            own = name if "endpoint" in _plain(name) else str(key)
            _take(found.setdefault((*path, ".*"), _Collection((*path, ".*"), own)), value, str(key), networks)
        elif value is None and "endpoint" in _plain(str(key)):
            null = (*path, f".{key}", "[*]")
            found.setdefault(null, _Collection(null, str(key)))


def _take(collection: _Collection, item: Any, index: str, networks: Networks) -> None:
    collection.size += 1
    try:
        member, doubt = _member(item)
    except _UnreadError as error:
        collection.near += error.near
        reason = str(error)
    else:
        address = ip_address(member.endpoint.host)
        if any(address in network for network in networks):
            collection.members.append(member)
        else:
            collection.outside.append(member.endpoint)
        reason = doubt
    if reason and len(collection.unread) <= _MAX_COMPLAINTS:
        collection.unread.append((index, reason, item))


# ---- reading one entry ----


class _UnreadError(Exception):
    def __init__(self, reason: str, *, near: bool = False) -> None:
        super().__init__(reason)
        self.near = near


def _member(item: Any) -> tuple[Member, str]:
    """Read one entry, with what is doubtful in it. Raises _UnreadError with the reason."""
    if isinstance(item, str):
        return Member(_endpoint(item, None)), ""
    if not isinstance(item, dict):
        raise _UnreadError("is no instance")
    fields = _named(item)
    texts = [fields[name] for name in _ADDRESSES if isinstance(fields.get(name), str) and fields[name]]
    if not texts:
        raise _UnreadError("has no address")
    given = next((fields[name] for name in _PORTS if fields.get(name) is not None), None)
    port = _whole_number(given)
    if given is not None and (port is None or not 0 < port < 65536):
        raise _UnreadError("its port is not a number from 1 to 65535", near=True)
    weight = _whole_number(fields.get("weight", 1))
    member = Member(_first_endpoint(texts, port))
    if weight is None or not 0 <= weight <= MAX_WEIGHT:
        return member, f"its weight is not a whole number from 0 to {MAX_WEIGHT} and counts as 1"
    return Member(member.endpoint, weight), ""


def _first_endpoint(texts: Sequence[str], port: int | None) -> Endpoint:
    """Of several addresses (`ip` and `url`) the most telling that can be read."""
    first: _UnreadError | None = None
    for text in texts:
        try:
            return _endpoint(text, port)
        except _UnreadError as error:
            first = first or error
    raise first or _UnreadError("has no address")


def _endpoint(text: str, port: int | None) -> Endpoint:
    try:
        host, own, default = _split(text.strip())
    except ValueError:
        raise _UnreadError("its address cannot be read", near=port is not None) from None
    if own is not None and port is not None and own != port:
        raise _UnreadError("its address and its port contradict each other", near=True)
    chosen = port if port is not None else own if own is not None else default
    if chosen is None:
        raise _UnreadError("has no port", near=True)
    try:
        return Endpoint.of(host, chosen)
    except ValueError:
        raise _UnreadError("its address is no IP address with a port from 1 to 65535", near=True) from None


def _split(text: str) -> tuple[str, int | None, int | None]:
    """Split into host, port and, for a URL, its scheme's port. Raises ValueError."""
    if "://" in text:
        parts = urlsplit(text)
        return parts.hostname or "", parts.port, _DEFAULT_PORTS.get(parts.scheme)
    try:
        return str(ip_address(text.removeprefix("[").removesuffix("]"))), None, None
    except ValueError:
        endpoint = Endpoint.parse(text)
        return endpoint.host, endpoint.port, None


def _whole_number(value: Any) -> int | None:
    """Read 80, 80.0 and "80"; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 5:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return None
    return int(value)


def _named(item: Mapping[Any, Any]) -> dict[str, Any]:
    return {_plain(key): value for key, value in item.items() if isinstance(key, str)}


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


# ---- choosing, and saying so ----


def _holds_endpoints(collection: _Collection) -> bool:
    return bool(collection.members or collection.outside)


def _is_empty(collection: _Collection) -> bool:
    return collection.size == 0


def _may_be_empty(empty: _Collection, collections: Sequence[_Collection]) -> bool:
    """Whether an empty list can only mean that there is no instance."""
    named = empty.rank[0] > 0
    return named or not any(other.size for other in collections)


def _refuse_error(document: Any) -> None:
    fields = _named(document) if isinstance(document, dict) else {}
    if any(fields.get(name) for name in _ERRORS):
        raise AnswerError(f"the answer is an error instead of a list of instances: {excerpt(document)}")


def _complaints(chosen: _Collection, collections: Sequence[_Collection]) -> Iterator[str]:
    yield from (_complaint(chosen, *entry) for entry in chosen.unread[:_MAX_COMPLAINTS])
    unread = chosen.size - len(chosen.members) - len(chosen.outside)
    if unread > _MAX_COMPLAINTS:
        yield f"{unread - _MAX_COMPLAINTS} more entries of {chosen} could not be read"
    if chosen.outside:
        some = ", ".join(map(str, chosen.outside[:_MAX_COMPLAINTS]))
        yield f"{len(chosen.outside)} of {chosen} lie outside service[..].discovery.networks: {some}"
    yield from _passed_over(chosen, collections)


def _complaint(collection: _Collection, index: str, reason: str, item: Any) -> str:
    # Made of the few entries that are spoken of: for each of some 10,000 small collections it took seconds.
    return f"entry {scrub(index, limit=40)} of {collection}: {reason}: {excerpt(item)}"


def _passed_over(chosen: _Collection, collections: Sequence[_Collection]) -> Iterator[str]:
    taken = {member.endpoint for member in chosen.members}
    for other in filter(_holds_endpoints, collections):
        if other is not chosen and not taken.issuperset(member.endpoint for member in other.members):
            yield (
                f"{other} holds endpoints too ({len(other.members)}) and was passed over for {chosen} "
                f"({len(chosen.members)}); if that is wrong, set service[..].discovery.jmespath"
            )
            return


def _all_outside(chosen: _Collection, networks: Networks) -> str:
    return (
        f"every address in {chosen} lies outside the allowed networks, for example {chosen.outside[0]}; "
        f"allowed are {', '.join(map(str, networks))}. If these are the instances, add their network to "
        "service[..].discovery.networks"
    )


def _nothing(document: Any, collections: Sequence[_Collection]) -> str:
    nearest = max(collections, key=lambda c: (c.near, c.rank[0], c.size), default=None)
    seen = (
        _complaint(nearest, *nearest.unread[0]) if nearest and nearest.near else f"it is {excerpt(document)}"
    )
    return (
        "the answer holds no list of instances (objects with an address and a port) that can be read: "
        f"{seen}. If they are there, say where with service[..].discovery.jmespath"
    )
