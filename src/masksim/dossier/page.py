"""The page of a filed report: plain data and pictures -> one HTML file, readable without scripts.

A pure function of what is embedded in the page itself, so that whoever checks a report can make
the page again and compare. Every text from outside is escaped; the file is ASCII throughout, and
nothing in it is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from masksim.provenance import origin as origins
from masksim.provenance.untrusted_text import escaped as _e
from masksim.show.colours import diverging_colours
from masksim.show.text import MEANING, UNCALIBRATED, channel_words, rarity, window_words
from masksim.verdict import SURVIVING, format_rate, telling

__all__ = ["SEAL", "UnreadableError", "embedded", "render", "seal_of"]

SEAL = re.compile(rb'<code id="masksim-seal">([0-9a-f]{64})</code>')
"""Where the seal stands: SHA-256 of the file with zeros in its place."""

_DATA = re.compile(
    rb'<script type="application/json" id="masksim-report">\n(.*)\n</script>', re.DOTALL
)
_PICTURE = re.compile(
    rb'data-picture="([\w-]+)" (?:src|href)="data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]*)"'
)
_OPEN_SEAL = "0" * 64

_TRAITS: Mapping[str, str] = {
    "energy": "how strong the finest noise is, on a logarithmic scale",
    "sharpness": "how much fine detail there is, on a logarithmic scale; enlarged images have less",
    "chroma": "how colourful the image is; 0 is greyscale",
    "brightness": "mean brightness, 0 to 255",
    "flat": "share of perfectly flat pixels",
    "quality": "estimated JPEG quality",
    "distance": "how unlike typical photos the spectrum is, on a logarithmic scale",
}


class UnreadableError(ValueError):
    """The file is no report, or its embedded data cannot be read."""


def render(data: Mapping[str, Any], pictures: Mapping[str, bytes]) -> bytes:
    """Write the page, sealed.

    Parameters
    ----------
    data
        As `masksim.dossier.build` gathers it: plain values.
    pictures
        PNG or JPEG by name, as `data` names them.

    Returns
    -------
    bytes
        HTML in ASCII.

    Raises
    ------
    KeyError, TypeError, ValueError
        The data do not have the form of a report.
    """
    text = _page(data, pictures)
    # References for all letters beyond ASCII: no program on the way can mistake the encoding.
    page = text.encode("ascii", "xmlcharrefreplace")
    seal = seal_of(page)
    place = SEAL.search(page)
    assert place is not None  # `seal_of` has found it
    return page[: place.start(1)] + seal.encode() + page[place.end(1) :]


def seal_of(page: bytes) -> str:
    """SHA-256 of a page whose seal is replaced by zeros.

    Raises
    ------
    UnreadableError
        The page has no seal, or several.
    """
    places = list(SEAL.finditer(page))
    if len(places) != 1:
        raise UnreadableError(f"a report has one seal, this file {len(places)}")
    start, end = places[0].span(1)
    return hashlib.sha256(page[:start] + _OPEN_SEAL.encode() + page[end:]).hexdigest()


def embedded(page: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Take the data and the pictures out of a page.

    Raises
    ------
    UnreadableError
        They are not there or damaged.
    """
    blocks = _DATA.findall(page)
    if len(blocks) != 1:
        raise UnreadableError(f"a report has one block of data, this file {len(blocks)}")
    try:
        data = json.loads(blocks[0])
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"the block of data is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UnreadableError("the block of data is no object")
    pictures: dict[str, bytes] = {}
    for name, body in _PICTURE.findall(page):
        key = name.decode()
        if key in pictures:
            raise UnreadableError(f"two pictures are called {key}")
        try:
            pictures[key] = base64.b64decode(body, validate=True)
        except ValueError as error:
            raise UnreadableError(f"the picture {key} is not base64: {error}") from error
    return data, pictures


# --------------------------------------------------------------------------------------- parts


def _json_block(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # "<" and "&" in a string of JSON can be written as escapes: nothing here can end the block.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _uri(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _img(name: str, pictures: Mapping[str, bytes], alt: str, width: int, height: int) -> str:
    return (
        f'<img data-picture="{_e(name)}" src="{_uri(pictures[name])}" '
        f'width="{int(width)}" height="{int(height)}" alt="{_e(alt)}">'
    )


def _rows(pairs: Iterable[tuple[str, str]]) -> str:
    """Rows of a table of names and values; the values are HTML."""
    return "".join(f'<tr><th scope="row">{_e(k)}</th><td>{v}</td></tr>' for k, v in pairs)


def _facts(caption: str, pairs: Iterable[tuple[str, str]]) -> str:
    return (
        f'<div class="wide"><table class="facts"><caption>{_e(caption)}</caption>'
        f"<tbody>{_rows(pairs)}</tbody></table></div>"
    )


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Draw a table with a row of headings; the first cell of each row is its heading."""
    head = "".join(f'<th scope="col">{_e(h)}</th>' for h in heads)
    body = "".join(
        f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{c}</td>" for c in rest) + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="wide"><table><caption>{_e(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _folded(title: str, body: str, kind: str = "") -> str:
    """Fold a part of the annex in; an empty one is left out."""
    kind = f' class="{kind}"' if kind else ""
    return f"<details{kind}><summary>{_e(title)}</summary>{body}</details>" if body else ""


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_e(item)}</li>" for item in items) + "</ul>"


def _percent(rate: float) -> str:
    """Write a share as HTML."""
    return f"{100 * rate:.2g}&nbsp;%" if rate < 0.995 else "100&nbsp;%"


def _rate(rate: float, n: int | None) -> str:
    return _kept(format_rate(rate, n))


def _kept(text: str) -> str:
    """Escape a text, with no line break between a number and its sign."""
    return _e(text).replace(" %", "&nbsp;%")


# ---------------------------------------------------------------------------------------- page


def _page(data: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    detection = data["detection"]
    name = detection["image"]["name"]
    shown = _telling(data)
    sections = [
        _head(data, pictures),
        _why(data, pictures, shown),
        '<section class="annex" aria-label="Details">',
        _folded("What this does and does not mean", _meaning(data)),
        _folded("Does it hold after small changes of the image?", _stability(detection)),
        _folded("All generators", _generators(data)),
        _folded("Maps and numbers of each generator", _maps(data, pictures, shown), "maps"),
        _folded("Where in the image", _windows(data, pictures)),
        _folded("The file", _file(data)),
        _folded("Everything that the file says of its origin", _origin(data)),
        _folded("What this report was made with", _making(data)),
        "</section>",
        _check(data),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Not even a page with a mistake in it may run or load anything.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Report on {_e(name)} - masksim</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<main>\n{chr(10).join(filter(None, sections))}\n</main>\n"
        f'<script type="application/json" id="masksim-report">\n{_json_block(data)}\n</script>\n'
        "</body>\n</html>\n"
    )


def _head(data: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    detection, shown = data["detection"], data["image"]
    verdict, facts = detection["verdict"], detection["image"]
    level = verdict["level"]
    turned = (
        f" It is shown turned, as viewers do (EXIF orientation {facts['orientation']}); the pixels "
        "were analysed as they are stored."
        if facts["orientation"] != 1
        else ""
    )
    smaller = (
        f"A copy, reduced to {shown['width']} x {shown['height']} pixels; analysed was the file "
        f"itself, {facts['width']} x {facts['height']}."
        if shown["reduced"]
        else f"A copy of the image, {facts['width']} x {facts['height']} pixels."
    )
    picture = _img(
        "image", pictures, f"The analysed image, {facts['name']}", shown["width"], shown["height"]
    )
    rated = verdict["false_positive_rate"] is not None
    return (
        f'<header><p class="kind">Report on one image &middot; masksim</p>'
        f"<h1>{_e(facts['name'])}</h1>"
        f'<p class="when">Made {_e(data["created"])} by masksim {_e(data["versions"]["masksim"])}'
        f" with the detector {_e(detection['detector']['name'])}.</p></header>"
        f'<div class="top"><figure class="photo">{picture}<figcaption>{_e(smaller + turned)}'
        f"</figcaption></figure>"
        f'<section class="verdict {_e(level.replace(" ", "-"))}" aria-labelledby="verdict">'
        f'<p class="kind">Verdict</p><h2 id="verdict">{_e(verdict["headline"])}</h2>'
        f"{_verdict(verdict)}"
        f'<p class="soft">{_e(_NOT_MEANT if rated else UNCALIBRATED)}</p></section>'
        f"{_said(detection['origin'])}{_watermarks(detection.get('watermarks', ()))}</div>"
    )


_NOT_MEANT = (
    "This is not the probability that the image is fake, and finding no evidence does not prove "
    "that it is a photo."
)


def _watermarks(marks: Sequence[Mapping[str, Any]]) -> str:
    """Known open watermarks in the pixels, each in a sentence; nothing where there is none."""
    if not marks:
        return ""
    lines = "".join(f"<p>{_e(mark['text'])}</p>" for mark in marks)
    return (
        '<section class="said" aria-labelledby="watermark">'
        f'<p class="kind" id="watermark">Watermark</p>{lines}</section>'
    )


def _said(values: Mapping[str, Any] | None) -> str:
    """Draw what the file says, beside the verdict; the whole of it stands further down."""
    if values is None:
        return ""
    first, *rest = origins.words(origins.Origin.from_dict(values), most=3)
    both = f"<p><strong>{_e(values['beside'])}</strong></p>" if values["beside"] else ""
    caution = f'<p class="soft">{_e(rest.pop())}</p>' if rest else ""
    return (
        f'<section class="said" aria-labelledby="said"><p class="kind">{origins.TITLE}</p>'
        f'<h2 id="said">{_e(first)}</h2>{both}{_list(rest) if rest else ""}{caution}</section>'
    )


def _verdict(verdict: Mapping[str, Any]) -> str:
    parts = [f"<p>{_kept(verdict['explanation'])}</p>"]
    if verdict["cautions"]:
        parts.append(_list(verdict["cautions"]))
    if (ratio := verdict["likelihood_ratio"]) is not None:
        parts.append(
            f"<p>Likelihood ratio {ratio['value']:.2g} (the data support {ratio['low']:.2g} to "
            f"{ratio['high']:.2g}): {_e(ratio['words'])}.</p>"
        )
    return "".join(parts)


def _meaning(data: Mapping[str, Any]) -> str:
    verdict = data["detection"]["verdict"]
    n = len(data["detection"]["scores"])
    items = [
        "The rate is a false-positive rate: how often a real photo looks like this to the "
        "detector. It is not the probability that this image is fake, for that depends on how many "
        "of the images in question are.",
        "Finding no evidence does not prove that the image is a photo: the generator may be "
        f"unknown to the detector (it knows {n}), or its pattern lost by compression, resizing, "
        "filters, screenshots or printing.",
        "The image was judged as a whole: a small generated part in a photo can go unseen.",
        "The rate holds for photos like those it was measured on.",
    ]
    parts = [_list(items)]
    if verdict["sample_size"]:
        stratum = "" if verdict["stratum"] == "all" else f": {verdict['stratum']}"
        parts.append(
            f"<p>Measured on {int(verdict['sample_size'])} {_measured_on(verdict)} from "
            f"{int(verdict['sources'])} sources{_e(stratum)}.</p>"
        )
    named = verdict["stratum"].split()
    words = [f"{trait}: {what}." for trait, what in _TRAITS.items() if trait in named]
    if words:
        parts.append(f"<p>What the words for this kind of photos mean:</p>{_list(words)}")
    return "".join(parts)


def _measured_on(verdict: Mapping[str, Any]) -> str:
    """Say whether each of the photos counts once or in several copies."""
    return "copies of real photos" if "copies of" in verdict["kind"] else "real photos"


def _stability(detection: Mapping[str, Any]) -> str:
    verdict = detection["verdict"]
    if not verdict["stability"]:
        return ""
    rows = [(_e(name), _rate(rate, None)) for name, rate in verdict["stability"].items()]
    return (
        "<p>The image was changed a little, and the rate measured again. Evidence should last: "
        f"where a change lifts the rate above {_rate(SURVIVING, None)}, the largest is given.</p>"
        + _table("Rate after each small change", ("Change", "Real photos as high"), rows)
    )


def _generators(data: Mapping[str, Any]) -> str:
    detection = data["detection"]
    rows = []
    for score in detection["scores"]:
        rate, n = score["false_positive_rate"], score["sample_size"]
        rows.append(
            (
                _e(score["generator"]),
                f"{score['similarity']:.4f}",
                "not measured" if rate is None else _rate(rate, n),
                "" if rate is None else _bar(rate, n),
                str(int(n)),
            )
        )
    rated = any(score["false_positive_rate"] is not None for score in detection["scores"])
    meaning = f"; the rate says how rare it is. {_e(MEANING)}" if rated else f". {_e(UNCALIBRATED)}"
    return (
        "<p>Similarity is between -1 and 1: how alike the image's spectrum is to the generator's "
        f"pattern. By itself it says little{meaning}</p>"
        + _table(
            "Each generator, the most telling first",
            ("Generator", "Similarity", "Real photos as high", "Rarer: longer", "Photos"),
            rows,
        )
    )


def _bar(rate: float, n: int) -> str:
    """Draw a bar on a logarithmic scale: full where no photo of the sample scores as high."""
    return (
        f'<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="rail" width="100" height="8"/>'
        f'<rect class="fill" width="{100 * rarity(rate, n):.1f}" height="8"/></svg>'
    )


# ---------------------------------------------------------------------------------------- maps


def _telling(data: Mapping[str, Any]) -> list[int]:
    """Which generators' maps stand on the first screen, of those that are drawn."""
    detection = data["detection"]
    rates = [score["false_positive_rate"] for score in detection["scores"]]
    shown = range(telling(detection["verdict"]["level"], rates))
    return [k for k in shown if data["maps"][k]["map"] is not None]


def _why(data: Mapping[str, Any], pictures: Mapping[str, bytes], shown: Sequence[int]) -> str:
    """Draw what counted, for the generators that matter."""
    if not shown:
        return ""
    cards = "".join(
        f'<div class="card">{_map(data["maps"][k], pictures)}<div><h3>{_matched(data, k)}</h3>'
        f"{_marks(data['maps'][k])}</div></div>"
        for k in shown
    )
    return (
        '<section class="why" aria-labelledby="why"><h2 id="why">What counted</h2>'
        "<p>Generators leave faint regular patterns in the finest noise of an image. A map shows "
        "them from coarse ones in the middle to fine ones at the edges: red where this image has "
        "what the generator's images have, blue where it has not. A spot and its mirror image are "
        f"one pattern.</p>{cards}</section>"
    )


def _matched(data: Mapping[str, Any], k: int) -> str:
    score = data["detection"]["scores"][k]
    rate = score["false_positive_rate"]
    text = f"similarity {score['similarity']:.4f}"
    if rate is not None:
        text = f"{_rate(rate, score['sample_size'])} of real photos match it as well"
    return f'{_e(score["generator"])} <span class="soft">{text}</span>'


def _maps(data: Mapping[str, Any], pictures: Mapping[str, bytes], shown: Sequence[int]) -> str:
    """Draw the maps of the other generators, and what each channel added for all of them."""
    parts = [_legend()]
    if any(panels := [p["panels"] for item in data["maps"] for p in item["planes"]]):
        parts.append(_READING)
    for k, item in enumerate(data["maps"]):
        body = ""
        if item["map"] is not None and k not in shown:
            body = f'<div class="card">{_map(item, pictures)}<div>{_marks(item)}</div></div>'
        planes = _planes(item, pictures) if any(panels) else ""
        parts.append(
            f"<details><summary>{_matched(data, k)}</summary>{body}{_numbers(item)}{planes}"
            "</details>"
        )
    return "".join(parts)


_READING = (
    "<p>Of single channels there are three pictures each. Left: what each frequency added to the "
    "similarity, red raised it, blue lowered it. Middle: the pattern that was learned from the "
    "generator's images, red where power speaks for it, blue where against it. Right: this image's "
    "own spectrum, red where there is more power, blue where less.</p>"
)


def _marks(item: Mapping[str, Any]) -> str:
    marks = item["marks"]
    if not marks:
        return "<p>Nothing raised the similarity.</p>"
    total = sum(mark["share"] for mark in marks)
    spread = (
        f"What speaks for it is spread over many patterns; these make up {_percent(total)} of it:"
        if total < 0.5
        else f"A few patterns carry most of what speaks for it, {_percent(total)}:"
    )
    items = "".join(f"<li>{_e(mark['words'])} ({_percent(mark['share'])})</li>" for mark in marks)
    return f"<p>{spread}</p><ol>{items}</ol>"


def _planes(item: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    parts = []
    for plane in item["planes"]:
        if not plane["panels"]:
            continue
        figures = "".join(
            _panel(panel, plane, pictures, item["generator"]) for panel in plane["panels"]
        )
        parts.append(
            f'<div class="plane"><h3>{_e(channel_words(plane["name"]))} '
            f'<span class="soft">adds {plane["sum"]:+.4f} to the similarity</span></h3>'
            f'<div class="panels">{figures}</div></div>'
        )
    return "".join(parts)


_TITLES = {
    "contribution": ("What each frequency adds", "red raises the similarity, blue lowers it"),
    "reference": ("The generator's pattern", "red: power speaks for it, blue: against it"),
    "spectrum": ("This image's spectrum", "red: more power than in the middle of the scale"),
}
_AT, _SIDE = (38, 8), 176  # of a panel's picture in its drawing


def _square(picture: str, pictures: Mapping[str, bytes]) -> str:
    (x, y), side = _AT, _SIDE
    return (
        f'<image data-picture="{_e(picture)}" href="{_uri(pictures[picture])}" '
        f'x="{x}" y="{y}" width="{side}" height="{side}" preserveAspectRatio="none"/>'
        f'<rect class="frame" x="{x}" y="{y}" width="{side}" height="{side}"/>'
    )


def _ticks(across: Sequence[tuple[float, str]], down: Sequence[tuple[float, str]]) -> str:
    """Write along both axes: a place in [-1, 1], and a text."""
    (x0, y0), side = _AT, _SIDE
    parts = []
    for place, text in across:
        x = x0 + (place + 1) / 2 * side
        parts.append(
            f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{y0 + side}" y2="{y0 + side + 4}"/>'
            f'<text x="{x:.1f}" y="{y0 + side + 15}" text-anchor="middle">{text}</text>'
        )
    for place, text in down:
        y = y0 + (place + 1) / 2 * side
        parts.append(
            f'<line class="tick" x1="{x0 - 4}" x2="{x0}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{x0 - 6}" y="{y + 3:.1f}" text-anchor="end">{text}</text>'
        )
    return "".join(parts)


def _unit(text: str) -> str:
    x, y = _AT[0] + _SIDE / 2, _AT[1] + _SIDE + 29
    return f'<text x="{x}" y="{y}" text-anchor="middle">{text}</text>'


_PERIODS = tuple((sign * 2 / n, str(n)) for n in (2, 4, 8) for sign in (-1, 1))


def _map(item: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Draw a generator's map of all channels, with its marks."""
    (x0, y0), side = _AT, _SIDE
    parts = [
        _square(item["map"]["picture"], pictures),
        _ticks(_PERIODS, _PERIODS),
        _unit("repeating every &#8230; pixels"),
    ]
    for number, mark in enumerate(item["marks"], 1):
        x = x0 + (2 * mark["fx"] + 1) / 2 * side
        y = y0 + (2 * mark["fy"] + 1) / 2 * side
        left = x > x0 + side - 18  # inside the map, whatever edge the mark is at
        parts.append(
            f'<circle class="halo" cx="{x:.1f}" cy="{y:.1f}" r="7"/>'
            f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="7"/>'
            f'<text class="number" x="{x + (-10 if left else 10):.1f}" y="{y + 4:.1f}" '
            f'text-anchor="{"end" if left else "start"}">{number}</text>'
        )
    marked = "; ".join(f"{k}: {mark['words']}" for k, mark in enumerate(item["marks"], 1))
    alt = f"What counted for {item['generator']}. Marked: {marked or 'nothing'}."
    return (
        f'<figure><svg class="spectrum" viewBox="0 0 228 218" role="img" aria-label="{_e(alt)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _panel(
    panel: Mapping[str, Any],
    plane: Mapping[str, Any],
    pictures: Mapping[str, bytes],
    generator: str,
) -> str:
    title, legend = _TITLES[panel["kind"]]
    places = (-1.0, -0.5, 0.0, 0.5, 1.0)
    across, down = (
        [(place, f"{place * plane['end'][axis]:.4g}") for place in places] for axis in ("fx", "fy")
    )
    drawn = _square(panel["picture"], pictures) + _ticks(across, down) + _unit("cycles/pixel")
    alt = f"{title} for {generator}, {channel_words(plane['name'])}: {legend}."
    return (
        f'<figure><svg class="spectrum" viewBox="0 0 228 218" role="img" aria-label="{_e(alt)}">'
        f"{drawn}</svg><figcaption><strong>{title}</strong>; white "
        f"{panel['centre']:.2g}, full colour &plusmn;{panel['limit']:.2g}</figcaption></figure>"
    )


def _legend() -> str:
    return (
        '<p class="legend"><span>lower</span><span class="scale" role="img" '
        'aria-label="Colours from blue, below, over white to red, above"></span>'
        "<span>higher</span></p>"
    )


def _numbers(item: Mapping[str, Any]) -> str:
    rows = [(_e(channel_words(p["name"])), f"{p['sum']:+.4f}") for p in item["planes"]]
    return (
        "<p>The noise is taken out of the image in several ways (after the comma), from brightness "
        "and from colour. Together they add up to the similarity.</p>"
        + _table(
            f"Fineness: what frequencies added to {item['generator']}",
            ("Pattern repeats every", "Added"),
            [(_e(band["words"]), f"{band['sum']:+.4f}") for band in item["bands"]],
        )
        + _table(f"Channels of {item['generator']}", ("Channel", "Added"), rows)
    )


# ------------------------------------------------------------------------------------- windows


def _windows(data: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    found = data["windows"]
    if found is None:
        return (
            "<p>The image has room for one window only, so no map over the image can be drawn.</p>"
        )
    generator, limit = found["generator"], found["limit"]
    alt = (
        f"The image in grey with its windows coloured by their similarity to {generator}; the "
        "numbers stand in the table below."
    )
    picture = _img("windows", pictures, alt, found["width"], found["height"])
    parts = [
        f"<p>Similarity to <strong>{_e(generator)}</strong>, the most telling generator, window by "
        "window. Frames with a full line are the windows that the verdict rests on. "
        "<strong>None of these values is calibrated</strong>: rates were measured on the verdict's "
        "windows together, so a single window says little, and one outside the middle of the image "
        "less. A strong colour is no proof that this part was made or changed.</p>"
        f'<figure class="photo where">{picture}<figcaption>Colours end at {-limit:+.3f} (blue) and '
        f"{limit:+.3f} (red); white is 0.</figcaption></figure>{_legend()}"
    ]
    rows = [
        (f"{w['x']}, {w['y']}", f"{w['width']} x {w['height']}", f"{w['similarity']:+.4f}", used)
        for key, used in (("analysed", "yes"), ("grid", "no, not calibrated"))
        for w in found[key]
    ]
    parts.append(
        "<details><summary>The numbers</summary>"
        + _table(
            "Windows, in pixels of the image as stored",
            ("Left, top", "Size", "Similarity", "Part of the verdict"),
            rows,
        )
        + "</details>"
    )
    return "".join(parts)


# ----------------------------------------------------------------------------- file and origin


def _file(data: Mapping[str, Any]) -> str:
    facts = data["detection"]["image"]
    windows = data["detection"]["windows"]
    pairs = [
        ("Name", _e(facts["name"])),
        (
            "SHA-256" if facts["sha256_of"] == "file" else "SHA-256 of the pixels",
            f"<code>{_e(facts['sha256'])}</code>",
        ),
        ("Format", f"{_e(facts['format'])}, stored as {_e(facts['mode'])}"),
        ("Size", f"{facts['width']} x {facts['height']} pixels, {facts['n_bytes']:,} bytes"),
    ]
    if facts["jpeg_quality"] is not None:
        pairs.append(("JPEG quality", f"about {facts['jpeg_quality']} of 100"))
    if facts["jpeg_subsampling"] is not None:
        pairs.append(("Chroma subsampling", _e(facts["jpeg_subsampling"])))
    if facts["frames"] > 1:
        pairs.append(("Frames", str(int(facts["frames"]))))
    pairs.append(("Colour profile", "there, ignored" if facts["icc_profile"] else "none"))
    pairs.append(("Done to the pixels", _e(", ".join(facts["treatments"]) or "nothing")))
    pairs.append(("Analysed", _e(window_words(windows))))
    return _facts("Facts of the file", pairs)


_NAMES = (
    ("make", "Make (EXIF)"),
    ("model", "Model (EXIF)"),
    ("lens", "Lens (EXIF)"),
    ("software", "Software (EXIF)"),
    ("taken", "Taken or digitised (EXIF, the device's clock)"),
    ("changed", "File changed (EXIF)"),
    ("captured_by", "Kind of device (EXIF)"),
    ("user_comment", "Comment (EXIF)"),
    ("description", "Description (EXIF)"),
    ("artist", "Artist (EXIF)"),
    ("creator_tool", "Creator tool (XMP, IPTC)"),
    ("credit", "Credit (XMP, IPTC)"),
    ("ai_system", "AI system used (XMP)"),
    ("ai_system_version", "AI system's version (XMP)"),
    ("ai_prompt", "AI prompt (XMP)"),
    ("ai_prompt_writer", "Writer of the AI prompt (XMP)"),
    ("ai_label", "Label for generated content (AIGC)"),
)


def _origin(data: Mapping[str, Any]) -> str:
    found = data["metadata"]
    pairs = [(label, _e(found[key])) for key, label in _NAMES if found[key]]
    if found["position"]:
        pairs.append(("Coordinates (EXIF)", "there, not shown"))
    if found["source_types"]:
        pairs.append(("Digital source type (XMP)", _e(", ".join(found["source_types"]))))
    pairs += [(f"Text: {key}", _e(value)) for key, value in found["text"]]
    c2pa = found["c2pa"]
    if c2pa["state"] != "absent":
        pairs.append(("C2PA manifest", _e(c2pa["state"])))
        for key, label in (("claim_generator", "written by"), ("signer", "signed by"),
                           ("signed", "signed at"), ("maker", "generator named"),
                           ("location", "stands at")):  # fmt: skip
            if c2pa[key]:
                pairs.append((f"C2PA: {label}", _e(c2pa[key])))
        if c2pa["actions"]:
            pairs.append(("C2PA: actions", _e("; ".join(c2pa["actions"]))))
        if c2pa["problems"]:
            pairs.append(("C2PA: did not hold", _e(", ".join(c2pa["problems"]))))
        if c2pa["others"]:
            pairs.append(("C2PA: parts not checked", _e(", ".join(c2pa["others"]))))
    if found["problems"]:
        pairs.append(("Not read", _e("; ".join(found["problems"]))))
    said = _list(s["text"] for s in found["statements"]) if found["statements"] else ""
    if not (said or pairs):
        said = f"<p>{origins.NOTHING} That is common: most sites remove it.</p>"
    table = _facts("What the file holds", pairs) if pairs else ""
    return (
        '<p class="note"><strong>A separate line of evidence.</strong> Nothing here went into the '
        "verdict or any score above. Such entries are easily removed or forged; only an unbroken "
        "C2PA manifest of a trusted signer cannot be forged, but it, too, can be removed."
        f"</p>{said}{table}"
    )


def _making(data: Mapping[str, Any]) -> str:
    detector, versions = data["detector"], data["versions"]
    pairs = [
        ("Made", f"{_e(data['created'])} (UTC)"),
        ("Detector", _e(detector["name"])),
        *(
            (f"Part {name}", f"<code>{_e(digest)}</code>")
            for name, digest in detector["parts"].items()
        ),
        ("Generators it knows", _e(", ".join(detector["generators"]))),
        *((name, _e(version)) for name, version in versions.items()),
    ]
    rows = [
        (
            _e(row["population"]),
            _e(row["stratum"]),
            str(int(row["photos"])),
            str(int(row["sources"])),
        )
        for row in detector["calibration"]
    ]
    calibration = (
        _table(
            f"Real photos that rates are measured on ({int(detector['sample_size'])} in all; "
            "by kind, and a photo may count in several)",
            ("Photos", "Kind", "Number", "Sources"),
            rows,
        )
        if rows
        else "<p>This detector has no scores of real photos.</p>"
    )
    return (
        f"{_facts('Made with', pairs)}{calibration}"
        f"<p>The command that makes it again:</p><pre><code>{_e(data['command'])}</code></pre>"
    )


def _check(data: Mapping[str, Any]) -> str:
    """Write what identifies the image and this report; it is never folded."""
    image, detector = data["detection"]["image"], data["detector"]
    of = "Image" if image["sha256_of"] == "file" else "Pixels of the image"
    pairs = [
        (f"{of}, SHA-256", f"<code>{_e(image['sha256'])}</code>"),
        ("Detector, SHA-256", f"<code>{_e(detector['sha256'])}</code>"),
        ("Seal of this report", f'<code id="masksim-seal">{_OPEN_SEAL}</code>'),
        ("Check it by", f"<code>{_e(data['check'])}</code>"),
    ]
    return (
        '<section class="check" aria-labelledby="check"><h2 id="check">To check this report</h2>'
        f"{_facts('What was analysed, and with what', pairs)}"
        '<p class="soft">The command compares the seal, the text, the pictures, and all numbers, '
        "computed anew from the image. The seal (SHA-256 of this file with zeros in its place) "
        "alone shows damage and careless changes; a forger could compute another.</p></section>"
    )


_STYLE = (
    Path(__file__)
    .with_name("page.css")
    .read_text("ascii")
    .strip()
    .replace(
        "GRADIENT",
        ",".join(
            f"#{bytes(colour.tolist()).hex()}"
            for colour in diverging_colours(np.linspace(-1, 1, 11), 1.0)
        ),
    )
)
