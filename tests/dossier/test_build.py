"""`masksim.dossier.build`: the data and pictures of a report, the same bytes again."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import encode, make_natural, make_png
from filed_reports import WHEN, Page, checks, forge
from masksim.detector import Detector
from masksim.dossier import build, make_report, verify_report
from masksim.dossier import page as pages
from masksim.dossier.build import Report
from masksim.errors import ImageError, UsageError


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
