"""How an rpc listener's codec is written, and what it comes to."""

from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from tcpgw.config.codec import AnyCodec, Codec, Correlating, Frame, Preset
from tcpgw.wire.frames import PRESETS

CODEC: TypeAdapter[Codec] = TypeAdapter(AnyCodec)


@pytest.mark.parametrize("name", get_args(Correlating))
def test_a_correlating_codec_has_frames_of_its_own(name: Any) -> None:
    """Its name is enough, alone or in a table, and frames beside it are refused."""
    codec = CODEC.validate_python(name)
    assert codec == CODEC.validate_python({"name": name}) == Codec(name=name)
    assert codec.correlates
    assert str(codec) == name
    with pytest.raises(ValidationError, match=f"take it out: {name} has frames of its own"):
        CODEC.validate_python({"name": name, "frame": "u32be"})


@pytest.mark.parametrize("preset", get_args(Preset))
def test_the_bare_name_of_frames_is_an_opaque_codec(preset: Any) -> None:
    """`codec = "kafka"` forwards connections whose frames are Kafka's."""
    codec = CODEC.validate_python(preset)
    assert codec == CODEC.validate_python({"name": "opaque", "frame": preset})
    assert (codec.name, codec.frame) == ("opaque", preset)
    assert not codec.correlates
    assert str(codec) == f"opaque {preset}"


def test_the_presets_are_those_that_there_are() -> None:
    """Each preset that may be written can be split, and those that can be split may be written."""
    # msgpack has no length to read; thrift-framed is a codec, whose frames have the same form as u32be.
    assert {*get_args(Preset), "thrift-framed"} == {*PRESETS, "msgpack"}


@pytest.mark.parametrize("name", ["fifo", "opaque"])
def test_other_codecs_must_be_told_their_frames(name: str) -> None:
    """A preset or a table says where frames end; without it nothing could be done."""
    for frame in ("u32be", {"width": 2}):
        codec = CODEC.validate_python({"name": name, "frame": frame})
        assert codec.name == name
        assert not codec.correlates
    for written in (name, {"name": name}):
        with pytest.raises(ValidationError, match=f'{name} must be told .*: write {{ name = "{name}", frame'):
            CODEC.validate_python(written)


def test_a_frame_is_described() -> None:
    """A table describes the length field; what it leaves out is as in u32be."""
    table = {"offset": 12, "width": 8, "endian": "little", "adjust": -12, "includes_header": True}
    codec = CODEC.validate_python({"name": "fifo", "frame": table})
    assert codec.frame == Frame(offset=12, width=8, endian="little", adjust=-12, includes_header=True)
    assert str(codec) == "fifo (length: 8 bytes at 12)"
    assert Frame() == Frame(offset=0, width=4, endian="big", adjust=0, includes_header=False)
    assert str(Frame(width="varint")) == "(length: varint at 0)"


@pytest.mark.parametrize(
    "frame",
    [
        {"width": 5},
        {"width": 0},
        {"width": "4"},
        {"offset": -1},
        {"offset": 1025},
        {"adjust": -1025},
        {"adjust": 1025},
        {"offset": 1.0},
        {"includes_header": 1},
        {"endian": "network"},
        {"width": "varint", "endian": "big"},
        {"magic": "PRPC"},
    ],
)
def test_other_frames_are_refused(frame: dict[str, Any]) -> None:
    """Widths that no length has, headers longer than any known one, and unknown words are refused."""
    with pytest.raises(ValidationError):
        Frame.model_validate(frame)


@pytest.mark.parametrize("codec", ["http", "", 7, None, ["u32be"], {"frame": "u32be"}, {"name": "u32be"}])
def test_other_codecs_are_refused(codec: Any) -> None:
    """What is no codec is refused when the file is read."""
    with pytest.raises(ValidationError):
        CODEC.validate_python(codec)
