"""`masksim.dossier.page`: what a report says, that it stands alone, and that nothing in it runs."""

from __future__ import annotations

import html
import re
from itertools import pairwise

import pytest
from PIL import ExifTags, Image

import masksim
from conftest import encode, make_natural
from filed_reports import WHEN, Page
from masksim.detector import Detector
from masksim.dossier import make_report, verify_report
from masksim.dossier import page as pages
from masksim.dossier.build import Report

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;"


def test_the_page_says_what_was_found(report: Report) -> None:
    page = Page(report.html)
    verdict = report.detection.verdict
    assert page.text.count("photo.jpg") >= 3
    assert "a folder" not in page.text + page.hidden  # where the image lies is nobody's business
    assert verdict.headline in page.text
    assert verdict.explanation in page.text.replace("\xa0", " ")
    assert f"{verdict.sample_size} real photos from {verdict.sources} sources" in page.text
    assert pages._measured_on({"kind": "large copies of photos"}) == "copies of real photos"
    for score in report.detection.scores:
        assert f"{score.similarity:.4f}" in page.text
        assert score.generator in page.text
    assert report.detection.image.sha256 in page.text
    assert report.detection.detector_sha256 in page.text
    assert report.seal in page.text
    assert "2024-05-06T07:08:09Z" in page.text
    assert "not the probability" in page.text
    assert masksim.__version__ in page.text
    assert "None of these values is calibrated" in page.text
    for digest in report.data["detector"]["parts"].values():
        assert digest in page.text
    assert len(report.data["detector"]["parts"]) >= 3


def test_the_page_is_self_contained(report: Report) -> None:
    page = Page(report.html)
    assert report.html.isascii()
    assert len(report.html) < 3_000_000
    loaded = [
        value
        for _, attributes in page.elements
        for key in ("src", "href", "action", "data", "xlink:href", "srcset")
        if (value := attributes.get(key)) is not None
    ]
    assert loaded
    assert all(value.startswith("data:image/") for value in loaded)
    assert "url(" not in page.hidden.split("masksim-report")[0]
    assert "@import" not in page.hidden
    assert [s["type"] for s in page.all("script")] == ["application/json"]
    policy = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_page_can_be_heard(report: Report) -> None:
    page = Page(report.html)
    assert page.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in page.all("img"))
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or svg["aria-label"]
    assert {th["scope"] for th in page.all("th")} == {"row", "col"}
    assert len(page.all("caption")) == len(page.all("table"))
    assert len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in pairwise(levels))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    labels = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert set(labels) <= set(ids)


def luminance(colour: str) -> float:
    """WCAG 2: relative luminance of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_contrast(theme: int) -> None:
    block = re.findall(r":root\{([^}]*)\}", pages._STYLE)[theme]
    colours = dict(re.findall(r"--(\w+):(#\w+)", block))
    for text, paper in (("ink", "paper"), ("ink", "panel"), ("ink", "note"), ("soft", "paper"),
                        ("soft", "panel")):  # fmt: skip
        light, dark = sorted((luminance(colours[text]), luminance(colours[paper])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, paper)


def test_what_matters_stands_first_and_the_rest_is_folded(report: Report) -> None:
    page = report.html.decode("ascii")
    first, _, rest = page.partition('<section class="annex"')
    assert "<details" not in first
    verdict = report.detection.verdict
    assert html.escape(verdict.headline) in first
    assert "The file says" in first
    assert "This is not the probability that the image is fake" in first
    # The map of all channels of the best generator; others near it where there is evidence.
    assert first.count('class="spectrum"') == 1
    assert report.detection.scores[0].generator in first
    assert all(mark["words"] in first for mark in report.data["maps"][0]["marks"])
    annex, _, check = rest.partition('<section class="check"')
    assert annex.count("<details") > 10
    # What identifies the image and the report is not folded.
    assert report.seal in check
    assert report.detection.image.sha256 in check


def test_nothing_from_outside_runs(detector: Detector) -> None:
    tags = Image.Exif()
    for tag in (ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.ImageDescription):
        tags[tag] = EVIL + "</style></table></main>"
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in (
        (EVIL[:79], EVIL),
        ("prompt", EVIL + '<code id="masksim-seal">' + "0" * 64 + "</code>"),
        ("workflow", "</script><script>alert(3)</script>"),
        ("picture", 'data-picture="image" src="data:image/png;base64,AAAA"'),
    ):
        chunks.add_text(key, value)
    image = Image.fromarray(make_natural(264, 280, seed=6))
    data = encode(image, "PNG", exif=tags, pnginfo=chunks)
    name = f"{EVIL}\u202egpj.\x1b[31m\udcff.png".replace("/", "|")
    made = make_report(detector, data, name=name, maps=1, model=EVIL, created=WHEN)
    page = Page(made.html)
    assert "<script>alert(1)" in page.text  # it is shown
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 1
    known = {"html", "head", "meta", "title", "style", "body", "main", "header", "p", "h1", "h2"}
    known |= {"h3", "div", "figure", "figcaption", "section", "ul", "ol", "li", "table", "caption"}
    known |= {"thead", "tbody", "tr", "th", "td", "code", "pre", "details", "summary", "span"}
    known |= {"strong", "img", "svg", "rect", "line", "text", "circle", "image", "script"}
    assert {tag for tag, _ in page.elements} <= known
    assert not [k for _, attributes in page.elements for k in attributes if k.startswith("on")]
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    assert verify_report(made.html, detector, data).passed


def test_the_limit_of_small_changes_is_named() -> None:
    text = pages._stability({"verdict": {"stability": {"JPEG of quality 75": 0.12}}})
    assert "above 15&nbsp;%, the largest is given" in text
    assert "12&nbsp;%" in text
    assert "{" not in text
