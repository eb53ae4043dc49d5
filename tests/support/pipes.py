"""A pipe for a log to be written into, read from the other end."""

import json
import os
import select
from typing import Any


class Pipe:
    """A pipe whose end for writing is the log's."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def read(self) -> bytes:
        """What has come, at most a few hundred lines; nothing for ten seconds fails the test."""
        assert select.select([self.reader], [], [], 10)[0]
        return os.read(self.reader, 1 << 16)

    def text(self) -> str:
        """Everything that was written; the log must be closed."""
        self.close_writer()
        with open(self.reader, encoding="utf-8", closefd=False) as file:
            return file.read()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]
