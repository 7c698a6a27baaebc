"""YAML that holds data and nothing else, read from bytes that anyone may have written.

What is beyond measure, or builds more than its length says, is refused before any of it is made.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast

import yaml

from compoff.printable import first_line

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["dump_yaml", "load_yaml"]

_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)
"""What PyYAML raises for what is no YAML, or no value of Python's: a number in base 60 may be beyond all floats."""
_MOST_DEPTH = 64  # each nesting of a model's outputs takes up to four; PyYAML takes minutes for thousands
_MOST_DIGITS = 1000
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_LONG_NUMBER = re.compile(f"[-+.0-9].{{{_MOST_DIGITS}}}")


def dump_yaml(content: dict[str, Any]) -> bytes:
    r"""Write data in the order of its keys.

    Args:
        content: What JSON can hold; tuples are written as the lists that they are read back as.

    Returns:
        The YAML, in UTF-8.

    Raises:
        ValueError: It is nested deeper than `load_yaml` reads.

    Examples:
        >>> dump_yaml({"shape": (3, 4)})
        b'shape:\n- 3\n- 4\n'
    """
    plain = json.loads(json.dumps(content))
    deep = _depth(plain)
    if deep > _MOST_DEPTH:
        raise ValueError(f"it is nested {deep} levels deep, at most {_MOST_DEPTH} are read")
    # PyYAML reads line ends of Unicode back as others unless they are escaped, and then escapes all that is not ASCII.
    readable = not _LINE_ENDS.search(json.dumps(plain, ensure_ascii=False))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=readable).encode()


def load_yaml(data: bytes) -> Any:
    """Read data.

    Args:
        data: YAML, in UTF-8.

    Returns:
        What JSON can hold.

    Raises:
        ValueError: It is no YAML, or has what plain data has not: aliases, tags, dates, numbers of more than a thousand
            digits, more than 64 levels.

    Examples:
        >>> load_yaml(b"shape: [3, 4]")
        {'shape': [3, 4]}
    """
    try:
        _require_plain(cast("Iterable[object]", yaml.parse(data)))
        content = yaml.safe_load(data)
        json.dumps(content)  # a date is no plain data either
    except _ERRORS as error:
        raise ValueError(first_line(error)) from error
    return content


def _depth(value: Any) -> int:
    """How deep lists and dicts are nested."""
    if isinstance(value, dict):
        value = list(cast("dict[str, Any]", value).values())
    return 1 + max(map(_depth, cast("list[Any]", value)), default=0) if isinstance(value, list) else 0


def _require_plain(events: Iterable[object]) -> None:
    deep = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise ValueError("it has aliases or tags")
        if isinstance(event, yaml.ScalarEvent) and event.style is None and _LONG_NUMBER.match(event.value):
            raise ValueError(f"it has a number of more than {_MOST_DIGITS} digits")
        deep += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if deep > _MOST_DEPTH:
            raise ValueError(f"it is nested more than {_MOST_DEPTH} levels deep")
