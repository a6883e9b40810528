"""Texts from untrusted files, made fit to be shown: short and printable."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "LONGEST",
    "LOOKED_AT",
    "MOST",
    "clean",
    "decoded",
    "escaped",
    "excerpt",
    "noted",
    "printable",
]

LONGEST = 400
"""Letters of a value that are kept."""

MOST = 24
"""Values of a kind that are kept."""

LOOKED_AT = 1 << 16
"""Letters of a value that are looked at."""

_SPACES = dict.fromkeys(map(ord, "\t\r\n"), " ")


def decoded(data: bytes) -> str:
    """Decode bytes of an unknown code: UTF-8 where they are that, else Latin-1."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def clean(value: Any, longest: int = LONGEST) -> str:
    r"""Make a short printable text of anything.

    Parameters
    ----------
    value
        Bytes are decoded; of anything else its text is taken.
    longest
        Letters that are kept; an ellipsis shows that there were more.

    Returns
    -------
    str
        Control characters are escaped (``\x1b``), line breaks are spaces.
    """
    if isinstance(value, bytes):
        value = decoded(value[:LOOKED_AT])
    text = str(value)[:LOOKED_AT].strip("\0 \t\r\n")
    plain = printable(text[:longest].translate(_SPACES))
    return plain + ("..." if len(text) > longest else "")


def printable(text: str) -> str:
    r"""Replace each character that would steer a terminal by its escape, such as ``\x1b``."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def escaped(value: object) -> str:
    """Escape a text for HTML; what is invisible or turns the line around is shown as its escape."""
    return html.escape(printable(str(value)), quote=True)


def excerpt(text: str, start: int = 0, end: int = 0, longest: int = 100) -> str:
    """Cut out the part of a text that holds what matters.

    Parameters
    ----------
    text
        Of any length.
    start, end
        Where in it that is.
    longest
        Letters that are kept, about.

    Returns
    -------
    str
        Printable; with ellipses where something is left out.
    """
    text = text[:LOOKED_AT]
    if len(text) <= longest:
        return clean(text)
    begin = max(min(start - (longest - (end - start)) // 2, len(text) - longest), 0)
    part = clean(text[begin : begin + longest], longest)
    return ("..." if begin else "") + part + ("..." if begin + longest < len(text) else "")


@contextmanager
def noted(problems: list[str], part: str) -> Iterator[None]:
    """Note what goes wrong with one part: a hostile file makes a parser fail in any way."""
    try:
        yield
    except Exception as error:
        problems.append(f"{part}: cannot be read ({type(error).__name__})")
