"""How further processes of the gateway are executed."""

import subprocess
import sys
from pathlib import Path

from tcpgw.process.execution import bare

ASK = "from tcpgw.process.execution import interpreter; print(interpreter())"


def test_secrets_of_the_environment_stay_here() -> None:
    """What an interpreter and a log need passes, and nothing else."""
    kept = {"PATH": "/bin", "PYTHONPATH": "/x", "LC_ALL": "C", "LANG": "C", "TMPDIR": "/t", "TERM": "xterm"}
    assert bare({**kept, "TCPGW_IAM_PASSWORD": "x", "AWS_SECRET": "y", "NOTIFY_SOCKET": "/z"}) == kept


def test_modules_are_found_where_they_were_found(tmp_path: Path) -> None:
    """A folder that anybody may have written to is no place for them, unless they are from there."""
    script = tmp_path / "script.py"
    script.write_text(ASK)
    repository = Path(__file__).parents[2]
    environment = {"PATH": "/bin", "PYTHONPATH": str(repository)}
    for command, folder, flags in (
        ([sys.executable, str(script)], "/", ["-P"]),
        ([sys.executable, "-c", ASK], str(repository), []),
        ([sys.executable, "-P", "-c", ASK], "/", ["-P"]),
    ):
        out = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        assert out.stdout == f"{[sys.executable, *flags]}\n"
