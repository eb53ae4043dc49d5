"""An rpc listener's codec: where its frames end, and whether it tells requests and answers apart."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, ValidationInfo, field_validator

from tcpgw.config.table import ByForm, IsTable, IsWord, Table

Correlating = Literal["msgpack-rpc", "msgpack-rpc-stream", "thrift-framed"]
Preset = Literal["u32be", "u32le", "u16be", "varint", "brpc", "dubbo", "kafka", "msgpack"]


class Frame(Table):
    """A frame whose header says how long it is: `offset` bytes, the length, and then what it counts."""

    offset: StrictInt = Field(
        default=0, ge=0, le=1024, description="Bytes before the length: a magic number, flags, an id."
    )
    width: Literal[1, 2, 3, 4, 8, "varint"] = Field(
        default=4, description="Bytes of the length, or varint: base 128, as protobuf's delimited messages."
    )
    endian: Literal["big", "little"] = Field(
        default="big", description="The order of the length's bytes; a varint has one alone."
    )
    adjust: StrictInt = Field(
        default=0,
        ge=-1024,
        le=1024,
        description="Added to the length: e.g. the bytes of a header that goes on behind it uncounted.",
    )
    includes_header: StrictBool = Field(
        default=False, description="Whether the length counts from the frame's first byte, itself included."
    )

    @field_validator("endian")
    @classmethod
    def _suits_width(cls, endian: str, info: ValidationInfo) -> str:
        if info.data.get("width") == "varint":
            raise ValueError("take it out: a varint has one order of bytes")
        return endian

    def __str__(self) -> str:
        width = self.width if self.width == "varint" else f"{self.width} bytes"
        return f"(length: {width} at {self.offset})"


class Codec(Table):
    """What an rpc listener speaks: a protocol that the gateway knows, or any other as far as its frames."""

    name: Literal[Correlating, "fifo", "opaque"] = Field(
        description="msgpack-rpc, msgpack-rpc-stream and thrift-framed: requests are balanced one by one. "
        "opaque: each client has a connection to an instance. fifo: so too, and answers come strictly in "
        "order, so that they can be timed."
    )
    frame: Annotated[Annotated[Preset, IsWord] | Annotated[Frame, IsTable], ByForm] | None = Field(
        default=None,
        validate_default=True,
        description="For fifo and opaque: where frames end, by a preset's name or as a table.",
    )

    @field_validator("frame")
    @classmethod
    def _suits_name(cls, frame: Any, info: ValidationInfo) -> Any:
        name = info.data.get("name")
        if name in get_args(Correlating) and frame is not None:
            raise ValueError(f"take it out: {name} has frames of its own")
        if name in {"fifo", "opaque"} and frame is None:
            raise ValueError(
                f'{name} must be told where frames end: write {{ name = "{name}", frame = "u32be" }}'
            )
        return frame

    @property
    def correlates(self) -> bool:
        """Whether it tells which answer is to which request."""
        return self.frame is None

    def __str__(self) -> str:
        return self.name if self.frame is None else f"{self.name} {self.frame}"


def _table_of(codec: Any) -> Any:
    """What a bare word stands for."""
    if not isinstance(codec, str):
        return codec
    if codec in get_args(Preset):
        return {"name": "opaque", "frame": codec}
    if codec in (*get_args(Correlating), "fifo", "opaque"):
        return {"name": codec}
    words = ", ".join(map(repr, (*get_args(Correlating), *get_args(Preset))))
    raise ValueError(f"must be {words} or a table with its name and frame, not {codec!r}")


AnyCodec = Annotated[
    Codec, BeforeValidator(_table_of, json_schema_input_type=Literal[Correlating, Preset] | Codec)
]
