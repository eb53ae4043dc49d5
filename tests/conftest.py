"""What every test may rely on: uvloop, the real components, and a refusal to skip them where CI asks."""

import os
import shutil
import sys
from asyncio import AbstractEventLoop
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import uvloop

Need = Callable[[str], str]


# A slow machine is not a fault of what is tested.
hypothesis.settings.register_profile("tcpgw", deadline=None)
hypothesis.settings.load_profile("tcpgw")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], AbstractEventLoop]]:
    """Run every test on the loop that production runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def need() -> Need:
    """Find a real component's command. Missing: the test is skipped, or fails under TCPGW_REQUIRE_ALL."""

    def find(command: str) -> str:
        here = Path(sys.executable).parent  # components that come as a wheel
        path = shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:{here}")
        if path is None:
            reason = f"{command} is not installed; tests/run installs it where it may use apt-get"
            if os.environ.get("TCPGW_REQUIRE_ALL"):
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return find
