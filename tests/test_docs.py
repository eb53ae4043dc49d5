"""What README and docs/ say: configurations that load, lists that are whole, links that lead somewhere."""

import ast
import re
from pathlib import Path

import pytest

from tcpgw.access.keys import parse
from tcpgw.alerts.rules import KINDS, Kind, rules
from tcpgw.config.alerts import Alerts, InstancesBelow, P99Latency
from tcpgw.config.load import loads
from tcpgw.errors import Code
from tcpgw.observe.metrics import ALL
from tcpgw.relay.reasons import Reason

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_ALL_ON = Alerts(instances_below=InstancesBelow(threshold=2), p99_latency=P99Latency(threshold=1))
_TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

# How an event is logged.
_SAYS = {"debug", "info", "warning", "error", "exception", "critical"}

# What blocks that show a part only stand in.
_CLOUD = """
[cloud.modelarts]
endpoint = "https://modelarts.example.com"
project_id = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
auth = { type = "token", token = "t" }
"""
_SERVICE = '[[service]]\nname = "{}"\ndiscovery = {{ type = "static", endpoints = ["10.0.1.11:8080"] }}\n'
_LISTENER = '[[listener]]\nname = "l"\nbind = "0.0.0.0:9000"\nroute = "ranker"\nmode = "rpc"\n'


def blocks(language: str) -> list[str]:
    """The blocks of code in that language, of all pages."""
    text = "\n".join(page.read_text() for page in PAGES)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def whole(block: str) -> str:
    """A block with what it leaves out."""
    if '"modelarts"' in block and "[cloud." not in block:
        block = _CLOUD + block
    if "[listener.access.subjects]" in block:
        block = f'[listener.access]\napi_keys = "/k"\n{block}'
    if "[[listener]]" not in block:
        block = _LISTENER + block
    named = set(re.findall(r'^name = "(.*)"', block, re.MULTILINE))
    missing = [name for name in ("ranker", "resnet") if name not in named]
    return block + "".join(map(_SERVICE.format, missing))


def test_there_are_examples() -> None:
    """Otherwise the tests of each would pass whatever they say."""
    assert len(blocks("toml")) >= 5
    assert len(blocks("python")) >= 4


@pytest.mark.parametrize("block", blocks("toml"))
def test_each_configuration_is_valid(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there to be copied is taken as it is, up to the files that it names."""
    monkeypatch.setenv("TCPGW_IAM_PASSWORD", "secret")
    monkeypatch.setenv("TCPGW_ON_CALL_TOKEN", "secret")
    monkeypatch.setenv("TCPGW_ON_CALL_URL", "https://chat.example.com/hook?key=secret")
    monkeypatch.setenv("TCPGW_ADMIN_TOKEN", "0123456789abcdef")
    assert loads(whole(block), Path()).listener


@pytest.mark.parametrize("block", blocks("python"))
def test_each_program_is_python(block: str) -> None:
    """No example has a mistake in its form; those that end with a colon go on in the reader's program."""
    assert compile(
        block + ("    pass\n" if block.endswith(":\n") else ""), "README", "exec", _TOP_LEVEL_AWAIT
    )


def test_the_line_of_a_key_is_one() -> None:
    """The key file in README can be read."""
    lines = [block for block in blocks("text") if " sha256:" in block and "…" not in block]
    assert [key.grant.subject for key in parse("".join(lines))] == ["alice"]


def test_lists_are_whole() -> None:
    """Each reason for an end, and each code of an error, is told of."""
    text = "\n".join(page.read_text() for page in PAGES)
    assert [one.value for one in (*Reason, *Code) if f"`{one.value}`" not in text] == []


def test_the_metrics_are_whole() -> None:
    """Each stands in the table with its labels and its help."""
    text = (ROOT / "docs" / "monitoring.md").read_text()
    rows = [
        f"| `{metric.name}` | {' '.join(f'`{label}`' for label in metric.labels)} | {metric.help}"
        for metric in ALL
    ]
    assert [row for row in rows if row not in text] == []


def logged() -> tuple[set[str], set[str]]:
    """The events that are given to a log in the gateway's code, and all texts in it: some get there later."""
    events, texts = set[str](), set[str]()
    for file in (ROOT / "tcpgw").rglob("*.py"):
        if "service" in file.relative_to(ROOT).parts:  # a library of instances: its log is theirs
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
            match node:
                case ast.Call(
                    func=ast.Attribute(attr=how, value=to), args=[ast.Constant(value=str(event)), *_]
                ):
                    if how in _SAYS and ast.unparse(to) in {"log", "self._log"}:
                        events.add(event)
    return events, texts


def test_the_events_are_whole() -> None:
    """Each that is logged stands in the lists of docs/logs.md, and each of these is logged."""
    page = (ROOT / "docs" / "logs.md").read_text()
    of_clients, of_gateway = (
        re.split(rf"^## {heading}\n(.*?)^## ", page, flags=re.DOTALL | re.MULTILINE)[1]
        for heading in ("Lines about clients", "Lines about the gateway")
    )
    listed = {
        *re.findall(r"^\| `(\w+)` \| (?:info|warning|error)", of_clients, re.MULTILINE),
        *re.findall(r"`(\w+)`", "".join(re.findall(r"^\| \w.*", of_gateway, re.MULTILINE))),
    }
    events, texts = logged()
    assert len(events) > 50
    assert events - listed == set()
    assert listed - texts == set()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.key)
def test_the_rules_are_whole(kind: Kind) -> None:
    """Each stands in the table with its alert's name and its severity."""
    (row,) = re.findall(rf"^\| `{kind.key}` \|.*", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    (rule,) = [rule for rule in rules(_ALL_ON) if rule.kind is kind]
    assert rule.terms is not None
    assert (cells[1], cells[-1]) == (f"`{kind.alert}`", rule.terms.severity)


def anchors(page: Path) -> set[str]:
    headings = re.findall("^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Those to other pages here, and to headings."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text())
    assert links
    for path, anchor in links:
        target = (page.parent / path) if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), anchor
