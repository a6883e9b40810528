"""Downloads against a real web server that misbehaves, and what becomes of a set."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from local_server import Site, serve  # type: ignore[import-not-found]
from masksim.data.download import (
    Retry,
    bucket_files,
    download_source,
    fetch,
    fetch_all,
    http_client,
)
from masksim.data.sources import Bucket, Folder, RemoteFile, Source, UrlTable, load_sources
from masksim.errors import DataError, UsageError

pytest.importorskip("httpx")

BODY = np.random.default_rng(7).bytes(1_000_003)
MD5 = "md5:" + hashlib.md5(BODY, usedforsecurity=False).hexdigest()
QUICK = Retry(attempts=3, base=0.001, longest=0.01)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with http_client(timeout=10) as shared:
        yield shared


def get(site: Site, client: Any, folder: Path, **settings: Any) -> Any:
    options = {"retry": QUICK, "client": client}
    options.update({k: settings.pop(k) for k in list(settings) if k in FETCH_OPTIONS})
    url = settings.pop("url", site.base + "/f.bin")
    urls = settings.pop("urls", (url,))
    return fetch(RemoteFile("f.bin", urls, **settings), folder, **options)


FETCH_OPTIONS = ("retry", "progress", "check", "max_bytes", "stop", "sleep")


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "f.bin")


def test_whole_file_with_size_and_checksum(site: Site, client: Any, tmp_path: Path) -> None:
    site.put("/f.bin", BODY)
    seen: list[tuple[str, int, int | None]] = []
    got = get(
        site,
        client,
        tmp_path,
        size=len(BODY),
        checksum=MD5,
        progress=lambda *event: seen.append(event),
    )
    assert (got.status, got.n_bytes, got.resumed_from) == ("downloaded", len(BODY), 0)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert leftovers(tmp_path) == []
    assert seen[-1] == ("f.bin", len(BODY), len(BODY))
    assert get(site, client, tmp_path).status == "present"
    assert len(site.log) == 1


def test_dropped_connections_are_resumed(site: Site, client: Any, tmp_path: Path) -> None:
    # More drops than tries in a row: each brings bytes, so it goes on to the end.
    site.put("/f.bin", BODY, drops=[150_000] * 6)
    got = get(site, client, tmp_path, checksum=MD5)
    assert got.status == "downloaded"
    assert got.resumed_from >= 6 * 150_000 * 0.9
    assert (tmp_path / "f.bin").read_bytes() == BODY
    spans = site.requests("/f.bin")
    assert spans[0] is None
    assert all(span is not None for span in spans[1:])


def test_server_that_ignores_ranges_is_read_from_the_start(
    site: Site, client: Any, tmp_path: Path
) -> None:
    site.put("/f.bin", BODY, ranges=False, drops=[300_000, 700_000])
    got = get(site, client, tmp_path, size=len(BODY))
    assert got.status == "downloaded"
    assert (tmp_path / "f.bin").read_bytes() == BODY


def test_file_that_changed_meanwhile_is_not_mixed(site: Site, client: Any, tmp_path: Path) -> None:
    site.put("/f.bin", BODY, drops=[400_000, 0, 0, 0])
    assert get(site, client, tmp_path).status == "failed"
    assert (tmp_path / "f.bin.part").stat().st_size == 400_000
    assert not (tmp_path / "f.bin").exists()
    other = BODY[::-1]
    site.put("/f.bin", other, etag='"two"')
    got = get(site, client, tmp_path)
    assert got.status == "downloaded"
    assert site.requests("/f.bin")[-1] == "bytes=400000-"
    assert (tmp_path / "f.bin").read_bytes() == other


def test_weak_tag_and_no_checksum_start_anew(site: Site, client: Any, tmp_path: Path) -> None:
    site.put("/f.bin", BODY, etag='W/"x"', drops=[400_000])
    got = get(site, client, tmp_path)
    assert (got.status, got.resumed_from) == ("downloaded", 0)
    assert site.requests("/f.bin") == [None, None]
    assert (tmp_path / "f.bin").read_bytes() == BODY


def test_bad_resume_is_caught_by_the_checksum(site: Site, client: Any, tmp_path: Path) -> None:
    site.put("/f.bin", BODY, etag="")
    (tmp_path / "f.bin.part").write_bytes(b"x" * 1000)
    got = get(site, client, tmp_path, checksum=MD5)
    assert got.status == "downloaded"
    assert site.requests("/f.bin") == ["bytes=1000-", None]
    assert (tmp_path / "f.bin").read_bytes() == BODY


@pytest.mark.parametrize("kept", [1_000_003, 1_200_000])
def test_partial_file_of_full_length_or_more(
    site: Site, client: Any, tmp_path: Path, kept: int
) -> None:
    site.put("/f.bin", BODY)
    (tmp_path / "f.bin.part").write_bytes((BODY + BODY)[:kept])
    got = get(site, client, tmp_path, checksum=MD5)
    assert got.status == "downloaded"
    assert (tmp_path / "f.bin").read_bytes() == BODY


@pytest.mark.parametrize(
    ("settings", "published", "code"),
    [
        ({"answers": [404]}, {}, "http_404"),
        ({"answers": [403]}, {}, "http_403"),
        ({"answers": [503] * 9}, {}, "http_503"),
        ({}, {"checksum": "md5:" + "0" * 32}, "checksum_mismatch"),
        ({}, {"size": 5}, "size_mismatch"),
        ({"length": False}, {"size": 5}, "size_mismatch"),
        ({"drops": [0] * 9}, {}, "connection"),
    ],
)
def test_what_cannot_be_had_is_reported(
    site: Site,
    client: Any,
    tmp_path: Path,
    settings: dict[str, Any],
    published: dict[str, Any],
    code: str,
) -> None:
    site.put("/f.bin", BODY, **settings)
    got = get(site, client, tmp_path, **published)
    assert (got.status, got.code) == ("failed", code)
    assert not (tmp_path / "f.bin").exists()
    assert leftovers(tmp_path) == []


def test_web_page_instead_of_an_image(site: Site, client: Any, tmp_path: Path) -> None:
    site.put("/f.bin", b"<!DOCTYPE html><title>moved</title>")
    got = get(site, client, tmp_path, check=lambda head: "a page" if b"html" in head else "")
    assert (got.code, got.message) == ("wrong_content", f"{site.base}/f.bin: a page")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [True, False])
def test_too_many_bytes(site: Site, client: Any, tmp_path: Path, length: bool) -> None:
    site.put("/f.bin", BODY, length=length)
    assert get(site, client, tmp_path, max_bytes=1000).code == "too_many_bytes"
    assert list(tmp_path.iterdir()) == []


def test_errors_that_pass_are_tried_again_after_the_time_asked(
    site: Site, client: Any, tmp_path: Path
) -> None:
    site.put("/f.bin", BODY, answers=[503, 429, 500], headers={"Retry-After": "7"})
    waits: list[float] = []
    got = get(site, client, tmp_path, retry=Retry(attempts=4, base=0.5), sleep=waits.append)
    assert got.status == "downloaded"
    assert waits == [7.0, 7.0, 7.0]


def test_waits_grow_with_jitter_and_have_a_bound(site: Site, client: Any, tmp_path: Path) -> None:
    site.put("/f.bin", BODY, answers=[500] * 9)
    waits: list[float] = []
    get(site, client, tmp_path, retry=Retry(attempts=6, base=1, longest=5), sleep=waits.append)
    assert len(waits) == 5
    for n, wait in enumerate(waits, start=1):
        assert 0.5 * min(5, 2**n) <= wait <= min(5, 2**n)


def test_a_wait_beyond_patience_is_not_waited(site: Site, client: Any, tmp_path: Path) -> None:
    site.put(
        "/f.bin", BODY, answers=[503], headers={"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"}
    )
    waits: list[float] = []
    got = get(site, client, tmp_path, sleep=waits.append)
    assert (got.code, waits) == ("http_503", [])


def test_mirrors_and_redirects(site: Site, client: Any, tmp_path: Path) -> None:
    site.put("/gone", b"", answers=[404])
    there = site.put("/there", BODY)
    moved = site.put("/moved", b"", location=there)
    got = get(site, client, tmp_path, urls=(site.base + "/gone", moved), checksum=MD5)
    assert (got.status, got.url) == ("downloaded", moved)


def test_wrong_bytes_on_the_first_mirror(site: Site, client: Any, tmp_path: Path) -> None:
    bad = site.put("/bad", BODY[:-1] + b"?")
    good = site.put("/good", BODY)
    got = get(site, client, tmp_path, urls=(bad, good), checksum=MD5)
    assert (got.status, got.url) == ("downloaded", good)
    assert (tmp_path / "f.bin").read_bytes() == BODY


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http://", "nonsense"])
def test_addresses_that_are_none(site: Site, client: Any, tmp_path: Path, url: str) -> None:
    assert get(site, client, tmp_path, url=url).status == "failed"


def test_a_name_that_leads_out_of_the_folder_is_refused(client: Any, tmp_path: Path) -> None:
    got = fetch(RemoteFile("..", ("http://x/..",)), tmp_path, client=client)
    assert (got.status, got.code) == ("failed", "archive_unsafe")


def test_many_files_at_a_time_in_order(site: Site, client: Any, tmp_path: Path) -> None:
    jobs = []
    for n in range(60):
        body = BODY[n * 1000 : (n + 1) * 1000]
        if n % 7:
            site.put(f"/{n}", body, drops=[500] if n % 3 == 0 else [])
        jobs.append((RemoteFile(f"{n}.bin", (f"{site.base}/{n}",)), tmp_path))
    got = fetch_all(jobs, client=client, workers=8, retry=QUICK)
    assert [f.name for f in got] == [f"{n}.bin" for n in range(60)]
    assert [f.status == "failed" for f in got] == [n % 7 == 0 for n in range(60)]
    for n in range(60):
        if n % 7:
            assert (tmp_path / f"{n}.bin").read_bytes() == BODY[n * 1000 : (n + 1) * 1000]


def test_stop_leaves_a_part_to_go_on_with(site: Site, client: Any, tmp_path: Path) -> None:
    site.put("/f.bin", BODY, pause=0.001)
    stop = threading.Event()
    got = get(site, client, tmp_path, stop=stop, progress=lambda *_: stop.set())
    assert got.code == "stopped"
    assert 0 < (tmp_path / "f.bin.part").stat().st_size < len(BODY)
    assert get(site, client, tmp_path).resumed_from > 0
    assert (tmp_path / "f.bin").read_bytes() == BODY


CHILD = """
import sys
from masksim.data.download import *
from masksim.data.sources import RemoteFile
with http_client() as client:
    file = RemoteFile("f.bin", (sys.argv[1],), checksum=sys.argv[3])
    print(fetch(file, sys.argv[2], client=client).status)
"""


def test_killed_download_is_resumed_to_the_same_bytes(
    site: Site, client: Any, tmp_path: Path
) -> None:
    body = BODY * 4
    url = site.put("/f.bin", body, pause=0.004)
    part = tmp_path / "f.bin.part"
    sizes = []
    for share in (0.1, 0.35, 0.6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, url, str(tmp_path), ""])
        try:
            limit = time.monotonic() + 60
            while not (part.exists() and part.stat().st_size >= share * len(body)):
                assert child.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.001)
            os.kill(child.pid, signal.SIGKILL)
        finally:
            child.kill()
            child.wait()
        assert not (tmp_path / "f.bin").exists()
        sizes.append(part.stat().st_size)
    site.pages["/f.bin"].pause = 0.0
    got = get(site, client, tmp_path)
    assert got.resumed_from == sizes[-1]
    assert (tmp_path / "f.bin").read_bytes() == body
    assert leftovers(tmp_path) == []
    spans = site.requests("/f.bin")
    assert spans == [None, *(f"bytes={size}-" for size in sizes)]


# ---------------------------------------------------------------- whole sets


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        for name, body in members.items():
            z.writestr(name, body)
    return path


def source(**parts: Any) -> Source:
    return Source("mine", "Mine", "http://home", "none", ("test",), "open", **parts)


def test_bucket_in_pages(site: Site, client: Any) -> None:
    def page(names: list[str], token: str = "") -> bytes:
        items = [
            {"name": name, "size": "3", "md5Hash": "kAFQmDzST7DWlj99KOF/cg=="} for name in names
        ]
        return json.dumps({"items": items, **({"nextPageToken": token} if token else {})}).encode()

    site.put("/list?p=x", page(["x/b1/final.jpg", "x/b1/merged.dng"], "t/1"), answers=[503])
    site.put("/list?p=x&pageToken=t/1", page(["x/b2/final.jpg"]))
    bucket = Bucket(site.base + "/list?p=x", site.base + "/o/{name}", r"([^/]+)/final\.jpg$", "h")
    files = bucket_files(bucket, client, QUICK)
    assert [f.name for f in files] == ["b1.jpg", "b2.jpg"]
    assert files[0].urls == (site.base + "/o/x/b1/final.jpg",)
    assert (files[0].size, files[0].checksum) == (3, "md5:900150983cd24fb0d6963f7d28e17f72")
    with pytest.raises(DataError) as caught:
        bucket_files(Bucket(site.base + "/none", "", ".", "h"), client, QUICK)
    assert caught.value.code == "download_failed"


def test_a_set_with_archive_checksum_file_and_gaps(site: Site, client: Any, tmp_path: Path) -> None:
    archive = make_zip(
        tmp_path / "set.zip", {"top/one.png": b"1", "top/two.png": b"2"}
    ).read_bytes()
    url = site.put("/set.zip", archive)
    sums = site.put("/set.zip.sha1", f"{hashlib.sha1(archive).hexdigest()}  set.zip\n".encode())
    site.put("/ok.png", b"\x89PNG")
    table = tmp_path / "t.csv"
    table.write_text(f"u\n{site.base}/ok.png\n{site.base}/gone.png\n")
    mine = source(
        files=(RemoteFile("set.zip", (url,), checksum_url=sums, extract={"top": "mine"}),),
        table=UrlTable({"u": "single"}),
        folders=(Folder("mine", "real", "test"),),
    )
    options: dict[str, Any] = {
        "data": tmp_path / "data", "cache": tmp_path / "cache", "table": table, "client": client,
        "retry": QUICK,
    }  # fmt: skip
    report = download_source(mine, **options, keep_archives=False)
    assert not report.ok
    assert [(file, code) for file, code, _ in report.problems] == [("gone.png", "http_404")]
    assert report.unpacked == 2
    assert (tmp_path / "data/mine/two.png").read_bytes() == b"2"
    assert (tmp_path / "data/single/ok.png").exists()
    assert not (tmp_path / "cache/set.zip").exists()
    # Once more: nothing is downloaded that is there, and what was missing is tried again.
    site.put("/gone.png", b"\x89PNG")
    again = download_source(mine, **options)
    assert again.ok
    assert again.as_dict()["downloaded"] == 1
    assert len(site.requests("/set.zip")) == 1
    # A file lost from the data folder brings the archive back.
    (tmp_path / "data/mine/one.png").unlink()
    assert download_source(mine, **options).unpacked == 2
    # One that turns out damaged is put aside, to be downloaded anew.
    (tmp_path / "data/mine/one.png").unlink()
    (tmp_path / "cache/set.zip").write_bytes(b"no archive")
    assert download_source(mine, **options).problems[0][1] == "archive_invalid"
    assert (tmp_path / "cache/set.zip.damaged").exists()
    assert download_source(mine, **options).ok
    site.put("/set.zip.sha1", b"0" * 40)
    (tmp_path / "cache/set.zip.extracted.json").unlink()
    (tmp_path / "cache/set.zip").unlink()
    assert download_source(mine, **options).problems[0][1] == "checksum_mismatch"


def test_a_set_that_needs_a_form_says_so(client: Any) -> None:
    with pytest.raises(UsageError, match="form"):
        download_source(load_sources()["raise1k"], client=client)


def test_without_httpx_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "from masksim.data.download import http_client\n"
        "from masksim.errors import UsageError\n"
        "try:\n    http_client()\nexcept UsageError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'python -m pip install ".[data]"' in done.stdout
