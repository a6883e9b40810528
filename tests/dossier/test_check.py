"""`masksim.dossier.check`: a report is checked by doing all of it again; forgeries are found."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import masksim
from conftest import encode, make_png
from filed_reports import checks, forge
from masksim.detector import Detector
from masksim.dossier import build, check, verify_report
from masksim.dossier import page as pages
from masksim.dossier.build import Report
from masksim.dossier.windows import windows_jpeg
from masksim.provenance import origin
from masksim.provenance.metadata import C2pa, statements_of
from masksim.verdict import format_rate, words


def reseal(page: bytes) -> bytes:
    """What a forger who knows the format would do."""
    return pages.SEAL.sub(
        b'<code id="masksim-seal">' + pages.seal_of(page).encode() + b"</code>", page
    )


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
        verdict = data["detection"]["verdict"]
        verdict["false_positive_rate"] += 1 / (n + 1)
        verdict |= words(verdict)  # one photo of few changes what is said, too
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
