"""The links of a sentence that is quoted in another file: they go on leading where they led in its source.

Files are paths in the workspace, links are spelled as Markdown spells them (a space is %20). What is no relative link
stays as it is: addresses, paths from `/`, code, escaped brackets, references to definitions.
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import quote

from loom.models.builtin.text import TARGET, TITLE

_IMAGE = rf"!\[[^\[\]]*\]\((?:{TARGET}){TITLE}\)"
_LINK = re.compile(
    rf"\\.|`+[^`]*`+"  # nothing in these is a link
    rf"|(?P<image>!?)\[(?P<words>(?:{_IMAGE}|[^\[\]])*)\]\((?P<target>{TARGET})(?P<title>{TITLE})\)"
)
_NOT_RELATIVE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:|/|$")
_PATH = re.compile(r"[^#?]*")
_TO_SPELL = re.compile(r"[\x00-\x20\"#()<>?:\[\\\]`%]")


def moved(text: str, source: str, place: str) -> str:
    """A text of the file `source` as it stands in the file `place`: links lead where they led.

    A link that leads out of the workspace becomes its words, an image that does goes.
    """

    def put(link: re.Match[str]) -> str:
        if link["target"] is None:
            return link[0]
        words = _LINK.sub(put, link["words"])
        end = destination(link["target"], source)
        if end is None:
            return "" if link["image"] else words
        way = link["target"] if _NOT_RELATIVE.match(end) else _way(place, end)
        return f"{link['image']}[{words}]({way}{link['title']})"

    return " ".join(_LINK.sub(put, text).split())


def destinations(text: str, place: str) -> set[str | None]:
    """Where the links and images of a text lead that stands in the file `place`."""
    found: set[str | None] = set()
    for link in _LINK.finditer(text):
        if link["target"] is not None:
            found |= {destination(link["target"], place), *destinations(link["words"], place)}
    return found


def destination(target: str, place: str) -> str | None:
    """Where a link in the file `place` leads: a path from the top of the workspace, with what follows `#` or `?`.

    None when that is outside; what is no relative link leads where it says, and is given back.
    """
    if target.startswith("<"):
        target = target[1:-1]
    if _NOT_RELATIVE.match(target):
        return target
    path, rest = _split(target)
    folder = _spelled(posixpath.dirname(place))
    whole = posixpath.normpath(posixpath.join(folder, _spelled(path, but="%"))) if path else _spelled(place)
    if whole == ".." or whole.startswith("../"):
        return None
    return f"{whole}{'/' if path.endswith('/') else ''}{rest}"


def _way(place: str, end: str) -> str:
    """The relative link in the file `place` that leads to `end`, a destination."""
    path, rest = _split(end)
    way = posixpath.relpath(f"/{path}", f"/{_spelled(posixpath.dirname(place))}")
    return f"{way}{'/' if path.endswith('/') else ''}{rest}"


def _split(link: str) -> tuple[str, str]:
    path = _PATH.match(link)[0]  # type: ignore[index]
    return path, " ".join(link[len(path) :].split()).replace(" ", "%20")


def _spelled(path: str, but: str = "") -> str:
    """A path as Markdown spells it. `but`: a character that is spelled already."""
    return _TO_SPELL.sub(lambda m: m[0] if m[0] == but else quote(m[0], safe=""), path)
