"""What a gateway does and did, as an operator sees it."""

from pathlib import Path
from typing import Any

from tcpgw.app.status import made
from tests.support.command import tcpgw
from tests.support.control import answering
from tests.support.pictures import picture


def test_who_cannot_be_told_of_alerts_is_named(config: Path) -> None:
    """With where and why, which commands no terminal; of the others nothing is said."""

    def receiver(name: str, error: str) -> dict[str, Any]:
        return {"receiver": name, "url": f"http://{name}", "sent": 1, "failed": 2, "dropped": 0, "waiting": 0,
                "error": error}  # fmt: skip

    found = made(picture(receivers=[receiver("chat", ""), receiver("on-call", "status 401\x1b[2J")]))
    with answering(config, {"status": lambda: found}):
        code, out, err = tcpgw("status", "-c", config)
    assert (code, err) == (0, "")
    assert "alerts to on-call, http://on-call: status 401\\x1b[2J\n" in out
    assert "chat" not in out
