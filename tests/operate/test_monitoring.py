"""What is printed for a monitoring system."""

from pathlib import Path

import pytest

from tcpgw.operate import monitoring
from tests.support.command import tcpgw


@pytest.mark.parametrize(("command", "name"), [("rules", "rules.yml"), ("dashboard", "dashboard.json")])
def test_the_package_s_file_is_printed_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    """And where it is missing, that is said."""
    monkeypatch.setattr(monitoring, "files", lambda _: tmp_path)
    code, out, err = tcpgw("monitoring", command)
    assert (code, out) == (1, "")
    assert f"lacks {name}" in err
    (tmp_path / "monitoring").mkdir()
    (tmp_path / "monitoring" / name).write_text("a: é\n", encoding="utf-8")
    assert tcpgw("monitoring", command) == (0, "a: é\n", "")
