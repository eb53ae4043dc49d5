"""What commands print."""

import pytest

from tcpgw.terminal import visible


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("10.0.0.1:80: für 30 s…", "10.0.0.1:80: für 30 s…"),
        ("\x1b]0;x\x07\x9b2J", r"\x1b]0;x\x07\x9b2J"),
        ("a\r\n\tb", r"a\r\n\tb"),
        ("\u202e\u2028", r"\u202e\u2028"),
        ("f\udcfcr", r"f\udcfcr"),
    ],
)
def test_nothing_commands_the_terminal(text: str, seen: str) -> None:
    """What would, or begins a line, or cannot be encoded, is escaped; all else stays."""
    assert visible(text) == seen
