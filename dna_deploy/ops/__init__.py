"""The ops networks are made of, one file each; `parse` reads an op back from its key."""

import dataclasses
import re
from functools import cache
from typing import Any

from dna_deploy.errors import RequestError
from dna_deploy.ops._op import Op
from dna_deploy.plugins import find, names

__all__ = ["Op", "parse"]

_KEY = re.compile(r"(\w+)\((.*)\)")


def parse(key: str) -> Op:
    """The op a key stands for; `parse(op.key) == op`, and no other spelling is one: two rows of a table would be one op."""
    match = _KEY.fullmatch(key)
    if not match or match[1] not in _kinds():
        raise RequestError(f"{key!r} is no op key; expected for example 'conv(hw=224, cin=3, cout=32, kernel=3)'")
    kind, types = _kinds()[match[1]]
    values: dict[str, object] = {}
    try:
        for item in filter(None, match[2].split(", ")):
            name, text = item.split("=")
            values[name] = types[name](text)
        op: Op = kind(**values)
    except (ValueError, KeyError, TypeError):
        raise RequestError(f"{key!r} does not fit {match[1]}({', '.join(types)})") from None
    if op.key != key:
        raise RequestError(f"{key!r} is written {op.key!r}")
    return op


@cache
def _kinds() -> dict[str, tuple[Any, dict[str, type]]]:
    """Every kind of op, by name: its class, and the type of each of its fields."""
    kinds = {name: find("ops", name) for name in names("ops")}
    return {
        name: (kind, {field.name: field.type for field in dataclasses.fields(kind) if isinstance(field.type, type)})
        for name, kind in kinds.items()
    }
