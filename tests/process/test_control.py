"""Where a running gateway's control socket is looked for."""

import os
from pathlib import Path

from tcpgw.process.control import places, usable


def test_a_configuration_has_places_of_its_own(tmp_path: Path) -> None:
    """The same file has the same ones however it is named; another file has others."""
    (tmp_path / "sub").mkdir()
    one = list(places(tmp_path / "a.toml", {}))
    assert list(places(tmp_path / "sub" / ".." / "a.toml", {})) == one
    assert not set(one) & set(places(tmp_path / "b.toml", {}))
    assert not set(one) & set(places(tmp_path / "sub" / "a.toml", {}))
    assert all(place.name.startswith("a-") for place in one)


def test_systemds_folder_comes_first() -> None:
    """Then that of a service, where operators look who are not started by systemd, then the user's own."""
    environment = {"RUNTIME_DIRECTORY": "/run/gateway:/run/other", "XDG_RUNTIME_DIR": "/run/user/7"}
    folders = [str(place.parent) for place in places(Path("/etc/tcpgw/tcpgw.toml"), environment)]
    assert folders[:3] == ["/run/gateway", "/run/tcpgw", "/run/user/7/tcpgw"]
    assert folders[3].endswith(f"/tcpgw-{os.getuid()}")


def test_a_path_fits_a_socket_address() -> None:
    """108 bytes with the closing NUL, whatever the configuration is called."""
    for place in places(Path("/etc") / ("x" * 200 + ".toml"), {}):
        assert len(os.fsencode(place)) < 108


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    """They could answer in the gateway's stead; a missing one is made."""
    assert usable(tmp_path / "made" / "x.sock")
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700
    (tmp_path / "made").chmod(0o777)
    assert not usable(tmp_path / "made" / "x.sock")
    assert not usable(tmp_path / "no" / "such" / "x.sock")
