"""One listener's credentials: what a token or a certificate gives there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tcpgw.access.denial import Denied, Reason, shown
from tcpgw.access.grant import Grant, Kind, Subjects, allowed, is_subject, narrowed
from tcpgw.access.keys import Keys, is_api_key

if TYPE_CHECKING:  # 19 ms and 9.5 MB for each worker, most of which meet no JWT
    from tcpgw.access.jwt import Verifier


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a listener takes; None: not that.

    `subjects` say what a subject may use there. A JWT or a certificate whose subject they have no rule for is
    denied: whoever issues those knows nothing of this gateway. An API key without a rule gives what its line
    in the key file says, because that line is a rule of its own; with one it gives what both allow.

    Whoever has a token may use it, as often as wanted, until it expires: it is a bearer's, so it belongs
    inside TLS wherever others can listen.
    """

    keys: Keys | None
    jwt: "Verifier | None"
    subjects: Subjects | None
    listener: str

    @property
    def takes_tokens(self) -> bool:
        """Whether clients can present anything but a certificate."""
        return self.keys is not None or self.jwt is not None

    def verify(self, token: bytes, now: float) -> Grant:
        """Give what an API key or a JWT grants at the Unix time `now`, for this listener.

        Raises Denied; UnknownKey, which is one, where the set of keys may be too old for a JWT.
        """
        if token.count(b".") == 2:
            return self._permitted(self._of_jwt(token, now), needs_rule=True)
        return self._permitted(self._of_api_key(token, now), needs_rule=False)

    def certificate(self, names: Sequence[str]) -> Grant | None:
        """Give what a verified certificate with these names grants; None: it is no credential here.

        The subject is the first name that `subjects` have a rule for, without `subjects` the first that can
        be one. The grant does not expire by itself; the certificate may. Raises Denied where the grant is not
        for this listener.
        """
        for name in filter(is_subject, names):
            if self.subjects is None or self.subjects.of(name) is not None:
                return self._permitted(Grant(name, kind=Kind.CERTIFICATE), needs_rule=True)
        return None

    def upholds(self, grant: Grant, now: float) -> bool:
        """Whether these would give the same, to whom it was given before these were in force.

        Of an API key, its line counts as it is now; of a token or a certificate, what it said then.
        """
        basis = grant.basis or grant
        try:
            if basis.kind is Kind.API_KEY:
                stored = self.keys.of(basis.key_id) if self.keys is not None else None
                if stored is None or stored.expired(now) or stored.digest != basis.digest:
                    return False
                return self._permitted(stored, needs_rule=False) == grant
            if basis.kind is Kind.JWT and self.jwt is None:
                return False
            return self._permitted(basis, needs_rule=True) == grant
        except Denied:
            return False

    def _of_jwt(self, token: bytes, now: float) -> Grant:
        if self.jwt is None:
            raise Denied(Reason.UNKNOWN, "a JWT, which the listener does not take")
        return self.jwt.verify(token, now)

    def _of_api_key(self, token: bytes, now: float) -> Grant:
        if not is_api_key(token):
            raise Denied(Reason.MALFORMED, "neither an API key nor a JWT")
        if self.keys is None:
            raise Denied(Reason.UNKNOWN, "an API key, which the listener does not take")
        grant = self.keys.find(token)
        if grant is None:
            raise Denied(Reason.UNKNOWN, "the API key is not in the key file")
        if grant.expired(now):
            raise Denied(Reason.EXPIRED, f"the API key of {shown(grant.subject)} has expired")
        return grant

    def _permitted(self, grant: Grant, *, needs_rule: bool) -> Grant:
        if self.subjects is not None:
            rule = self.subjects.of(grant.subject)
            if rule is not None:
                grant = replace(narrowed(grant, rule), basis=grant)
            elif needs_rule:
                raise Denied(Reason.SUBJECT, f"subjects have no rule for {shown(grant.subject)}")
        if not allowed(grant.listeners, self.listener):
            raise Denied(Reason.LISTENER, f"{shown(grant.subject)} may not use listener {self.listener}")
        return grant
