"""What a worker is before it does anything. What it does is tested with its supervisor, in integration."""

import subprocess
import sys
from typing import Any

from tcpgw.process.worker import WorkerProcess
from tests.support.streams import until


def test_worker_imports_only_what_it_needs() -> None:
    """Nothing that asks for keys, and what reads tokens and certificates not before it is needed."""
    heavy = "{'aiohttp', 'jwt', 'cryptography', 'tcpgw.health.panel'}"
    code = f"import sys, tcpgw.app.worker; print({heavy} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "set()"


async def test_it_tells_what_it_counted_before_it_answers() -> None:
    """In the order of all reports, so that whoever asks never puts an older one over the last."""
    reports: list[dict[str, Any]] = []

    def take(worker: WorkerProcess, report: dict[str, Any]) -> None:  # noqa: ARG001
        reports.append(report)

    def command(slot: int, descriptor: int) -> list[str]:
        program = "from tcpgw.app.worker import main; main()"
        return [sys.executable, "-c", program, str(slot), str(descriptor), "json", "info"]

    worker = WorkerProcess.start(1, command, {"report": take, "beat": lambda _: None})
    try:
        await until(lambda: reports)
        before = len(reports)
        for more in (1, 2, 3):
            assert await worker.call("report", timeout=10) is None
            assert len(reports) >= before + more
    finally:
        await worker.close()
