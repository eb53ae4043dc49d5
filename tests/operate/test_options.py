"""Options that are read alike everywhere."""

import re

import pytest
import typer

from tcpgw.operate.options import duration
from tests.support.command import tcpgw


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("0.5", 0.5), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("250ms", 0.25)],
)
def test_durations(text: str, seconds: float) -> None:
    """As in the configuration, and bare seconds."""
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "2d", "inf", "nan"])
def test_what_is_no_duration_says_what_would_be(text: str) -> None:
    """Exit code 2, with an example."""
    with pytest.raises(typer.BadParameter, match=r"write 10s, 500ms, 1h30m|no usable duration"):
        duration(text)


@pytest.mark.parametrize("command", ["drain", "silence", "trace"])
def test_help_calls_a_duration_so(command: str) -> None:
    """With examples of how it may be written."""
    help_ = " ".join(tcpgw(command, "--help").out.replace("│", " ").split())
    assert "DURATION" in help_
    assert re.search(r"\d+[sm], \d+[mh], or seconds", help_)
    assert "SECONDS" not in help_
    assert "default: (" not in help_
