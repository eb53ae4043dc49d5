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
    FRAME_TOO_LARGE = "frame_too_large"  # a frame said that it is longer than the listener's max_frame
    FRAME_TIMEOUT = "frame_timeout"  # a frame that had begun was not whole within frame_timeout
    SLOW_READER = "slow_reader"  # the client did not read its answers within the limits
    # Ended by us at a quiet moment, between two frames where those are seen. With an `error`: the moment did
    # not come in time, so it was cut.
    DRAINED = "drained"  # because the gateway, its listener or its endpoint is to stop
    MAX_AGE = "max_age"  # because it was older than the listener's max_age
    REBALANCED = "rebalanced"  # because its key belongs to an endpoint that was added since
    SHUTDOWN = "shutdown"
    INTERNAL = "internal"  # a bug in tcpgw; the line before it in the log has the traceback
