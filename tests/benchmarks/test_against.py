"""What the benchmark of a change asks and reports, and that it works."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import against
import pytest
from against import AFTER, BEFORE, WORKLOADS
from peers import REPOSITORY, TCPGW, Address, Forward, Plan
from report import Results, Sample


def test_other_checkout_is_given_the_same(tmp_path: Path) -> None:
    """The other gateway is run in its own folder, with the configuration that this one has."""
    other = against.before(tmp_path)
    plan = Plan(
        [Forward("x", Address("127.0.0.1", 1), Address("127.0.0.1", 2))],
        tmp_path / "log",
        log_connections=False,
    )
    assert other.cwd == tmp_path
    assert other.configure(plan) == TCPGW.configure(plan)
    assert other.command("python", tmp_path, plan) == TCPGW.command("python", tmp_path, plan)


def test_folder_without_a_gateway_is_refused(tmp_path: Path) -> None:
    """What is no checkout is told before anything is started."""
    assert against.checkout(str(REPOSITORY)) == REPOSITORY
    with pytest.raises(argparse.ArgumentTypeError, match="no checkout of tcpgw"):
        against.checkout(str(tmp_path))


def test_ratio_is_of_rounds_and_its_spread_is_told() -> None:
    """A row has both costs, the median of the rounds' ratios, and where the middle half of them is."""
    samples = [
        Sample(number, "connect-50", path, 1.0, rate, cpu=cpu)
        for number, factor in enumerate((1.0, 1.1, 1.2, 1.3, 1.4))
        for path, rate, cpu in ((BEFORE, 100.0, 1e-4), (AFTER, 90.0, factor * 1e-4))
    ]
    connect, nothing = against.summary(Results(samples), ["connect-50", "keepalive-50"])
    assert connect["cpu"] == pytest.approx(1.2)
    assert connect["low"] == pytest.approx(1.1)
    assert connect["high"] == pytest.approx(1.3)
    assert connect["rate"] == pytest.approx(0.9)
    assert (nothing["cpu"], nothing["low"]) == (None, None)


@pytest.mark.skipif(
    shutil.which("redis-benchmark") is None or shutil.which("cc") is None,
    reason="redis or gcc are not installed",
)
def test_quick_run_reports(run_script: Callable[..., str], tmp_path: Path) -> None:
    """A quick run measures both checkouts with every workload; here they are the same one."""
    kept = tmp_path / "kept.json"
    report = run_script("against.py", str(REPOSITORY), "--quick", "--json", str(kept))
    assert all(name in report for name in WORKLOADS)
    samples = json.loads(kept.read_text())["samples"]
    assert {(each["workload"], each["path"]) for each in samples} == {
        (name, path) for name in WORKLOADS for path in (BEFORE, AFTER)
    }
