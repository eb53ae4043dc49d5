"""The environment that the samples under tests/data name."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TCPGW_TEST_PASSWORD", "password-from-the-environment")
        patch.setenv("TCPGW_TEST_EMPTY", "")
        patch.setenv("TCPGW_TEST_WEBHOOK", "https://chat.example.com/hook?key=from-the-environment")
        patch.delenv("TCPGW_TEST_UNSET", raising=False)
        patch.delenv("STATE_DIRECTORY", raising=False)
        yield
