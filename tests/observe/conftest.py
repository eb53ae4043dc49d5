"""A pipe for each test that reads what is logged."""

import os
from collections.abc import Iterator

import pytest

from tests.support.pipes import Pipe


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close_writer()
    os.close(pipe.reader)
