"""Turns pydantic's errors into faults in an operator's words: where in the file, and what to write there.

Apart from messages that values, tables and checks made, none repeats what was written, unless it stands where
only words of a closed list may: it could be a secret.
"""

import re
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tcpgw.config.schema import Config
from tcpgw.config.table import IsTable, IsWord, keys
from tcpgw.config.values import is_name, type_name, written_size
from tcpgw.errors import Fault

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_attributes_type": "a table",
    "model_type": "a table",
    "string_type": "text",
    "tuple_type": "a list",
}


def faults_of(error: ValidationError, table: dict[str, Any]) -> list[Fault]:
    """List all that is wrong with `table`, the whole file's, which `error` came from."""
    return [_fault(details, table) for details in error.errors() if not _is_consequence(details)]


def _is_consequence(details: ErrorDetails) -> bool:
    # Pydantic counts items after it has checked them, so a list of one faulty item is "too short" as well.
    return details["type"] == "too_short" and bool(details["input"])


def _fault(details: ErrorDetails, table: dict[str, Any]) -> Fault:
    """Walk along pydantic's `loc` through the file and the schema at once.

    The file's place differs from `loc` where pydantic names the member of a union, and where the file says
    something shorter (`route = "redis"` is read as a list of one route).
    """
    path, name = "", ""
    here: Any = table
    kind: Any = Config
    step: Any
    known: list[str] = []
    for step in details["loc"]:
        kind = _given(kind)
        if step in _tags(kind):
            kind = _tags(kind)[step]
            continue
        if step == IsTable.tag and _tags(kind):  # one of several tables: the next step says which
            continue
        if step == "[key]" or not isinstance(here, dict | list):
            break
        path += _written(step, first=not path)
        known = list(keys(kind)) if _is_table(kind) else []
        kind = _inside(kind, step)
        here = here.get(step) if isinstance(here, dict) else here[step]
        if isinstance(step, int) and isinstance(here, dict) and is_name(here.get("name")):
            name = f" ({here['name']})"
    if details["type"].startswith("union_tag"):
        path, known = f"{path}.type", list(_tags(kind))
    return Fault(path + name, _message(details, known))


def _written(step: int | str, *, first: bool) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    key = step if re.fullmatch(r"[A-Za-z0-9_-]+", step) else repr(step)
    return key if first else f".{key}"


def _given(kind: Any) -> Any:
    """The kind of what was written: where it may be left out, what it is if it is not."""
    members = [member for member in _members(kind) if member is not NoneType]
    return members[0] if len(members) == 1 else kind


def _tags(kind: Any) -> dict[Any, Any]:
    """What pydantic calls the tables of a union: what their `type` says, or that of a word and a table."""
    members = _members(kind)
    tables = [member for member in members if _is_table(member)] if len(members) > 1 else []
    return {_tag(table): table for table in tables}


def _members(kind: Any) -> list[Any]:
    """What a union may be, unions within it included; of another kind, that kind alone."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in {Union, UnionType}:
        return [member for inner in get_args(kind) for member in _members(inner)]
    return [kind]


def _tag(table: type[BaseModel]) -> Any:
    typed = table.model_fields.get("type")
    return get_args(typed.annotation)[0] if typed else IsTable.tag


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _inside(kind: Any, step: Any) -> Any:
    if _is_table(kind):
        name = keys(kind).get(step)
        return None if name is None else kind.model_fields[name].annotation
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return arguments[1]
    return arguments[0] if arguments else None


def _message(details: ErrorDetails, known: list[str]) -> str:
    given, context, loc = details["input"], details.get("ctx", {}), details["loc"]
    match details["type"]:
        case "value_error":
            return str(context["error"])
        case "missing":
            return "missing: this key must be given"
        case "extra_forbidden":
            return f"unknown key: {_suggestion(str(loc[-1]), known)}"
        case "tuple_type" if len(loc) == 1:
            return f"must be a list of tables: write [[{loc[0]}]]"
        case "literal_error" if loc[-1] == IsWord.tag:
            return f"must be {context['expected']}, or a table, not {_word(given)}"
        case "literal_error":
            return f"must be {context['expected']}, not {_word(given)}"
        case "union_tag_invalid":
            return f"must be {_choice(known)}, not {_word(given['type'])}"
        case "union_tag_not_found":
            return f"missing: must be {_choice(known)}"
        case "greater_than_equal":
            return f"must be at least {_limit(context['ge'])}"
        case "greater_than":
            return f"must be more than {_limit(context['gt'])}"
        case "less_than_equal":
            return f"must be at most {_limit(context['le'])}"
        case "too_short" | "string_too_short":
            return "must not be empty"
        case known_type if known_type in _EXPECTED:
            return f"must be {_EXPECTED[known_type]}, not {type_name(given)}"
    return details["msg"]


def _suggestion(key: str, known: list[str]) -> str:
    close = get_close_matches(key, known, n=1, cutoff=0.7)
    return f"did you mean {close[0]!r}?" if close else f"known here are {', '.join(known)}"


def _choice(words: list[str]) -> str:
    *others, last = map(repr, words)
    return f"{', '.join(others)} or {last}"


def _word(given: Any) -> str:
    if type(given) is int and abs(given) < 1 << 32:  # of longer ones nobody needs the digits
        return str(given)
    return repr(given) if isinstance(given, str) else type_name(given)


def _limit(limit: float) -> str:
    """Those of whole MiB are sizes."""
    if limit != int(limit):
        return f"{limit:g}"
    whole = int(limit)
    return written_size(whole) if whole and whole % (1 << 20) == 0 else str(whole)
