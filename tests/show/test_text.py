"""`masksim.show.text`: nothing is lost, and odd names break nothing."""

from __future__ import annotations

import pytest

import fake_detector as fake  # type: ignore[import-not-found]
from masksim.provenance.untrusted_text import printable
from masksim.show.text import to_text


def test_the_verdict_comes_first_and_every_generator_follows() -> None:
    detection = fake.detection(cautions=("The image is small.",))
    text = to_text(detection)
    lines = text.splitlines()
    assert lines[0] == "photo.jpg"
    flat = " ".join(text.split())
    assert flat.startswith(f"photo.jpg {detection.verdict.text} Caution: The image is small.")
    assert "Neither is the probability that the image is fake" in flat
    assert detection.image.sha256 in text
    rows = [line for line in lines if line.split()[:1] in (["dalle3"], ["gpt-image"], ["sd1"])]
    assert [row.split()[0] for row in rows] == ["dalle3", "gpt-image", "sd1"]
    assert "0.9960" in rows[0]
    assert "0.4 %" in rows[0]
    assert "30 %" in rows[1]
    bars = [sum(c in "█▏▎▍▌▋▊▉" for c in row) for row in rows]
    assert bars[0] > bars[1] >= bars[2]


@pytest.mark.parametrize("width", [10, 48, 57, 80, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_lines_keep_to_the_width(width: int, ascii_only: bool) -> None:
    rates = {"a-generator-with-a-very-long-name" * 2: 0.0005, "x": 1.0}
    text = to_text(fake.detection(rates, cautions=("word " * 60,)), width, ascii_only=ascii_only)
    for line in text.splitlines():
        assert len(line) <= max(width, 48) or "sha256" in line
        assert line == line.rstrip()
    assert text.isascii() or not ascii_only


def test_the_bar_is_logarithmic_and_ends_where_the_sample_does() -> None:
    size = fake.SAMPLE_SIZE
    rates = {"all": 1.0, "some": (size + 1) ** -0.5, "none": 1 / (size + 1)}
    text = to_text(fake.detection(rates), 100, ascii_only=True)
    lengths = {line.split()[0]: line.count("#") for line in text.splitlines() if line.split()}
    assert lengths["all"] == 0
    assert lengths["none"] == 2 * lengths["some"] > 0
    assert "at most 0.1 %" in text


def test_without_calibration_there_is_no_rate_and_no_bar() -> None:
    text = to_text(fake.detection(calibrated=False))
    assert "Each rate is" not in text
    assert "is not known" in " ".join(text.split())
    assert "most like those of dalle3" in " ".join(text.split())
    assert "█" not in text
    assert "rarer" not in text
    row = next(line for line in text.splitlines() if line.startswith("  sd1"))
    assert row.split() == ["sd1", "0.1000", "-"]


def test_odd_names_steer_no_terminal() -> None:
    name = "a\x1b[31m\r\nb\udc80\u202e\u00e9.jpg"
    text = to_text(fake.detection(image=fake.facts(name)))
    assert text.splitlines()[0] == "a\\x1b[31m\\r\\nb\\udc80\\u202e\u00e9.jpg"
    assert all(c.isprintable() or c == "\n" for c in text)
    text.encode()  # no lone surrogates
    assert printable("plain é 中 name.jpg") == "plain é 中 name.jpg"


def test_file_facts() -> None:
    image = fake.facts(
        format="JPEG",
        mode="CMYK",
        n_bytes=3_141_592,
        sha256_of="file",
        jpeg_quality=87,
        jpeg_subsampling="4:2:0",
        treatments=("CMYK converted", "ICC profile ignored"),
    )
    flat = " ".join(to_text(fake.detection(image=image)).split())
    assert (
        "File: JPEG, 400 x 300 pixels, 3.1 MB, JPEG quality about 87, chroma 4:2:0, "
        "stored as CMYK, CMYK converted, ICC profile ignored"
    ) in flat
    assert "Analysed: 1 window of 256 x 256 pixels, 0.12 s, detector fake (0123456789ab)" in flat
