"""What a listener's `access`, `tls` and `limits` mean: its guard, out of what was read for it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tcpgw.access import keys
from tcpgw.access.cidr import Networks
from tcpgw.access.credentials import Credentials
from tcpgw.access.grant import Names, Permissions, Subjects
from tcpgw.access.guard import OPEN, Guard
from tcpgw.access.limits import Limiter, Quota
from tcpgw.access.tls import ServerTls, server_context
from tcpgw.app.material import Contents
from tcpgw.app.secure import Contexts, check_secure
from tcpgw.config import schema
from tcpgw.config.material import material
from tcpgw.errors import ConfigError, Fault, TcpgwError, TlsError

# Sources and subjects that are remembered without a connection, in each worker: some 10 MB at most.
_REMEMBERED = 65536

Renew = Callable[[], Awaitable[None]]


def check(config: schema.Config, contents: Contents) -> None:
    """Raise ConfigError where what was read, for clients or for instances, is not what is needed."""
    Guards().make(config, contents)
    Contexts().of(config, contents)
    for index, service in enumerate(config.service):
        check_secure(service, f"service[{index}]", contents)


class Guards:
    """Makes the guards of a configuration's listeners, and keeps what they count over its changes.

    `renew` is asked for newer sets of keys.
    """

    def __init__(self, renew: Renew | None = None) -> None:
        self._renew = renew
        self._made: dict[str, tuple[object, Guard]] = {}

    def make(self, config: schema.Config, contents: Contents) -> dict[str, Guard]:
        """By listener. One for which nothing changed keeps its guard. Raises ConfigError, with all faults."""
        made: dict[str, tuple[object, Guard]] = {}
        faults: list[Fault] = []
        sources = {one.key: str(one.source) for one in material(config)}
        for index, listener in enumerate(config.listener):
            own = {key: data for key, data in contents.items() if key.startswith(f"listener[{index}].")}
            terms = (
                listener.access,
                listener.tls,
                listener.limits,
                listener.by_credential,
                sorted(own.items()),
            )
            before = self._made.get(listener.name)
            if before is not None and before[0] == terms:
                made[listener.name] = before
                continue
            parts = _Parts(f"listener[{index}]", own, sources, faults)
            guard = self._guard(listener, parts, before[1] if before else OPEN)
            made[listener.name] = terms, guard
        if faults:
            raise ConfigError(faults)
        self._made = made
        return self.by_listener

    @property
    def by_listener(self) -> dict[str, Guard]:
        """Those of the configuration that was made last."""
        return {name: guard for name, (_, guard) in self._made.items()}

    def _guard(self, listener: schema.Listener, parts: "_Parts", before: Guard) -> Guard:
        access, limits, tls = listener.access, listener.limits, listener.tls
        guard = Guard(
            networks=Networks(access.allow, access.deny) if access.allow or access.deny else None,
            sources=_limiter(limits.per_source, before.sources),
            ipv6_prefix=limits.per_source.ipv6_prefix if limits.per_source else 64,
            subjects=_limiter(limits.per_subject, before.subjects),
            tls=parts.tls(tls) if isinstance(tls, schema.ServerTls) else None,
            passthrough=tls == "passthrough",
            handshake_timeout=tls.handshake_timeout if isinstance(tls, schema.ServerTls) else access.timeout,
            credentials=parts.credentials(listener) if listener.by_credential else None,
            credentials_timeout=access.timeout,
            renew=self._renew,
        )
        return OPEN if guard == Guard(renew=self._renew) else guard


class _Parts:
    """What is made of what was read. A part that cannot be made is a fault, and None."""

    def __init__(
        self, place: str, contents: Contents, sources: Mapping[str, str], faults: list[Fault]
    ) -> None:
        self._place = place
        self._contents = contents
        self._sources = sources
        self._faults = faults

    def tls(self, tls: schema.ServerTls) -> ServerTls | None:
        place = f"{self._place}.tls"
        chains = [
            (
                self._contents[f"{place}.certificates[{index}].chain"],
                self._contents.get(f"{place}.certificates[{index}].key"),
            )
            for index in range(len(tls.certificates))
        ]
        made: ServerTls | None = self._tried(
            place,
            lambda: server_context(
                chains,
                client_ca=self._contents.get(f"{place}.client_ca"),
                client_crl=self._contents.get(f"{place}.client_crl"),
                client_required=tls.client_certificate == "required",
                alpn=tls.alpn,
                min_version=tls.min_version,
            ),
        )
        return made

    def credentials(self, listener: schema.Listener) -> Credentials | None:
        access, place = listener.access, f"{self._place}.access"
        text = self._contents.get(f"{place}.api_keys")
        api_keys = self._tried(f"{place}.api_keys", lambda: _keys(text)) if text is not None else None
        jwt = access.jwt
        verifier = (
            self._tried(f"{place}.jwt.jwks", lambda: self._verifier(jwt, place)) if jwt is not None else None
        )
        table = {
            pattern: Permissions(services=_names(rule.services), methods=_names(rule.methods))
            for pattern, rule in access.subjects.items()
        }
        return Credentials(api_keys, verifier, Subjects(table) if table else None, listener.name)

    def _verifier(self, jwt: schema.Jwt, place: str) -> Any:
        from tcpgw.access.jwt import JwtTerms, KeySet, Verifier  # noqa: PLC0415 - see there what it takes

        terms = JwtTerms(
            algorithms=jwt.algorithms,
            audience=jwt.audience,
            issuer=jwt.issuer,
            leeway=jwt.leeway,
            subject=jwt.subject,
            permissions=jwt.permissions,
            secret=jwt.secret.get_secret_value().encode() if jwt.secret else None,
        )
        text = self._contents.get(f"{place}.jwt.jwks")
        if text is None or (not text and isinstance(jwt.jwks, str)):
            return Verifier(terms)  # the tokens of a URL that has not answered yet wait for it
        return Verifier(terms, KeySet.parse(text))

    def _tried(self, key: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except ConfigError as exc:
            for fault in exc.faults:
                self._blame(key, str(fault))
        except TlsError as exc:
            self._blame(f"{key}.{exc.where}", exc.why)
        except (TcpgwError, ValueError) as exc:  # ValueError: terms of JWTs that cannot be
            self._blame(key, str(exc))
        return None

    def _blame(self, key: str, text: str) -> None:
        source = self._sources.get(key)
        self._faults.append(Fault(key, f"{source}: {text}" if source else text))


def _keys(text: bytes) -> keys.Keys:
    if not text.strip():  # being written just now, or by mistake: it would lock everybody out
        raise keys.KeyFileError(
            [Fault("", "is empty; where nobody is to come in, write a comment (# nobody)")]
        )
    try:
        return keys.Keys(keys.parse(text.decode()))
    except UnicodeDecodeError as exc:
        raise keys.KeyFileError(
            [Fault("", f"byte {exc.start} is no UTF-8: is this a file of API keys?")]
        ) from None


def _limiter(quota: schema.Quota | None, before: Limiter | None) -> Limiter | None:
    if quota is None:
        return None
    terms = Quota(quota.connections, quota.new_per_second, quota.burst, quota.bytes_in, quota.bytes_out)
    if before is None:
        return Limiter(terms, _REMEMBERED)
    before.change(terms)
    return before


def _names(patterns: tuple[str, ...] | None) -> Names | None:
    return Names.of(patterns) if patterns is not None else None
