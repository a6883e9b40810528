"""What files say of their origin: who is named where, and in which words; by kinds of mistakes."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

import fake_detector as fake  # type: ignore[import-not-found]
from masksim.batch import flat_columns, flatten
from masksim.provenance import generators, origin
from masksim.provenance.metadata import read_metadata
from masksim.provenance.origin import NOTHING, Origin, beside, read_origin, words
from masksim.show.card import to_html
from masksim.show.text import to_text

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def saved(format_: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (16, 24, 3))
    Image.fromarray(values.astype(np.uint8)).save(buffer, format_, **options)
    return buffer.getvalue()


def exif(**values: Any) -> Image.Exif:
    tags = Image.Exif()
    for name, value in values.items():
        tag = ExifTags.Base[name]
        inner = ("DateTimeOriginal", "DateTimeDigitized", "UserComment", "FileSource", "FNumber")
        (tags.get_ifd(ExifTags.IFD.Exif) if name in inner else tags)[tag] = value
    return tags


def xmp(attributes: str, names: str = 'xmlns:e="e"') -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="rdf">'
        f"<r:Description {names} {attributes}/></r:RDF></x:xmpmeta>"
    ).encode()


def texts(*pairs: tuple[str, str]) -> PngInfo:
    chunks = PngInfo()
    for key, value in pairs:
        chunks.add_text(key, value)
    return chunks


def pointed(data: bytes) -> set[str]:
    return {statement.points_to for statement in read_metadata(data).statements}


# ------------------------------------------------------------------------------ who is named where


@pytest.mark.parametrize(
    "free",
    [
        "Imagen de la plaza mayor", "Fashion designer at work", "Gemini North telescope dome",
        "A firefly on a leaf", "Museum steps: north entrance", "grokking photography", "Redesigner",
        "Recrafted oak table", "Scan job id: 88", "The OpenAI team at dinner", "Steps: 12 to go",
        "Our trip. Steps: 12 to the top. Seed: corn", "Midjourney's founder on stage",
        "Runway at Orly", "Sora, a bird", "A flux of people", "Made by a designer",
        "Dalle de pierre",
        '{"shape": [600, 600, 3]}', '{"model": "X100", "steps": 3}',
        "Workflow: scanned, then retouched",
    ],
)  # fmt: skip
def test_words_in_free_text_name_no_generator(free: str) -> None:
    for data in (
        saved(exif=exif(ImageDescription=free, Make="ACME", Model="Cam 1")),
        saved(exif=exif(UserComment=b"ASCII\0\0\0" + free.encode(), Make="ACME", Model="Cam 1")),
        saved("PNG", pnginfo=texts(("Description", free)), exif=exif(Make="ACME", Model="Cam 1")),
    ):
        assert "generator" not in pointed(data)
        assert read_origin(data).device == "ACME Cam 1"
    assert "generator" not in pointed(saved(comment=free.encode()))


@pytest.mark.parametrize(
    "program",
    [
        "Imagenation VME", "GIMP 2.10", "Topaz Photo AI 3.0", "Affinity Designer 2.1", "Gemini",
        "InfluxDB 2", "Adobe Photoshop 21.1 (Macintosh)", "SoraCam 1", "Runways 2", "Krea2tive",
        "Grokker", "Imagenes", "Leica Firefly Tools", "17.4.1", "Designer",
    ],
)  # fmt: skip
def test_programs_that_are_no_generators(program: str) -> None:
    found = read_origin(saved(exif=exif(Software=program)))
    assert found.says == "other"
    assert found.software == program
    assert program in found.summary
    assert program in found.statements[0].text  # the table is not the only place that says so


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("Fooocus v2.5.0", "Fooocus"), ("Krea", "Krea"), ("Seedream", "Seedream"),
        ("Nano Banana", "Nano Banana"), ("Meta AI", "Meta AI"), ("Qwen-Image", "Qwen-Image"),
        ("Hunyuan", "Hunyuan"), ("Runway", "Runway"), ("Sora", "Sora"), ("NovelAI", "NovelAI"),
        ("Adobe Firefly", "Adobe Firefly"), ("Adobe_Firefly", "Adobe Firefly"),
        ("Firefly 3", "Adobe Firefly"), ("Google Imagen", "Google Imagen"), ("Grok", "Grok"),
        ("Google Gemini 2.5", "Google Gemini"), ("stability.ai", "Stability AI"),
        ("Microsoft Designer", "Microsoft Designer"), ("DALL\u00b7E", "DALL\u00b7E"),
        ("FLUX.1-dev", "FLUX"), ("comfyui 0.3", "ComfyUI"), ("Ideogram 2.0", "Ideogram"),
        ("OpenAI gpt-image-1", "GPT Image"), ("Midjourney v6", "Midjourney"),
    ],
)  # fmt: skip
def test_programs_that_are_generators(program: str, name: str) -> None:
    found = read_origin(saved(exif=exif(Software=program.encode())))
    assert (found.says, found.generator) == ("generator", name)
    assert f"that {name} made it" in found.summary
    creator = saved("WEBP", xmp=xmp(f'e:CreatorTool="{program}"'))
    assert read_origin(creator).generator == name
    # The words that it rests on are shown, wherever they stand.
    far = read_metadata(saved(exif=exif(Software=f"{'x' * 300} {program} {'y' * 300}".encode())))
    named = [s.text for s in far.statements if s.points_to == "generator"]
    matched = generators.by_program(f"x {program} y")
    assert (matched is None) == (not named)
    assert matched is None or matched.words in named[0]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ("a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a", "Stable Diffusion"),
        ("a fox --v 6.1 Job ID: 0a1b2c3d-0000-4000-8000-0123456789ab", "Midjourney"),
        ('{"3": {"class_type": "KSampler"}}', "ComfyUI"),
        ('prompt:{"3":{"class_type":"KSampler"}}', "ComfyUI"),
        ('Workflow: {"nodes":[]}', "ComfyUI"),
        ('{"prompt": "a cat", "seed": 3, "steps": 20}', None),
        ("Made with OpenAI Labs", "OpenAI"),
        ("Created with Midjourney.", "Midjourney"),
        ("AI generated", None),
        ("Signature: " + "aB3/" * 30, "Grok"),
        ("prompt: a cat on a mat", None),
        ('{"prompt": "a cat"}', None),
    ],
)  # fmt: skip
def test_records_of_generators_in_free_text(record: str, name: str | None) -> None:
    for data in (
        saved(exif=exif(ImageDescription=record)),
        saved(exif=exif(UserComment=b"UNICODE\0" + record.encode("utf-16-le"))),
        saved(comment=record.encode()),
        saved("PNG", pnginfo=texts(("Comment", record))),
    ):
        found = read_origin(data)
        assert (found.says, found.generator) == ("generator", name)


def test_a_record_far_behind_the_letters_that_are_shown() -> None:
    long = "a cat, " * 2000 + "\nSteps: 20, Sampler: Euler a, Seed: 1"
    found = read_metadata(saved("PNG", pnginfo=texts(("parameters", long))))
    assert [s.points_to for s in found.statements] == ["generator"]
    assert "Steps: 20, Sampler" in found.statements[0].text
    assert len(found.statements[0].text) < 250


@pytest.mark.parametrize(
    ("make", "model"),
    [
        ('workflow:{"nodes":[]}', 'prompt:{"3":{"class_type":"KSampler"}}'),
        ('Workflow: {"nodes":[]}', 'Prompt: {"3":{}}'),
        ("ACME", '{"3":{"class_type":"KSampler"}}'),
        ("workflow: none", "Prompt: a cat"),
        ('{"a": 1}', "Cam 1"),
    ],
)
def test_a_record_in_make_or_model_is_no_camera(make: str, model: str) -> None:
    data = saved("WEBP", exif=exif(Make=make, Model=model).tobytes())
    found = read_origin(data)
    assert found.says == "generator"
    assert found.device is None
    assert pointed(data) == {"generator"}


def test_a_camera_needs_a_short_plain_text() -> None:
    assert "camera" not in pointed(saved(exif=exif(Make="ACME", Model="x" * 200)))


@pytest.mark.parametrize(
    ("tags", "points_to"),
    [
        ({"Make": "EPSON", "Model": "Perfection V600"}, "scanner"),
        ({"Make": "Epson", "Model": "PerfectionV800"}, "scanner"),
        ({"Make": "Canon", "Model": "CanoScan 9000F"}, "scanner"),
        ({"Make": "HP", "Model": "Photosmart C4200 series"}, "scanner"),
        ({"Make": "Nikon", "Model": "D1", "Software": "VueScan 9 x64"}, "scanner"),
        ({"Make": "AGFA", "Model": "DuoScan T1200"}, "scanner"),
        ({"Make": "NORITSU KOKI", "Model": "QSS-32_33"}, "scanner"),
        ({"Make": "ACME", "Model": "X", "FileSource": b"\1"}, "scanner"),
        ({"Make": "ACME", "Model": "X", "FileSource": b"\2"}, "scanner"),
        ({"Make": "ACME", "Model": "X", "FileSource": b"\3"}, "camera"),
        ({"Make": "Hewlett-Packard", "Model": "HP PhotoSmart R607 (V01.00)"}, "camera"),
        ({"Make": "Apple", "Model": "iPhone 12"}, "camera"),
    ],
)
def test_scanners_are_no_cameras(tags: dict[str, Any], points_to: str) -> None:
    data = saved(exif=exif(**tags))
    assert pointed(data) - {"other"} == {points_to}
    word = "scanner" if points_to == "scanner" else "camera" if "FileSource" in tags else "device"
    assert f"names a {word}" in read_origin(data).summary


# ------------------------------------------------------------------------------------ EXIF's texts


def test_exif_in_utf_8() -> None:
    assert read_metadata(saved(exif=exif(ImageDescription="Zoë".encode()))).description == "Zoë"
    assert read_metadata(saved(exif=exif(ImageDescription=b"Zo\xeb"))).description == "Zoë"
    assert read_metadata(saved(exif=exif(Make="日本".encode()))).make == "日本"


def test_exif_ends_at_its_first_null() -> None:
    found = read_metadata(saved(exif=exif(Make=b"ACME\0\0Firefly\0", Model=b"Cam 1\0x3ghx7y")))
    assert (found.make, found.model) == ("ACME", "Cam 1")
    assert [s.points_to for s in found.statements] == ["camera"]
    both = saved(exif=exif(Copyright=b"Ann\0Made with Midjourney\0"))
    assert "generator" not in pointed(both)  # two parts, and a sentence of neither


def test_times_of_the_camera_and_of_the_file() -> None:
    changed = read_metadata(saved(exif=exif(DateTime="2026:03:01 10:00:00")))
    assert (changed.taken, changed.changed) == (None, "2026:03:01 10:00:00")
    assert "last changed" in changed.statements[0].text
    scanned = read_metadata(saved(exif=exif(DateTimeDigitized="2020:01:01 00:00:01")))
    assert scanned.taken == "2020:01:01 00:00:01"
    unset = read_metadata(saved(exif=exif(DateTimeOriginal="0000:00:00 00:00:00")))
    assert unset.taken is None


# ------------------------------------------------------------------------------------------ XMP


@pytest.mark.parametrize(
    ("term", "known"),
    [
        (IPTC + "trainedAlgorithmicMedia#", "trainedAlgorithmicMedia"),
        ("TrainedAlgorithmicMedia", "trainedAlgorithmicMedia"),
        ("digitalsourcetype:trainedAlgorithmicMedia", "trainedAlgorithmicMedia"),
        (IPTC + "trainedAlgorithmicMedia?lang=en", "trainedAlgorithmicMedia"),
        ("http://c2pa.org/digitalsourcetype/trainedAlgorithmicData", "trainedAlgorithmicData"),
        ("http://c2pa.org/digitalsourcetype/empty", "empty"),
        (IPTC + "DIGITALCAPTURE/", "digitalCapture"),
        ("x/y", "y"),
    ],
)
def test_terms_in_any_form(term: str, known: str) -> None:
    found = read_metadata(saved(xmp=xmp(f'e:DigitalSourceType="{term}"')))
    assert found.source_types == (known,)
    assert ("unknown kind" in found.statements[0].text) == (known == "y")


def test_a_part_that_is_generated() -> None:
    data = saved(xmp=xmp(f'e:DigitalSourceType="{IPTC}compositeWithTrainedAlgorithmicMedia"'))
    assert read_origin(data).says == "part"
    assert "made a part of it" in read_origin(data).summary


@pytest.mark.parametrize(
    "field",
    ["AISystemUsed", "AISystemVersionUsed", "AIPromptInformation", "AIPromptWriterName"],
)
def test_fields_of_iptc_2025(field: str) -> None:
    data = saved(xmp=xmp(f'e:{field}="ChatGPT (DALL-E)"'))
    assert read_origin(data).says == "generator"
    assert "ChatGPT (DALL-E)" in read_metadata(data).statements[0].text


def test_a_manifest_elsewhere_is_told_and_not_asked() -> None:
    data = saved(xmp=xmp('d:provenance="https://example.org/m/abc.c2pa"', 'xmlns:d="d"'))
    found = read_metadata(data)
    assert found.c2pa.state == "elsewhere"
    assert found.c2pa.location == "https://example.org/m/abc.c2pa"
    assert "which was not asked" in found.statements[0].text
    assert read_origin(data).says == "other"
    bought = saved(xmp=xmp('d:provenance="bought in Rome, 1903"', 'xmlns:d="d"'))
    assert read_metadata(bought).c2pa.state == "absent"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"http://ns.adobe.com/xap/1.0/\0", b""),
        (b"", b"\0\0garbage <"),
        (b'<?xpacket begin="" id="x"?>', b"   <?xpacket end='w'?>\0"),
        (b"\xff\xfe odd", b""),
        (b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b""),
    ],
)
def test_what_stands_around_a_packet(before: bytes, after: bytes) -> None:
    packet = xmp(f'e:DigitalSourceType="{IPTC}trainedAlgorithmicMedia"')
    found = read_metadata(saved("WEBP", xmp=before + packet + after))
    assert found.source_types == ("trainedAlgorithmicMedia",)


def test_a_prefix_that_is_not_declared() -> None:
    found = read_metadata(saved(xmp=xmp('e:CreatorTool="Midjourney"', "")))
    assert found.creator_tool == "Midjourney"


# ------------------------------------------------------------------------------------------ PNG


def test_the_telling_text_behind_many_others() -> None:
    pairs = [(f"k{k}", "v") for k in range(26)]
    data = saved("PNG", pnginfo=texts(*pairs, ("parameters", "a cat\nSteps: 20, Sampler: Euler a")))
    found = read_metadata(data)
    assert "generator" in pointed(data)
    assert found.text[0][0] == "parameters"
    assert found.problems == ("3 of 27 texts are left out",)


@pytest.mark.parametrize("name", ["xmp", "APP1", "exif", "iptc"])
def test_raw_profiles_in_hexadecimal(name: str) -> None:
    packet = xmp(f'e:DigitalSourceType="{IPTC}trainedAlgorithmicMedia"')
    profile = {
        "xmp": packet,
        "APP1": b"http://ns.adobe.com/xap/1.0/\0" + packet,
        "exif": exif(Software="Midjourney").tobytes(),
        "iptc": b"8BIM\x04\x04\0\0\0\0\0\x18\x1c\x02\x6e\0\x13Made with Google AI",
    }[name]
    chunks = PngInfo()
    body = f"\n{name}\n{len(profile):8d}\n{profile.hex()}\n"
    chunks.add_text(f"Raw profile type {name}", body, zip=True)
    data = saved("PNG", pnginfo=chunks)
    assert read_origin(data).says == "generator"
    assert not read_metadata(data).text  # no hexadecimal digits for people


@pytest.mark.parametrize(
    "label",
    [
        {"Label": "1", "ContentProducer": "001191310104"},
        {"label": "1"},
        {"AIGC": {"Label": "1", "ContentProducer": "x"}},
    ],
)
def test_china_s_label(label: dict[str, Any]) -> None:
    value = json.dumps(label)
    for data in (
        saved("PNG", pnginfo=texts(("AIGC", value))),
        saved(xmp=xmp("e:AIGC='" + value.replace('"', "&quot;") + "'")),
        saved(exif=exif(UserComment=b"ASCII\0\0\0" + value.encode())),
    ):
        assert "AIGC" in read_metadata(data).statements[0].text
        assert read_origin(data).says == "generator"
    assert read_origin(saved("PNG", pnginfo=texts(("AIGC", "none")))).says != "generator"


def test_no_pixel_of_a_png_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved("PNG", pnginfo=texts(("Software", "NovelAI")), exif=exif(Make="A", Model="B"))

    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", refuse)
    assert read_origin(data).generator == "NovelAI"


# ----------------------------------------------------------------------------------- in words


def test_a_file_that_says_nothing() -> None:
    assert read_origin(saved()) == Origin()
    assert words(Origin()) == [NOTHING]


def test_entries_that_name_nobody_are_not_nothing() -> None:
    found = read_origin(saved("PNG", pnginfo=texts(("Title", "At the sea"))))
    assert found.says == "other"
    assert found.summary != NOTHING


def test_a_camera_and_a_generator() -> None:
    found = read_origin(saved(exif=exif(Make="Canon", Model="Canon EOS", Software="Midjourney")))
    assert found.says == "both"
    assert (found.device, found.generator) == ("Canon EOS", "Midjourney")


GENERATED = Origin("generator", "...", "ChatGPT")
DEVICE = Origin("device", "...", device="Canon EOS 5D")


@pytest.mark.parametrize(
    ("level", "generator", "said", "text"),
    [
        ("no evidence", None, GENERATED,
         "HEADLINE. But the file carries an unchecked claim that ChatGPT made it."),
        ("fragile", None, GENERATED,
         "HEADLINE. The file carries an unchecked claim that ChatGPT made it."),
        ("fragile", None, DEVICE, None),
        ("no evidence", None, DEVICE, None),
        ("no evidence", None, Origin(), None),
        ("no evidence", None, None, None),
        ("inconclusive", None, GENERATED, None),
        ("strong evidence", "dalle3", GENERATED, None),
        ("evidence", "midjourney", GENERATED,
         "HEADLINE. But the file carries an unchecked claim that ChatGPT made it."),
        ("evidence", "sd1", Origin("generator", "...", "ComfyUI"), None),
        ("weak evidence", None, DEVICE,
         "HEADLINE. But the file names a device (Canon EOS 5D), and no generator."),
        ("a level of tomorrow", None, GENERATED, None),
    ],
)  # fmt: skip
def test_two_lines_of_evidence_side_by_side(
    level: str, generator: str | None, said: Origin | None, text: str | None
) -> None:
    assert beside(level, "HEADLINE", generator, said) == text


@pytest.mark.parametrize("checked", ["trusted", "unbroken", "broken", "unchecked"])
def test_how_far_a_claim_was_checked(checked: Any) -> None:
    said = Origin("generator", "...", "ChatGPT", checked=checked)
    text = beside("no evidence", "No evidence", None, said)
    assert text is not None
    assert "ChatGPT made it" in text
    assert ("unchecked" in text) == (checked == "unchecked")


def test_plain_values_and_back() -> None:
    found = read_origin(saved(exif=exif(Make="Canon", Model="EOS", Software="Midjourney")))
    plain = json.loads(json.dumps(found.to_dict()))
    assert Origin.from_dict(plain) == found


# ----------------------------------------------------------------------------------- at the doors


def test_the_block_stands_beside_the_verdict() -> None:
    with_claim = fake.dataclasses.replace(
        fake.detection({"dalle3": 0.5}), origin=read_origin(saved(exif=exif(Software="ChatGPT")))
    )
    text = to_text(with_claim, 200)
    card = to_html(with_claim)
    for shown in (text, card):
        assert origin.TITLE in shown
        assert shown.count(origin.CAUTION) == 1
        assert "EXIF Software names a generator, ChatGPT" in shown
        assert "But the file carries an unchecked claim that ChatGPT made it." in shown
    without = fake.detection({"dalle3": 0.5})
    assert origin.TITLE not in to_text(without) + to_html(without)
    assert without.to_dict()["origin"] is None
    assert with_claim.to_dict()["verdict"] == without.to_dict()["verdict"]


def test_columns_of_flat_rows() -> None:
    evil = read_origin(saved(exif=exif(Make="=cmd", Model="|' /C calc")))
    detection = fake.dataclasses.replace(fake.detection(), origin=evil)
    row = flatten({"path": "a.jpg", "masksim": "0", **detection.to_dict()})
    columns = flat_columns(fake.GENERATORS)
    assert set(row) <= set(columns)
    assert [name for name in columns if name.startswith("origin_")] == [
        "origin_says", "origin_summary", "origin_generator", "origin_device", "origin_c2pa",
    ]  # fmt: skip
    assert row["origin_device"] == "'=cmd |' /C calc"  # no formula to a spreadsheet
    bare = flatten({"path": "a.jpg", "masksim": "0", **fake.detection().to_dict()})
    assert bare["origin_says"] is None


def test_the_real_detector_asks_the_file_unless_told_not_to() -> None:
    from masksim.image import load_image
    from masksim.load import load_detector

    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (560, 600, 3)).astype(np.uint8)
    Image.fromarray(values).save(buffer, "PNG", pnginfo=texts(("Software", "NovelAI")))
    data = buffer.getvalue()
    asked = load_detector(threads=1, stability=False)
    found = asked.detect(data)
    assert found.origin is not None
    assert found.origin.generator == "NovelAI"
    assert asked.explain(data)[0].origin == found.origin
    assert asked.detect(values).origin is None  # there is no file
    assert asked.detect(load_image(data)).origin is None  # its bytes were not kept
    assert asked.detect(load_image(data, keep=True)).origin == found.origin
    silent = load_detector(threads=1, stability=False, metadata=False)
    assert silent.detect(data).origin is None
    assert silent.detect(data).scores == found.scores


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        '{"nodes":[' * 7000, "sora" + " 1-1" * 16_000 + "!", "sora " + "1-" * 30_000 + "!",
        "--v 6 " * 11_000, '"a" ' + "-a" * 32_000, "Steps: 1, " * 6500, "made with " * 6500,
        '{"prompt' * 8000, "Job ID: " * 8000, "flux1" + "-a" * 32_000 + "!", "Model: " * 9000,
        "gemini 1 " * 7000, "stable-image" + "-" * 64_000 + "!", "ai generated " * 5000,
        "dalle" * 13_000, "Signature: " + "a" * 64_000, '"class_type' * 6000, "{" * 64_000,
    ],
)  # fmt: skip
def test_hostile_texts_take_little_time(text: str) -> None:
    start = time.process_time()
    for look in (generators.by_program, generators.by_record, generators.by_credit):
        look(text)
    for key in ("parameters", "Software", "Dream", "AIGC", "Title"):
        generators.by_text_key(key, text)
    generators.model_of(text)
    generators.of_label(text)
    generators.begins_from_image(text)
    assert time.process_time() - start < 2.0  # some milliseconds, on any machine
