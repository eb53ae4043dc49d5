"""What a worker is before it does anything. What it does is tested with its supervisor, in integration."""

import subprocess
import sys


def test_worker_imports_only_what_it_needs() -> None:
    """Nothing that asks for keys, and what reads tokens and certificates not before it is needed."""
    heavy = "{'aiohttp', 'jwt', 'cryptography', 'tcpgw.health.panel'}"
    code = f"import sys, tcpgw.app.worker; print({heavy} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "set()"
