"""YAML that people write, as values that know their line: bounded, and without anything that could not be written back.

Used for loom.yml (loom/core/weave_nodes.py), jobs (loom/spool/schedules.py) and config.yml (loom/spool/config.py).
Enters: text. Stays out: files.
"""

from __future__ import annotations

from typing import Any

from loom.wire.record import record

MAX_NODES = 100_000  # an alias costs nothing to write and is counted as often as it is used
SHOWN_CHARS = 80  # of a value that an error quotes
_MOST_BITS = 256  # of a whole number: more has no use here, and with thousands of digits Python refuses to show it
_HALF = "holds half a surrogate pair, which is no character"


@record
class Node:
    """A value of the file and its line: text, a number, true or false, None, a list of Nodes, a dict of Nodes.

    written   a word as the file has it, without its quotes: `0644` is the number 420 to YAML
    """

    value: Any
    line: int
    written: str = ""


class Unreadable(ValueError):
    """The text is not the YAML we accept; says in which line, counted from 1, and what is wrong there."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def read(text: str) -> Node:
    """The one document in `text`; None for none. Raises Unreadable."""
    import yaml  # here, because few commands read YAML

    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        return Node(None, 1) if root is None else read_part(root, loader)
    except Unreadable:
        raise
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Unreadable(line, f"not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:
        raise Unreadable(1, f"not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise Unreadable(1, "nested too deeply") from None


def read_part(node: Any, loader: Any) -> Node:
    """A node that `loader` has composed, with all below it. Raises Unreadable."""
    return _node(node, loader, [0], ())


def _node(node: Any, loader: Any, count: list[int], above: tuple[Any, ...]) -> Node:
    import yaml

    line = node.start_mark.line + 1
    count[0] += 1
    if count[0] > MAX_NODES:
        raise Unreadable(line, f"more than {MAX_NODES} values")
    if any(node is one for one in above):
        raise Unreadable(line, "an alias makes a value hold itself")
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        return Node([_node(one, loader, count, above) for one in node.value], line)
    if not isinstance(node, yaml.MappingNode):
        return Node(_scalar(node, loader), line, node.value)
    found: dict[str, Node] = {}
    for key_node, value_node in node.value:
        key_line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise Unreadable(key_line, "a key must be a word")
        key = str(key_node.value)
        if not is_writable(key):
            raise Unreadable(key_line, f"the key {shown(key)} {_HALF}")
        if key in found:
            raise Unreadable(key_line, f"{shown(key)} is set twice, first in line {found[key].line}")
        value = _node(value_node, loader, count, above)
        found[key] = Node(value.value, key_line, value.written)
    return Node(found, line)


def _scalar(node: Any, loader: Any) -> Any:
    """The value of one word of the file: one that can be written back, and shown."""
    line = node.start_mark.line + 1
    try:
        value = loader.construct_object(node)
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:  # `!!timestamp x`: the last
        tag = str(node.tag).removeprefix("tag:yaml.org,2002:")
        raise Unreadable(line, f"{shown(node.value)} cannot be read as {tag:.40}: {error!s:.200}") from None
    if isinstance(value, str) and not is_writable(value):
        raise Unreadable(line, f"{shown(value)} {_HALF}")
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise Unreadable(line, f"a number has more than {_MOST_BITS} bits")
    return value


def flat(node: Node) -> Any:
    """A value without its line, where no key takes more than a list of words: what lies deeper is seen as wrong."""
    return [one.value for one in node.value] if isinstance(node.value, list) else node.value


def is_writable(text: str) -> bool:
    """Whether it can be said in UTF-8: an escape such as "\\ud800" makes half a character, which nothing could keep."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """A value as an error quotes it: in a few words, however large it is."""
    match value:
        case None:
            return "empty"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case bool():
            return "true" if value else "false"
        case str() | bytes():
            value = value[:SHOWN_CHARS]  # before it is quoted: a file may hold megabytes
    return f"{value!r:.{SHOWN_CHARS}}"
