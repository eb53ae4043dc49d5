"""What operators look at: a gateway with its admin server, and instances that can be killed."""

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import Address, free_port, running
from tests.support.workers import Run, config_of

TOKEN = "0123456789abcdef-a-token"

Series = dict[tuple[str, ...], float]
"""All samples, by name and label values in the order of the labels' names."""


class Watched(Run):
    """A gateway whose admin server is at `admin`."""

    def __init__(
        self, folder: Path, instances: list[Address], *, more: str = "", gateway: str = "", **parts: Any
    ) -> None:
        self.admin = f"127.0.0.1:{free_port()}"
        admin = f'admin = {{ bind = "{self.admin}", token = "{TOKEN}" }}\nunsupervised = "5s"\n{gateway}'
        super().__init__(folder, config_of(instances, free_port(), gateway=admin, more=more, **parts))

    def get(self, path: str, accept: str = "") -> bytes:
        request = urllib.request.Request(
            f"http://{self.admin}{path}", headers={"Authorization": f"Bearer {TOKEN}", "Accept": accept}
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            body: bytes = response.read()
            return body

    def has(self, path: str) -> bool:
        """Whether there is something already."""
        with contextlib.suppress(urllib.error.HTTPError):
            return bool(self.get(path))
        return False

    def act(self, name: str, **body: Any) -> Any:
        """Do it over HTTP."""
        request = urllib.request.Request(
            f"http://{self.admin}/actions/{name}",
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.loads(response.read())["result"]

    def refused(self, name: str, **body: Any) -> tuple[int, str]:
        """Why it is not done."""
        with pytest.raises(urllib.error.HTTPError) as caught:
            self.act(name, **body)
        with caught.value as answer:
            return answer.code, json.loads(answer.read())["error"]

    def scrape(self) -> Series:
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.get("/metrics").decode())
            for sample in family.samples
        }

    def view(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/view"))
        return found


@contextlib.contextmanager
def redis(binary: str, folder: Path, port: int) -> Iterator[None]:
    """An instance in a process of its own; it is killed at the end of the context."""
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with running(command, folder / f"redis-{port}.log", ("127.0.0.1", port)):
        yield
