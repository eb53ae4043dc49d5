"""Every kind of fault, with the words that an operator gets: the samples under tests/data/invalid."""

from pathlib import Path

import pytest

from tcpgw.config.load import load, loads
from tcpgw.errors import ConfigError

INVALID = Path(__file__).parent.parent / "data" / "invalid"
SAMPLES = sorted(INVALID.glob("*.toml"))


def test_there_are_samples() -> None:
    """The samples are found, so the test of each of them says something."""
    assert len(SAMPLES) >= 50


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
def test_an_invalid_sample_gives_the_faults_it_states(sample: Path) -> None:
    """A sample's faults are those of its `# fault:` lines: all of them, no others, in these words."""
    text = sample.read_text(encoding="utf-8")
    stated = [line.removeprefix("# fault: ") for line in text.splitlines() if line.startswith("# fault: ")]
    assert stated
    with pytest.raises(ConfigError) as caught:
        load(sample)
    assert [str(fault) for fault in caught.value.faults] == stated
    assert str(caught.value) == "\n".join(stated)
    assert "hush" not in str(caught.value)  # what the samples have for literal secrets


def test_a_fault_stands_where_the_file_says_it() -> None:
    """A place inside a value that the file writes shorter is shown as the value's own place."""
    text = """
        service = [{ name = "a", discovery = { type = "static", endpoints = ["10.0.0.1:80"] } }]
        listener = [
            { name = "short", bind = "127.0.0.1:1", route = "b" },
            { name = "long", bind = "127.0.0.1:2", route = [{ service = "b" }] },
        ]
    """
    with pytest.raises(ConfigError) as caught:
        loads(text, Path())
    assert [fault.path for fault in caught.value.faults] == [
        "listener[0].route (short)",
        "listener[1].route[0].service (long)",
    ]


@pytest.mark.parametrize("name", ["token", "auth", "discovery", "type", "agency"])
def test_names_do_not_confuse_the_path(name: str) -> None:
    """A cloud whose name is a word of the schema is found where it is."""
    text = f"""
        cloud = {{ {name} = {{ project_id = "1", auth = {{ type = "agency", agency = 1 }} }} }}
        service = [{{ name = "{name}", discovery = {{ type = "static", endpoints = ["x"], static = 1 }} }}]
        listener = [{{ name = "{name}", bind = "127.0.0.1:1", route = "{name}" }}]
    """
    with pytest.raises(ConfigError) as caught:
        loads(text, Path())
    assert [fault.path for fault in caught.value.faults] == [
        f"cloud.{name}.endpoint",
        f"cloud.{name}.auth.agency",
        f"service[0].discovery.endpoints[0] ({name})",
        f"service[0].discovery.static ({name})",
    ]
