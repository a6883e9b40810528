"""What a file says of its own origin, in one short block for every door.

`Origin` holds it, `read_origin` reads it out of a file's bytes, `words` says it. It stands beside
the verdict and never goes into it: `beside` puts the two next to each other where they disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from masksim.config import from_plain
from masksim.errors import UsageError
from masksim.provenance import generators
from masksim.provenance.credentials import UNBROKEN, State
from masksim.provenance.metadata import (
    Metadata,
    Statement,
    device_of,
    maker_of,
    plain_metadata,
    read_metadata,
)

__all__ = [
    "CAUTION",
    "COLUMNS",
    "TITLE",
    "Origin",
    "Says",
    "beside",
    "origin_of",
    "origin_of_values",
    "read_origin",
    "words",
]

Says: TypeAlias = Literal["nothing", "generator", "part", "device", "both", "other"]

TITLE = "The file says"
"""What the block is called, everywhere."""

CAUTION = (
    "Such entries are easily forged and easily lost. They are shown beside the verdict, and are "
    "no part of it."
)
"""What all of it is worth: said once, where there is anything to say."""

NOTHING = "The file says nothing of its origin."
"""The summary of most files: many programs and most sites remove what was there."""

COLUMNS: Mapping[str, str] = {
    "says": "str",
    "summary": "str",
    "generator": "str",
    "device": "str",
    "c2pa": "str",
}
"""Fields that make the columns of flat tables."""

MOST_LINES = 6
"""Statements that are shown where there is little room."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What the file says of its origin.

    Attributes
    ----------
    says
        ``"generator"``: a generator made it; ``"part"``: a generator made a part of it;
        ``"device"``: a camera or scanner took it; ``"both"``: a generator made it, and a device is
        named as well; ``"other"``: something else, such as a program; ``"nothing"``.
    summary
        The same in a sentence, with names.
    generator
        The generator that is named; None where none is, or it is not said which one.
    device
        Maker and model of the camera or scanner.
    software
        The program that is named besides.
    c2pa
        State of a C2PA manifest; see `masksim.provenance.metadata.C2pa`.
    checked
        Whether the claim of a generator stands in a manifest that was checked: ``"trusted"`` (and
        its signer is trusted), ``"unbroken"`` (its signer is on no list), ``"broken"``, or
        ``"unchecked"``, as all else in a file is.
    statements
        One a piece of evidence, the weightiest first.
    problems
        What could not be read.
    """

    says: Says = "nothing"
    summary: str = NOTHING
    generator: str | None = None
    device: str | None = None
    software: str | None = None
    c2pa: State = "absent"
    checked: Literal["trusted", "unbroken", "broken", "unchecked"] = "unchecked"
    statements: tuple[Statement, ...] = ()
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain values for JSON."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Origin:
        """Take it back from plain values.

        Parameters
        ----------
        values
            By `to_dict`; further keys are not looked at.

        Raises
        ------
        KeyError, TypeError
            The values do not have that form.
        """
        try:
            return from_plain(cls, {k: values[k] for k in cls.__dataclass_fields__}, "the origin")
        except UsageError as error:
            raise TypeError(str(error)) from error


def read_origin(data: bytes) -> Origin:
    """Read what a file says of its origin.

    Parameters
    ----------
    data
        The bytes of the file.

    Returns
    -------
    Origin
        Never an error, for any bytes; `Origin.problems` tells what could not be read.
    """
    return origin_of(read_metadata(data))


def origin_of_values(values: Mapping[str, Any]) -> Origin:
    """Say anew what plain values of a `Metadata` amount to.

    Parameters
    ----------
    values
        By `dataclasses.asdict`, perhaps through JSON.

    Raises
    ------
    ValueError
        The values do not have that form.
    """
    return origin_of(plain_metadata(values))


def origin_of(found: Metadata) -> Origin:
    """Say what a file's metadata amount to.

    Parameters
    ----------
    found
        From `masksim.provenance.metadata.read_metadata`.

    Returns
    -------
    Origin
    """
    pointed = {statement.points_to for statement in found.statements}
    device = device_of(found)
    made = "generator" in pointed
    partly = made and _partly(found)
    says: Says = "nothing"
    if made:
        says = "part" if partly else ("both" if device else "generator")
    elif pointed & {"camera", "scanner"}:
        says = "device"
    elif found.statements or _entries(found):
        says = "other"
    name = maker_of(found) if made else None
    checked = _checked(found) if made else "unchecked"
    software = found.software or found.creator_tool
    return Origin(
        says,
        _summary(says, name, device, software, checked, pointed, found),
        name,
        device,
        software,
        found.c2pa.state,
        checked,
        found.statements,
        found.problems,
    )


def _partly(found: Metadata) -> bool:
    """Whether all that points to a generator says that it made a part."""
    terms = {*found.source_types, *found.c2pa.source_types}
    synthetic = {term for term in terms if generators.points_of(term) == "generator"}
    return bool(synthetic) and synthetic <= generators.PARTLY and not found.records


def _entries(found: Metadata) -> bool:
    """Whether there is anything at all, though no statement is made of it."""
    return any(
        (found.lens, found.user_comment, found.description, found.artist, found.position,
         found.credit, found.text, found.make, found.model)
    )  # fmt: skip


def _checked(found: Metadata) -> Literal["trusted", "unbroken", "broken", "unchecked"]:
    """Tell how far the claim of a generator was checked: of several, the one best checked."""
    manifest = found.c2pa
    claims = manifest.maker is not None or any(
        generators.points_of(term) == "generator" for term in manifest.source_types
    )
    parents = any(
        i.relationship == "parentOf"
        and any(generators.points_of(term) == "generator" for term in i.source_types)
        for i in manifest.ingredients
    )
    if not (claims or parents) or manifest.state in ("absent", "elsewhere", "not verified"):
        return "unchecked"
    if manifest.state == "trusted":
        return "trusted"
    if manifest.state in UNBROKEN:
        return "unbroken"
    only = not (found.records or found.source_types or found.ai_system or found.ai_label)
    return "broken" if only and manifest.state in ("tampered", "invalid") else "unchecked"


_CLAIM = {
    "trusted": "a signed claim, checked and trusted, that {}",
    "unbroken": "a signed claim that {} (it is unbroken, but its signer is on no list of trust)",
    "broken": "a claim that {}, which does not hold when it is checked",
    "unchecked": "an unchecked claim that {}",
}


def _claim(says: Says, name: str | None, checked: str) -> str:
    made = "made a part of it" if says == "part" else "made it"
    return _CLAIM[checked].format(f"{name or 'a generator'} {made}")


def _summary(
    says: Says,
    name: str | None,
    device: str | None,
    software: str | None,
    checked: str,
    pointed: set[Any],
    found: Metadata,
) -> str:
    if says in ("generator", "part", "both"):
        also = f", and names a device as well ({device})" if device else ""
        return f"The file carries {_claim(says, name, checked)}{also}."
    if says == "device" and device:
        kind = "scanner" if "scanner" in pointed else found.captured_by or "device"
        return f"The file names a {kind}: {device}."
    if says == "device":
        return "The file says that a camera took it."
    if says == "other" and software:
        return f"The file names a program ({software}), and neither a device nor a generator."
    if says == "other" and found.c2pa.state not in ("absent", "elsewhere"):
        return "The file carries a C2PA manifest that names neither a device nor a generator."
    if says == "other":
        return "The file holds a few entries, and names neither a device nor a generator."
    return NOTHING


_FOUND = ("strong evidence", "evidence", "weak evidence")


def beside(level: str, headline: str, generator: str | None, origin: Origin | None) -> str | None:
    """Put verdict and file next to each other where they disagree.

    Parameters
    ----------
    level, headline, generator
        Of the verdict; see `masksim.verdict.Verdict`.
    origin
        None where the file was not asked.

    Returns
    -------
    str or None
        Two sentences, such as "No evidence of a known generator's pattern. But the file carries an
        unchecked claim that ChatGPT made it."; None where they do not disagree, or the verdict is
        none.
    """
    if origin is None:
        return None
    claim = _claim(origin.says, origin.generator, origin.checked)
    claims = origin.says in ("generator", "part", "both")
    if level == "no evidence" and claims:
        return f"{headline}. But the file carries {claim}."
    if level == "fragile" and claims:
        return f"{headline}. The file carries {claim}."
    if level not in _FOUND:
        return None
    if origin.says == "device":
        named = f"names a device ({origin.device})" if origin.device else "says a camera took it"
        return f"{headline}. But the file {named}, and no generator."
    other = (
        claims
        and origin.generator is not None
        and generator is not None
        and generators.contradicts(origin.generator, generator)
    )
    return f"{headline}. But the file carries {claim}." if other else None


def words(origin: Origin, *, most: int = MOST_LINES) -> list[str]:
    """Say what a file says, line by line, without `TITLE`.

    Parameters
    ----------
    origin
        From `read_origin`.
    most
        Statements to give.

    Returns
    -------
    list of str
        The summary, then the evidence, then `CAUTION` where there is anything to be cautious of.
    """
    if origin.says == "nothing" and not origin.problems:
        return [origin.summary]
    lines = [origin.summary, *(statement.text for statement in origin.statements[:most])]
    if (more := len(origin.statements) - most) > 0:
        lines.append(f"{more} more.")
    if origin.problems:
        lines.append(f"Not read: {'; '.join(_first(origin.problems, 3))}.")
    return [*lines, CAUTION]


def _first(items: Sequence[str], count: int) -> list[str]:
    left = len(items) - count
    return [*items[:count], *([f"{left} more"] if left > 0 else [])]
