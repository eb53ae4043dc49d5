"""Why a connection ended: a closed list, because it is a metric label and what alerts are written on."""

from enum import StrEnum


class Reason(StrEnum):
    """Exactly one stands on every closing line."""

    CLIENT_FIN = "client_fin"  # the client closed first, and everything was delivered
    INSTANCE_FIN = "instance_fin"  # the instance closed first, and everything was delivered
    CLIENT_RESET = "client_reset"
    INSTANCE_RESET = "instance_reset"
    IDLE_TIMEOUT = "idle_timeout"  # no byte either way for the listener's idle_timeout
    FIN_TIMEOUT = "fin_timeout"  # one side closed, the other neither sent nor read for fin_timeout
    CONNECT_FAILED = "connect_failed"  # no candidate could be connected to
    NO_ENDPOINT = "no_endpoint"  # the service has no endpoint that takes connections
    OVERLOAD = "overload"  # a limit was reached, or the gateway had no descriptor or memory left
    PROTOCOL_ERROR = "protocol_error"  # a PROXY header or a frame that its protocol does not allow
    HEADER_TIMEOUT = "header_timeout"  # a trusted source did not send its PROXY header in time
    # Turned away: each is counted, and lines of the log tell of some.
    DENIED_CIDR = "denied_cidr"  # its address is not allowed
    DENIED_CREDENTIALS = "denied_credentials"  # its credential is not valid here
    DENIED_SERVICE = "denied_service"  # its credential does not let it use the service that it comes to
    LIMIT_SOURCE = "limit_source"  # its address has as many connections as it may have
    LIMIT_SUBJECT = "limit_subject"  # its subject has
    CREDENTIALS_TIMEOUT = "credentials_timeout"  # it did not present a credential in time
    HANDSHAKE_TIMEOUT = "handshake_timeout"  # its TLS handshake took too long
    TLS_ERROR = "tls_error"  # its TLS handshake failed, or its certificate is not valid
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"  # it sent nothing for first_byte_timeout
    ACCESS_ENDED = "access_ended"  # its credential expired or was taken back; at a quiet moment
    FRAME_TOO_LARGE = "frame_too_large"  # a frame said that it is longer than the listener's max_frame
    FRAME_TIMEOUT = "frame_timeout"  # a frame that had begun was not whole within frame_timeout
    SLOW_READER = "slow_reader"  # the client did not read its answers within the limits
    # Ended by us at a quiet moment, between two frames where those are seen. With an `error`: the moment did
    # not come in time, so it was cut.
    DRAINED = "drained"  # because the gateway, its listener or its endpoint is to stop
    MAX_AGE = "max_age"  # because it was older than the listener's max_age
    REBALANCED = "rebalanced"  # because its key belongs to an endpoint that was added since
    SHUTDOWN = "shutdown"
    WORKER_LOST = "worker_lost"  # its process died; counted by the supervisor, as nobody is left to log it
    INTERNAL = "internal"  # a bug in tcpgw; the line before it in the log has the traceback


DENIED = frozenset(
    {
        Reason.DENIED_CIDR, Reason.DENIED_CREDENTIALS, Reason.DENIED_SERVICE, Reason.LIMIT_SOURCE,
        Reason.LIMIT_SUBJECT, Reason.CREDENTIALS_TIMEOUT, Reason.HANDSHAKE_TIMEOUT, Reason.TLS_ERROR,
    }
)  # fmt: skip
"""Who was not let in."""

FAILED = frozenset(
    {
        Reason.CONNECT_FAILED, Reason.NO_ENDPOINT, Reason.OVERLOAD, Reason.INSTANCE_RESET, Reason.INTERNAL,
        Reason.WORKER_LOST,
    }
)  # fmt: skip
"""Who was let in and not served: no instance took it or one broke off, or the gateway is at fault."""
