"""What a screen of a view has on it, whatever its size."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tcpgw.operate.frame import ORDERS, Looks, frame

VIEW: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "view.json").read_text())
ENDPOINTS = sum(len(service["endpoints"]) for service in VIEW["services"])
HELP = "q quit"


def lines(view: dict[str, Any] = VIEW, **looks: Any) -> list[str]:
    """What stands on a screen of 80 columns and 24 lines, unless something else is said."""
    how = Looks(**{"width": 80, "height": 24, "help": HELP, **looks})
    console = Console(width=how.width, highlight=False, markup=False, color_system=None)
    with console.capture() as captured:
        console.print(frame(view, how).content)
    found = [line.rstrip() for line in captured.get().splitlines()]
    assert how.height is None or len(found) <= how.height
    assert max(map(len, found)) <= how.width
    return found


def changed(**more: Any) -> dict[str, Any]:
    return {**copy.deepcopy(VIEW), **more}


def rows(found: list[str], title: str) -> list[list[str]]:
    """The rows of the section with that first title."""
    start = next(place for place, line in enumerate(found) if line.startswith(f"{title} ")) + 1
    titles = ("service ", "listener ", "worker ", "endpoint ", "…", HELP)
    taken = []
    for line in found[start:]:
        if line.startswith(titles) or not line:
            break
        taken.append(line.split())
    return taken


def test_a_usual_terminal_has_a_bit_of_everything() -> None:
    """All sections, the sickest endpoints, and how many more there are."""
    found = lines()
    assert len(found) == 24
    assert found[0].startswith("tcpgw 0.6.0 ready · pid 4242 · up 3 h 5 min · /etc/tcpgw/tcpgw.toml · ")
    assert found[1].startswith("12,345 connections · 3,210/s · 0.40 failed/s · 97 in flight")
    assert found[3].split()[:4] == ["few_endpoints", "firing", "service=resnet-v2", "5"]
    assert [row[0] for row in rows(found, "service")] == ["resnet-v1", "resnet-v2", "redis"]
    assert "panic, discovery fails" in next(line for line in found if line.startswith("resnet-v2 "))
    assert rows(found, "worker")[0][:2] == ["1", "4243"]
    assert rows(found, "listener")[0][:4] == ["predict", "0.0.0.0:9000", "rpc", "12,000"]
    sick = rows(found, "endpoint")
    assert [row[2] for row in sick] == ["ejected", "unhealthy", "unhealthy", "trial"]
    assert found[-2:] == [f"… and {ENDPOINTS - len(sick)} more", HELP]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 132, 200])
@pytest.mark.parametrize("height", [4, 8, 12, 24, 50])
def test_it_fits_every_size(width: int, height: int) -> None:
    """And what keys do is always told."""
    assert lines(width=width, height=height)[-1] == HELP


def test_sixty_columns_keep_what_matters() -> None:
    """Names, rates, failures, p99 and states, whole."""
    found = lines(width=60)
    assert next(line for line in found if line.startswith("resnet-v1 ")).split()[:3] == [
        "resnet-v1",
        "2,890",
        "0.40",
    ]
    assert any(line.split()[:1] == ["service"] and "p99" in line and "usable" in line for line in found)
    assert [row[2] for row in rows(found, "endpoint")][:2] == ["ejected", "unhealthy"]


def test_everything_is_there_where_nobody_looks() -> None:
    """Each endpoint, with why, and what an operator said of it."""
    found = lines(width=160, height=None, help="")
    assert len(rows(found, "endpoint")) == ENDPOINTS
    assert [row[0] for row in rows(found, "listener")] == ["predict", "redis", "old"]
    assert any(
        "10.0.1.14:8080" in line and line.endswith("5 failed in a row: out for 30 s") for line in found
    )
    drained = next(line.split() for line in found if "10.0.1.20" in line)
    assert drained[2:5] == ["drained", "0", "(1)"]
    assert next(line.split() for line in found if "10.0.1.23" in line)[3:5] == ["5", "(1)"]
    assert "resnet-v1 90.0%, 89.7%; resnet-v2 10.0%, 10.3%" in "\n".join(found)
    assert "redis 100.0%, -" in "\n".join(found)
    assert "removed" in next(line for line in found if line.startswith("old "))


def test_endpoints_scroll() -> None:
    """Neither above the first nor below the last; what is above and below is counted."""
    shown = len(rows(lines(), "endpoint"))
    found = lines(scroll=3)
    assert found[-2] == f"… 3 above, and {ENDPOINTS - shown - 3} more"
    assert frame(VIEW, Looks(80, 24, scroll=-5, help=HELP)).scroll == 0
    last = frame(VIEW, Looks(80, 24, scroll=10_000, help=HELP))
    assert (last.page, last.scroll) == (shown, ENDPOINTS - shown)
    assert lines(scroll=10_000)[-2] == f"… {ENDPOINTS - shown} above"


@pytest.mark.parametrize(
    ("order", "first"),
    [
        ("sick first", "10.0.1.14:8080"), ("rate", "10.0.1.23:8080"), ("in flight", "10.0.1.11:8080"),
        ("failures", "10.0.1.31:8080"), ("name", "127.0.0.1:6379"),
    ],
)  # fmt: skip
def test_endpoints_are_sorted_as_one_likes(order: str, first: str) -> None:
    """Equal ones by service and name, so that nothing moves about by itself."""
    assert rows(lines(order=order), "endpoint")[0][0] == first
    assert order in ORDERS


def test_what_is_wrong_with_the_whole_is_in_the_head() -> None:
    """An answer that is not of now before all else."""
    overload = {"active": 1, "times": 2, "shed": 1500}
    clouds = [{**VIEW["clouds"][0], "paused": 42.0}]
    found = lines(
        changed(overload=overload, clouds=clouds, state="degraded"), stale="no answer since 12:00:00"
    )
    assert found[0] == "no answer since 12:00:00"
    assert " degraded " in found[1]
    assert "overloaded: new connections are closed, 1,500 so far" in found
    assert "cloud modelarts: no calls for 42 s" in found


def test_a_gateway_that_has_just_begun_has_little() -> None:
    """No endpoint, no alert, no traffic: what there is is shown."""
    services = [{**VIEW["services"][2], "endpoints": []}]
    found = lines(changed(services=services, alerts=[], listeners=[], workers=[], worker_deaths=0))
    (row,) = rows(found, "service")
    assert (row[:7], row[-1]) == (["redis", "0", "0", "0", "-", "-", "-"], "0/0")
    assert not any(line.startswith(("endpoint ", "worker ", "listener ")) for line in found)


def test_many_of_everything_still_fit() -> None:
    """A thousand endpoints, fifty services, alerts and workers: each section tells how many it leaves out."""
    service = VIEW["services"][0]
    many = [
        {**service, "name": f"s{number:02}", "endpoints": service["endpoints"][:20]} for number in range(50)
    ]
    view = changed(
        services=many,
        alerts=VIEW["alerts"] * 10,
        workers=VIEW["workers"] * 16,
        listeners=VIEW["listeners"] * 9,
    )
    found = lines(view, width=80)
    assert len(found) == 24
    assert [line for line in found if line.startswith("…")] == [
        "… and 38 more", "… and 48 more", "… and 26 more", "… and 31 more", "… and 995 more"
    ]  # fmt: skip


def test_nobody_who_is_shown_commands_the_terminal() -> None:
    """Neither an instance, by why its checks fail, nor a cloud, nor who wrote an alert."""
    view = changed(clouds=[{**VIEW["clouds"][0], "name": "\x1b[7m", "paused": 5.0}])
    view["services"][0]["endpoints"][0]["why"] = "\x1b[2Jall\nis well"
    view["services"][0]["discovery"]["last_error"] = "\x1b[3J"
    view["alerts"][0]["summary"] = "\x1b[4m"
    shown = "\n".join(lines(view, width=250, height=None, stale="\x1b[5m"))
    assert "\x1b" not in shown
    for text in (r"\x1b[2Jall\nis well", r"\x1b[3J", r"\x1b[4m", r"\x1b[5m", r"\x1b[7m"):
        assert text in shown
