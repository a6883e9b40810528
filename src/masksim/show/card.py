"""A detection as a card for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from masksim.provenance import origin as origins
from masksim.provenance.untrusted_text import escaped
from masksim.show.text import meaning, rarity
from masksim.verdict import format_rate

if TYPE_CHECKING:
    from masksim.results import Detection

__all__ = ["to_html"]

_CARD = "border:1px solid rgba(128,128,128,.5);border-radius:4px;padding:.8em 1em;max-width:44em"
_SMALL = '<div style="font-size:.85em;opacity:.75">'
_CELL = "text-align:left;padding:.15em 1em .15em 0;border:0;background:none"


def to_html(detection: Detection) -> str:
    """Write a detection as a compact card for notebooks.

    Parameters
    ----------
    detection
        From `masksim.detector.Detector.detect`.

    Returns
    -------
    str
        A fragment of HTML in the colours of its surroundings; every text in it is escaped, and
        nothing is loaded or run.
    """
    verdict = detection.verdict
    parts = [
        f'<div style="{_CARD}"><div style="opacity:.75;overflow-wrap:anywhere">'
        f"{escaped(detection.image.name)}</div>"
        '<div style="font-size:1.2em;font-weight:600;margin:.2em 0">'
        f"{escaped(verdict.headline)}</div><div>{escaped(verdict.explanation)}</div>"
    ]
    if verdict.cautions:
        items = "".join(f"<li>{escaped(caution)}</li>" for caution in verdict.cautions)
        parts.append(f'<ul style="margin:.4em 0">{items}</ul>')
    if detection.origin is not None:
        parts.append(_origin_card(detection.origin, detection.beside))
    parts.extend(f"<div>Watermark: {escaped(mark.text)}</div>" for mark in detection.watermarks)
    heads = ("generator", "similarity", "real photos as high", "rarer: longer")
    parts.append('<table style="border-collapse:collapse;margin:.6em 0"><thead><tr>')
    parts.extend(f'<th scope="col" style="{_CELL}">{head}</th>' for head in heads)
    parts.append("</tr></thead><tbody>")
    for score in detection.scores:
        rate, share = "-", 0.0
        if score.false_positive_rate is not None:
            rate = format_rate(score.false_positive_rate, score.sample_size)
            share = rarity(score.false_positive_rate, score.sample_size)
        parts.append(
            f'<tr><th scope="row" style="{_CELL}">{escaped(score.generator)}</th>'
            f'<td style="{_CELL}">{score.similarity:.4f}</td><td style="{_CELL}">{rate}</td>'
            f'<td style="{_CELL}"><div style="width:9em;background:rgba(128,128,128,.3)">'
            f'<div style="width:{100 * share:.0f}%;height:.7em;background:#3b7dc4"></div></div>'
            "</td></tr>"
        )
    parts.append(
        f"</tbody></table>{_SMALL}{escaped(meaning(detection))}"
        f" Detector {escaped(detection.detector)} ({escaped(detection.detector_sha256[:12])})."
        "</div></div>"
    )
    return "".join(parts)


def _origin_card(origin: origins.Origin, beside: str | None) -> str:
    """Write what the file says, set apart from the verdict."""
    first, *rest = origins.words(origin)
    caution = f"{_SMALL}{escaped(rest.pop())}</div>" if rest else ""
    items = "".join(f"<li>{escaped(line)}</li>" for line in rest)
    both = f"<div><strong>{escaped(beside)}</strong></div>" if beside else ""
    return (
        '<div style="border-left:3px solid rgba(128,128,128,.5);padding-left:.8em;margin:.6em 0">'
        f'<div style="font-weight:600">{escaped(origins.TITLE)}</div><div>{escaped(first)}</div>'
        + both
        + (f'<ul style="margin:.2em 0;font-size:.9em">{items}</ul>' if items else "")
        + f"{caution}</div>"
    )
