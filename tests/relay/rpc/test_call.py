"""What is remembered of a request."""

from typing import cast

import pytest

from tcpgw.relay.rpc.call import Call
from tcpgw.relay.rpc.routing import Rule
from tcpgw.relay.rpc.session import RpcSession
from tcpgw.wire.codec import Kind, Message


@pytest.mark.parametrize(("kind", "expected"), [(Kind.REQUEST, True), (Kind.NOTIFY, False)])
def test_a_notification_is_no_request(kind: Kind, expected: bool) -> None:
    """Somebody waits for the end of a request, and nobody for a notification's."""
    client = cast("RpcSession", None)
    call = Call(client, Message(kind, b"m", b"", -1, 0), [], 0, Rule("", timeout=1.0), 0, 0.0, 1.0)
    assert call.is_request == expected
    assert not call.done
