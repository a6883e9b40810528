"""The service: what it answers, what it refuses, what it leaves behind."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from typer.testing import CliRunner

from conftest import make_natural
from fake_detector import Detector as FakeDetector  # type: ignore[import-not-found]

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
parser = pytest.importorskip("prometheus_client.parser")
pytest.importorskip("python_multipart")
pytest.importorskip("uvicorn")

from local_service import served  # type: ignore[import-not-found]  # noqa: E402
from masksim.cli import main as cli  # noqa: E402
from masksim.cli import serve as cli_serve  # noqa: E402
from masksim.detector import Detector  # noqa: E402
from masksim.errors import ImageError, UsageError  # noqa: E402
from masksim.load import load_detector  # noqa: E402
from masksim.serve import app as server  # noqa: E402
from masksim.serve import schemas as answers  # noqa: E402
from masksim.serve.admission import ServiceError  # noqa: E402
from masksim.serve.logs import JsonLines  # noqa: E402
from masksim.serve.uploads import FormParser  # noqa: E402
from masksim.show.composed import compose, marks  # noqa: E402
from masksim.show.text import channel_words  # noqa: E402
from masksim.verdict import telling  # noqa: E402

WEB = Path(server.__file__).parent / "web"
SMALL = {"max_bytes": 1 << 20, "max_batch_bytes": 2 << 20, "max_files": 4}


def jpeg(seed: int, size: tuple[int, int] = (272, 304)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(make_natural(*size, seed=seed)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


class Gate(FakeDetector):
    """Analyses when it is let to."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.names: list[str] = []

    def detect(self, image: Any, *, name: str | None = None) -> Any:
        if isinstance(image, np.ndarray):  # the service tries itself
            return super().detect(image, name=name)
        self.names.append(image.facts.name)
        assert self.open.wait(20)
        return super().detect(image, name=name)


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 15
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def post(client: Any, name: str = "a.jpg", data: bytes | None = None, **more: Any) -> Any:
    return client.post("/v1/detect", files={"file": (name, data or jpeg(0))}, **more)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector(threads=1)


@pytest.fixture(scope="module")
def client(detector: Detector) -> Iterator[Any]:
    with served(detector, workers=2, max_pixels=200_000_000) as found:
        yield found


# --- answers ------------------------------------------------------------------------------------


def test_an_answer_is_the_detectors(client: Any, detector: Detector) -> None:
    data = jpeg(3, (520, 600))
    expected = detector.detect(data, name="a b.jpg").to_dict()
    form = client.post("/v1/detect", files={"anything": ("a b.jpg", data, "image/jpeg")})
    raw = client.post("/v1/detect", content=data, headers={"Content-Type": "image/jpeg"})
    for response, name in ((form, "a b.jpg"), (raw, "<upload>")):
        assert response.status_code == 200
        found = response.json()
        answers.DetectionAnswer.model_validate(found)
        assert found["image"].pop("name") == name
        assert found.pop("seconds") > 0
        plain = json.loads(json.dumps(expected))
        del plain["image"]["name"], plain["seconds"]
        assert found == plain


def test_the_file_is_asked_unless_told_not_to(client: Any) -> None:
    tags = Image.Exif()
    tags[ExifTags.Base.Software] = "Midjourney"
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(3, (520, 600)))).save(buffer, "JPEG", exif=tags)
    data = buffer.getvalue()
    for path, name in (("/v1/detect", "file"), ("/v1/detect/batch", "files")):
        said = {}
        for wanted in ("true", "false"):
            found = client.post(path, files={name: ("a.jpg", data)}, params={"metadata": wanted})
            (answer,) = found.json().get("results", [found.json()])
            answers.DetectionAnswer.model_validate(answer)
            said[wanted] = answer["origin"]
        assert said["true"]["generator"] == "Midjourney"
        assert said["false"] is None
        wrong = client.post(path, files={name: ("a.jpg", data)}, params={"metadata": "perhaps"})
        assert wrong.status_code == 400


def test_maps_can_be_read_back(client: Any, detector: Detector) -> None:
    data = jpeg(4, (520, 600))
    found = client.post("/v1/detect", params={"maps": "true"}, content=data).json()
    answers.DetectionAnswer.model_validate(found)
    expected = detector.similarity_maps(data)

    def unpack(grid: dict[str, Any]) -> Any:
        steps = np.frombuffer(zlib.decompress(base64.b64decode(grid["data"])), np.int8)
        return grid["zero"] + grid["scale"] * steps.reshape(grid["height"], grid["width"])

    maps = found["maps"]
    assert [m["generator"] for m in maps["generators"]] == [
        score["generator"] for score in found["scores"]
    ]
    for got in maps["generators"]:
        wanted = expected[got["generator"]]
        assert got["similarity"] == pytest.approx(wanted.similarity)
        assert sum(plane["sum"] for plane in got["planes"]) == pytest.approx(
            wanted.similarity, abs=1e-5
        )
        whole = compose(wanted.planes)
        half = 0.5001 * got["composed"]["scale"] + 1e-9
        assert np.abs(unpack(got["composed"]) - whole.values).max() <= half
        assert [mark["words"] for mark in got["marks"]] == [mark.words for mark in marks(whole)]
        for plane, right in zip(got["planes"], wanted.planes, strict=True):
            assert plane["name"] == channel_words(right.name)
            half = 0.5001 * plane["values"]["scale"] + 1e-9
            assert np.abs(unpack(plane["values"]) - right.values).max() <= half
            shown = maps["spectra"][plane["spectrum"]]
            half = 0.5001 * shown["scale"] + 1e-6
            assert np.abs(unpack(shown) - right.spectrum).max() <= half
            assert plane["fx"] == [right.fx[0], right.fx[-1]]
    rates = [score["false_positive_rate"] for score in found["scores"]]
    assert maps["telling"] == telling(found["verdict"]["level"], rates)
    # All generators look at one spectrum: it is sent once.
    assert len(maps["spectra"]) == len(maps["generators"][0]["planes"])


def test_hostile_files_are_refused_and_the_service_stays_up(
    client: Any, hostile_files: dict[str, tuple[Path, str]]
) -> None:
    tried = 0
    for name, (path, code) in hostile_files.items():
        if not path.is_file():
            continue
        tried += 1
        data = path.read_bytes()
        for response in (
            client.post("/v1/detect", content=data),
            client.post("/v1/detect", files={"file": (path.name, data)}),
        ):
            assert response.status_code == ImageError("", code=code).http_status, name
            answers.ErrorAnswer.model_validate(response.json())
            assert response.json()["error"]["code"] == code, name
    assert tried > 25
    assert post(client).status_code == 200


def test_odd_files_are_analysed(
    client: Any, odd_files: dict[str, tuple[Path, tuple[str, ...]]]
) -> None:
    for name, (path, treatments) in odd_files.items():
        response = client.post("/v1/detect", content=path.read_bytes())
        if name == "one_pixel":
            assert (response.status_code, response.json()["error"]["code"]) == (422, "too_small")
            continue
        assert response.status_code == 200, name
        assert response.json()["image"]["treatments"] == list(treatments)


def test_a_batch_has_a_row_for_each_file(client: Any, detector: Detector) -> None:
    images = [jpeg(k) for k in range(3)]
    sent = [("0.jpg", images[0]), ("notes.txt", b"no picture"), ("1.jpg", images[1])]
    sent += [("", b""), ("2.jpg", images[2])]
    response = client.post("/v1/detect/batch", files=[("files", one) for one in sent])
    assert response.status_code == 200
    answers.BatchAnswer.model_validate(response.json())
    rows = response.json()["results"]
    assert [row["image"]["name"] for row in rows if "verdict" in row] == ["0.jpg", "1.jpg", "2.jpg"]
    for row, data in zip((rows[0], rows[2], rows[-1]), images, strict=True):
        assert row["image"]["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["scores"][0]["similarity"] == detector.detect(data).scores[0].similarity
    assert rows[1] == {
        "image": {"name": "notes.txt"},
        "error": {"code": "not_an_image", "message": rows[1]["error"]["message"]},
    }


def test_many_at_once_are_not_mixed(client: Any, detector: Detector) -> None:
    images = [jpeg(100 + k) for k in range(24)]
    expected = [detector.detect(data).to_dict()["scores"] for data in images]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda k: post(client, f"{k}.jpg", images[k]), range(len(images))))
    assert len({str(scores) for scores in expected}) == len(images)
    for k, response in enumerate(found):
        answer = response.json()
        assert answer["image"]["name"] == f"{k}.jpg"
        assert answer["image"]["sha256"] == hashlib.sha256(images[k]).hexdigest()
        assert answer["scores"] == json.loads(json.dumps(expected[k]))


def test_the_model_is_described(client: Any, detector: Detector) -> None:
    found = client.get("/v1/model").json()
    answers.ModelAnswer.model_validate(found)
    assert (found["name"], found["sha256"]) == (detector.name, detector.sha256)
    assert found["generators"] == list(detector.generators)
    strata = found["calibration"][0]["strata"]
    whole = detector.calibrations["built-in"]
    assert len(strata) > 1
    assert max(row["photos"] for row in strata) <= len(whole.real_scores)


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/v1/nothing", None, 404, "no_such_path"),
        ("GET", "/static/../server.py", None, 404, "no_such_path"),
        ("GET", "/static/%2e%2e/server.py", None, 404, "no_such_path"),
        ("GET", "/docs", None, 404, "no_such_path"),
        ("GET", "/v1/detect", None, 405, "no_such_method"),
        ("POST", "/v1/model", b"", 405, "no_such_method"),
        ("POST", "/v1/detect?maps=perhaps", b"x", 400, "usage"),
        ("POST", "/v1/detect", b"", 422, "empty_file"),
        ("POST", "/v1/detect/batch", b"raw", 415, "unsupported_type"),
        ("POST", "/v1/detect?quick=true", b"x", 400, "usage"),
        ("POST", "/v1/detect?map=true", b"x", 400, "usage"),
        ("POST", "/v1/detect?maps=true&maps=false", b"x", 400, "usage"),
        ("POST", "/v1/detect/batch?maps=true", b"x", 400, "usage"),
        ("GET", "/v1/model?generators=sd1", None, 400, "usage"),
    ],
)
def test_wrong_requests(
    client: Any, method: str, path: str, content: bytes | None, status: int, code: str
) -> None:
    response = client.request(method, path, content=content)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_an_unknown_parameter_is_named_beside_the_known_ones(client: Any) -> None:
    problem = client.post("/v1/detect?quick=true", content=b"x").json()["error"]
    assert "'quick'" in problem["message"]
    assert "maps" in problem["message"]
    for path in ("/healthz", "/readyz", "/metrics", "/", "/static/style.css"):
        assert client.get(f"{path}?again=1").status_code == 200


@pytest.mark.parametrize("path", ["/v1/detect", "/v1/detect/batch"])
@pytest.mark.parametrize(
    "kind",
    [
        *("application/json", "application/json; charset=utf-8", "text/plain", "application/pdf"),
        *("video/mp4", "multipart/mixed; boundary=x", "APPLICATION/JSON", "nonsense"),
    ],
)
def test_bodies_of_another_type_are_refused(client: Any, path: str, kind: str) -> None:
    response = client.post(path, content=b'{"image": "abc"}', headers={"Content-Type": kind})
    problem = response.json()["error"]
    assert (response.status_code, problem["code"]) == (415, "unsupported_type")
    assert "multipart/form-data" in problem["message"]


@pytest.mark.parametrize(
    "kind", [None, "image/png", "image/x-odd", "application/octet-stream", "Image/JPEG; a=b"]
)
def test_bodies_of_images_are_taken(client: Any, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    assert client.post("/v1/detect", content=jpeg(1), headers=headers).status_code == 200


def test_what_curl_calls_bytes_is_taken(client: Any) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/v1/detect", content=jpeg(1), headers=headers).status_code == 200


def test_options_in_a_form_are_refused(client: Any) -> None:
    """They would be ignored in silence: `curl -F file=@a.jpg -F maps=true`."""
    for path in ("/v1/detect", "/v1/detect/batch"):
        response = client.post(path, files={"file": ("a.jpg", jpeg(1))}, data={"maps": "true"})
        problem = response.json()["error"]
        assert (response.status_code, problem["code"]) == (400, "usage")
        assert "'maps'" in problem["message"]


FORM = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n'


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("multipart/form-data", PART + b"--x--\r\n"),
        ("multipart/form-data; boundary=", PART + b"--x--\r\n"),
        ("multipart/form-data; boundary=" + "y" * 300, PART + b"--x--\r\n"),
        (FORM + "; charset=nonsense", b"--x\r\n\r\nabc\r\n--x--\r\n"),
        (FORM, b""),
        (FORM, b"nothing like a form"),
        (FORM, b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n"),
        (FORM, b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--x--\r\n'),
        (FORM, b"--x\r\nBad header\r\n\r\nabc\r\n--x--\r\n"),
        (FORM, PART + PART + b"--x--\r\n"),
        (FORM, PART + PART + PART + b"--x--\r\n"),
    ],
)
def test_broken_forms(client: Any, kind: str, content: bytes) -> None:
    response = client.post("/v1/detect", content=content, headers={"Content-Type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "usage")


# --- limits -------------------------------------------------------------------------------------


def speak(port: int, head: str, pieces: Iterator[bytes] | None = None) -> tuple[bytes, int]:
    """Send a request by hand until there is an answer; return it and how much was sent."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(head.replace("\n", "\r\n").encode())
        line.settimeout(0.02)
        answer = b""
        while b"}}" not in answer:
            try:
                answer += line.recv(65536)
                continue
            except TimeoutError:
                pass
            if pieces is not None:
                piece = next(pieces)
                line.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += len(piece)
    return answer, sent


def test_a_large_upload_is_refused_before_it_is_read() -> None:
    with served(FakeDetector(), workers=1, **SMALL) as client:
        announced = "POST /v1/detect HTTP/1.1\nHost: x\nContent-Length: 10000000000\n\n"
        answer, _ = speak(client.port, announced)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"too_many_bytes"' in answer

        def endless() -> Iterator[bytes]:
            while True:
                yield bytes(1 << 18)

        for kind in ("image/png", "multipart/form-data; boundary=x"):
            head = (
                "POST /v1/detect HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n"
                f"Content-Type: {kind}\n\n"
            )
            pieces = endless()
            if "form" in kind:
                first = PART[:-2]
                rest = pieces
                pieces = (piece for part in ([first], rest) for piece in part)
            answer, sent = speak(client.port, head, pieces)
            assert answer.startswith(b"HTTP/1.1 413 "), answer
            assert (1 << 20) < sent <= (1 << 20) + (3 << 18)
        # A file just within the limit passes, one byte more does not.
        assert client.post("/v1/detect", content=bytes(1 << 20)).status_code == 422
        assert client.post("/v1/detect", content=bytes((1 << 20) + 1)).status_code == 413
        response = client.post("/v1/detect", files={"file": ("a", bytes((1 << 20) + 1))})
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too_many_bytes")
        assert client.service.admission.held_bytes == 0


def test_pixels_and_files_are_limited() -> None:
    with served(FakeDetector(), workers=1, max_pixels=90_000, **SMALL) as client:
        response = post(client, data=jpeg(0, (300, 301)))
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too_many_pixels")
        assert post(client, data=jpeg(0, (300, 300))).status_code == 200
        many = [("files", (f"{k}.jpg", jpeg(k))) for k in range(5)]
        response = client.post("/v1/detect/batch", files=many)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too_many_files")
        assert client.post("/v1/detect/batch", files=many[:4]).status_code == 200
        # One large file of a batch is a row; too much in all is not.
        large = [("files", ("large", bytes((1 << 20) + 1))), many[0]]
        rows = client.post("/v1/detect/batch", files=large).json()["results"]
        assert rows[0]["error"]["code"] == "too_many_bytes"
        assert "verdict" in rows[1]
        response = client.post("/v1/detect/batch", files=large[:1] * 3)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too_many_bytes")


def test_too_much_at_once_is_told_to_come_again() -> None:
    gate = Gate()
    with (
        served(gate, workers=1, queue=2, **SMALL) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        inside = [pool.submit(post, client, f"{k}.jpg", jpeg(k)) for k in range(3)]
        until(lambda: client.service.admission.inside == 3)
        for response in pool.map(lambda k: post(client, f"more-{k}"), range(5)):
            assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")
            assert 1 <= int(response.headers["Retry-After"]) <= 60
        assert client.get("/healthz").status_code == 200  # is not held up
        gate.open.set()
        for k, waiting in enumerate(inside):
            assert waiting.result().json()["image"]["name"] == f"{k}.jpg"
        assert post(client).status_code == 200
        until(lambda: client.service.admission.inside == 0)
        assert client.service.admission.held_bytes == 0
        assert sorted(gate.names) == ["0.jpg", "1.jpg", "2.jpg", "a.jpg"]


def test_the_memory_for_uploads_is_limited() -> None:
    gate = Gate()
    least = (2 << 20) + 5 * (1 << 16)
    with (
        served(gate, workers=3, queue=8, max_held_bytes=least, **SMALL) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        padded = jpeg(0) + bytes(900_000)
        inside = [pool.submit(post, client, "a", padded) for _ in range(2)]
        until(lambda: client.service.admission.held_bytes > 1_800_000)
        assert post(client, data=padded).status_code == 429
        assert post(client, data=b"small").status_code == 422  # for which there is room
        gate.open.set()
        assert [waiting.result().status_code for waiting in inside] == [200, 200]


def test_time_is_limited_and_who_has_gone_is_forgotten() -> None:
    gate = Gate()
    with served(gate, workers=1, max_seconds=0.7, **SMALL) as client:
        first = post(client, "first")
        assert (first.status_code, first.json()["error"]["code"]) == (504, "timeout")
        assert client.service.admission.inside == 1  # it is still in the worker
        second = post(client, "second")
        assert second.status_code == 504
        with pytest.raises(httpx.ReadTimeout):
            post(client, "third", timeout=0.1)
        until(lambda: client.service.admission.inside == 1)
        head = "POST /v1/detect HTTP/1.1\nHost: x\nContent-Length: 1000\n\n"
        answer, _ = speak(client.port, head)
        assert answer.startswith(b"HTTP/1.1 408 ")
        gate.open.set()
        until(lambda: client.service.admission.inside == 0)
        assert gate.names == ["first"]
        assert post(client, "last").status_code == 200


@pytest.fixture(scope="module")
def fake() -> Iterator[Any]:
    with served(FakeDetector(), workers=2) as found:
        yield found


def test_nothing_is_written_to_disk(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = fake
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")  # no temporary file can be made
    buffer = io.BytesIO()
    Image.fromarray(make_natural(1200, 1300)).save(buffer, "PNG")
    large = buffer.getvalue()
    assert len(large) > 2 << 20
    assert post(client, "large.png", large).status_code == 200
    files = [("files", ("large.png", large))] * 2
    assert client.post("/v1/detect/batch", files=files).status_code == 200
    # And with the parser as it comes the same upload does need one.
    monkeypatch.setattr(FormParser, "spool_max_size", 1 << 20)
    assert post(client, "large.png", large).status_code == 400


# --- who may ask --------------------------------------------------------------------------------


def test_a_token_is_wanted() -> None:
    with served(FakeDetector(), token="open-sesame", workers=1, **SMALL) as client:
        for headers in (
            {},
            {"Authorization": "Bearer open"},
            {"Authorization": "Basic open-sesame"},
            {"Authorization": "Bearer"},
            {"Authorization": b"Bearer \xff\xfe"},
        ):
            for path in ("/v1/model", "/metrics", "/v1/nothing"):
                response = client.get(path, headers=headers)
                assert response.status_code == 401
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
            refused = post(client, headers=headers)
            assert refused.json()["error"]["code"] == "unauthorised"
        good = {"Authorization": "Bearer open-sesame"}
        assert post(client, headers=good).status_code == 200
        assert client.get("/metrics", headers=good).status_code == 200
        for path in ("/", "/healthz", "/readyz", "/static/app.js", "/openapi.json"):
            assert client.get(path).status_code == 200
        described = client.get("/openapi.json").json()
        assert described["paths"]["/v1/detect"]["post"]["security"] == [{"token": []}]
        assert "security" not in described["paths"]["/healthz"]["get"]


def test_headers_keep_the_page_to_itself(fake: Any) -> None:
    client = fake
    for path in ("/", "/static/app.js", "/v1/model", "/nothing", "/healthz"):
        headers = client.get(path, headers={"Origin": "http://elsewhere.example"}).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200)):
        assert post(client, headers={"Sec-Fetch-Site": site}).status_code == status


def test_the_page_names_nothing_outside() -> None:
    files = sorted(WEB.iterdir())
    assert {file.name for file in files} >= {"index.html", "app.js", "style.css"}
    for file in files:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text), file.name
        if file.suffix == ".html":
            assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", text)
        for name in re.findall(r'from "\./([^"]+)"', text):
            assert (WEB / name).is_file()


def test_the_page_is_served(client: Any) -> None:
    assert client.get("/").headers["Content-Type"].startswith("text/html")
    assert client.head("/").status_code == 200
    script = client.get("/static/app.js")
    assert "javascript" in script.headers["Content-Type"]
    assert script.content == (WEB / "app.js").read_bytes()


# --- operation ----------------------------------------------------------------------------------


def test_metrics_count() -> None:
    with served(FakeDetector(), workers=1, **SMALL) as client:
        for _ in range(3):
            post(client)
        post(client, data=b"text that is no image")
        files = [("files", ("a", jpeg(0))), ("files", ("b", b"text that is no image"))]
        client.post("/v1/detect/batch", files=files)
        client.get("/some/secret/name")
        text = client.get("/metrics").text
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }
    for status, count in (("200", 3), ("422", 1)):
        labels = (("method", "POST"), ("route", "/v1/detect"), ("status", status))
        key = ("masksim_requests_total", *labels)
        assert found[key] == count
    assert found["masksim_errors_total", ("code", "not_an_image")] == 2
    assert found["masksim_analysis_seconds_count",] == 6
    images = [v for key, v in found.items() if key[0] == "masksim_images_total"]
    assert sum(images) == 4
    assert found["masksim_inside",] == 0
    assert "secret" not in text


def test_logs_are_json_and_say_nothing_of_images(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(FakeDetector):
        def explain(self, image: Any) -> Any:
            raise RuntimeError(f"cannot do {image.facts.name}")

    with (
        caplog.at_level(logging.INFO, "masksim.serve"),
        served(Faulty(), workers=1, **SMALL) as client,
    ):
        assert post(client, "private.jpg").status_code == 200
        assert post(client, "private.txt", b"private words").status_code == 422
        response = post(client, "private.jpg", params={"maps": "1"})
        assert response.status_code == 500
        assert response.json()["error"] == {
            "code": "internal",
            "message": "the service has a fault",
        }
        client.get("/private.jpg")
        assert post(client).status_code == 200
    lines = [JsonLines().format(record) for record in caplog.records]
    events = [json.loads(line) for line in lines]
    assert not any("private" in line for line in lines)
    requests = [event for event in events if event["event"] == "request"]
    assert [event["status"] for event in requests] == [200, 422, 500, 404, 200]
    assert requests[1]["code"] == "not_an_image"
    assert requests[3]["route"] == "-"
    (fault,) = (event for event in events if event["event"] == "fault")
    assert fault["error"] == "RuntimeError"
    assert any("test_server.py" in place for place in fault["at"])
    assert fault["id"] == requests[2]["id"]


def test_openapi_is_whole(client: Any) -> None:
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.")

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for child in value.values():
                yield from references(child)
        elif isinstance(value, list):
            for child in value:
                yield from references(child)

    for reference in set(references(described)):
        place: Any = described
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    operations = [op for methods in described["paths"].values() for op in methods.values()]
    assert len({op["operationId"] for op in operations}) == len(operations) == 6
    example = described["paths"]["/v1/detect"]["post"]["responses"]["200"]["content"]
    answers.DetectionAnswer.model_validate(example["application/json"]["example"])
    batch = described["paths"]["/v1/detect/batch"]["post"]["responses"]["200"]["content"]
    answers.BatchAnswer.model_validate(batch["application/json"]["example"])
    for op in operations:
        for status, response in op["responses"].items():
            if status != "200":
                schema = response["content"]["application/json"]["schema"]["$ref"]
                assert schema.endswith("/ErrorAnswer")


@pytest.mark.parametrize(
    "part",
    [
        *("ImageFacts", "Verdict", "Interval", "Reason", "LikelihoodRatio", "GeneratorScore"),
        *("OriginAnswer", "Statement", "Watermark", "Mark"),
    ],
)
def test_every_field_of_a_detection_is_described(client: Any, part: str) -> None:
    shape = client.get("/openapi.json").json()["components"]["schemas"][part]
    assert shape["description"]
    assert [name for name, one in shape["properties"].items() if not one.get("description")] == []
    assert shape["required"] == list(shape["properties"])
    assert shape["additionalProperties"] is False


def test_generated_requests_meet_the_description(fake: Any, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("run", f"{fake.base_url}/openapi.json", "--max-examples", "5"),
            # Random bytes are no image, and rightly refused.
            *("--suppress-health-check=all", "--exclude-checks", "positive_data_acceptance"),
        ],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 selected / 6 total" in done.stdout
    assert fake.get("/healthz").status_code == 200


def test_every_code_of_the_service_is_explained() -> None:
    for code, status in ServiceError.statuses.items():
        assert f"``{code}``" in (ServiceError.__doc__ or "")
        assert ServiceError("no", code=code).http_status == status
    assert not ServiceError.codes & ImageError.codes


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": -1},
        {"queue": -1},
        {"max_bytes": 0},
        {"max_files": 0},
        {"max_seconds": 0},
        {"max_seconds": float("nan")},
        {"max_held_bytes": 1 << 20},
    ],
)
def test_limits_must_make_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        server.ServeConfig(**wrong)


def test_the_command_ends_in_peace(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("word\n", encoding="utf-8")
    command = [sys.executable, "-m", "masksim", "serve", "--port", "0", "--workers", "1"]
    with subprocess.Popen(
        [*command, "--token-file", str(token)], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stderr is not None
        events = []
        for line in process.stderr:
            events.append(json.loads(line))
            if events[-1]["event"] == "ready":
                break
        url = events[0]["url"]
        assert url.startswith("http://127.0.0.1:")
        files = [("files", (f"secret-{k}.jpg", jpeg(k, (768, 768)))) for k in range(12)]
        headers = {"Authorization": "Bearer word"}
        with (
            httpx.Client(base_url=url, headers=headers, timeout=60, verify=False) as client,
            ThreadPoolExecutor(1) as pool,
        ):
            answer = pool.submit(client.post, "/v1/detect/batch", files=files)
            until(lambda: "\nmasksim_running 1.0" in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            rows = answer.result().json()["results"]
        rest = process.stderr.read()
        assert process.wait(20) == 0
    assert [row["image"]["name"] for row in rows] == [f"secret-{k}.jpg" for k in range(12)]
    assert "secret" not in rest
    last = [json.loads(line) for line in rest.splitlines()]
    assert last[-1]["event"] == "stopped"
    assert os.listdir(tmp_path) == ["token"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command would serve; it does not."""
    import masksim.load

    seen: list[Any] = []

    def run(app: Any, listening: socket.socket) -> None:
        listening.close()
        seen.append(app.state.service)

    monkeypatch.setattr(server, "run", run)
    monkeypatch.setattr(masksim.load, "load_detector", lambda *a, **k: FakeDetector())
    monkeypatch.delenv(cli_serve.TOKEN, raising=False)
    return seen


def test_serving_others_without_a_token_is_warned_of(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = CliRunner()
    options = ["serve", "--port", "0", "--host"]
    assert "warning" in runner.invoke(cli.app, [*options, "0.0.0.0"]).stderr
    assert "warning" not in runner.invoke(cli.app, [*options, "127.0.0.1"]).stderr
    monkeypatch.setenv(cli_serve.TOKEN, "word")
    assert "warning" not in runner.invoke(cli.app, [*options, "0.0.0.0"]).stderr
    assert [service.token.wanted for service in started] == [False, False, True]


def test_options_reach_the_service(started: list[Any], tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(
        cli.app,
        [
            *("serve", "--port", "0", "--max-mb", "3", "--max-megapixels", "7", "--queue", "5"),
            *("--workers", "3", "--max-seconds", "2.5", "--max-files", "2"),
        ],
    )
    assert done.exit_code == 0, done.output
    config = started[0].config
    assert (config.max_bytes, config.max_pixels, config.queue) == (3_000_000, 7_000_000, 5)
    assert (config.workers, config.max_seconds, config.max_files) == (3, 2.5, 2)
    for content in ("", "two words\n", "\nlater\n", "señal\n"):
        (tmp_path / "token").write_text(content, encoding="utf-8")
        done = runner.invoke(cli.app, ["serve", "--token-file", str(tmp_path / "token")])
        assert (done.exit_code, "token" in done.stderr) == (2, True)
    assert len(started) == 1


def test_a_taken_port_is_told() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(UsageError, match="cannot listen"):
        server.listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match="cannot listen"):
        server.listen("no.such.host.invalid", 0)
