"""Batches: what is in the file, whatever happens to the images, the processes and the run."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import batch_detectors
import fake_detector
import masksim
from conftest import make_natural
from masksim.batch import analyse, flat_columns, flatten, output, pool, run_batch, score_dataset
from masksim.batch import run as batch
from masksim.batch.pool import WINDOW
from masksim.batch.run import STRENGTH, Summary
from masksim.data import inputs
from masksim.errors import DataError, ImageError, MasksimError, ModelError, UsageError
from masksim.image import ImageFacts

SOURCE = Path(masksim.__file__).parents[1]
needs_names = pytest.mark.skipif(sys.platform == "win32", reason="names are bytes on POSIX only")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 small images of different means in two folders, and two that cannot be analysed."""
    made = tmp_path_factory.mktemp("batch")
    (made / "sub").mkdir()
    for k in range(24):
        pixels = np.full((256, 256, 3), 10 * k, np.uint8)
        Image.fromarray(pixels).save(made / ("sub" if k % 3 == 0 else "") / f"{k:02d}.png")
    (made / "05-broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (made / "sub" / "tiny.png").write_bytes((made / "01.png").read_bytes()[:60])
    (made / "notes.txt").write_text("no image")
    (made / ".hidden.png").write_bytes((made / "01.png").read_bytes())
    return made


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows without what differs from run to run."""
    rows = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    for row in rows:
        del row["seconds"]
    return rows


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Analyse in this process, where the file is what is tested: much quicker."""

    def here(paths: Iterator[str], job: Any, _: int) -> Iterator[Any]:
        detector = job.detector()
        for path in paths:
            yield job.without_analysis(path) or job.analysed(detector, path)

    monkeypatch.setattr(batch, "in_processes", here)


in_one = pytest.mark.usefixtures("no_processes")


def go(paths: Any, out: Path, **options: Any) -> Summary:
    options = {"load": batch_detectors.trapped, "workers": 1, **options}
    return run_batch(paths, out, **options)


@pytest.fixture(scope="session")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of `folder`, uninterrupted."""
    out = tmp_path_factory.mktemp("whole") / "results.jsonl"
    go(inputs.list_inputs([str(folder)]), out, workers=2)
    return out


# --- what is in a row ----------------------------------------------------------------------------


def test_a_row_an_image_in_order(folder: Path, whole: Path) -> None:
    rows = rows_of(whole)
    expected = sorted(p for p in folder.glob("*.[pj][np]g") if not p.name.startswith("."))
    expected += sorted((folder / "sub").glob("*.png"))
    assert [row["path"] for row in rows] == [str(path) for path in expected]
    detector = fake_detector.Detector()
    for row in rows:
        if "error" in row:
            with pytest.raises(ImageError) as caught:
                detector.detect(row["path"])
            assert row["error"] == {"code": caught.value.code, "message": caught.value.message}
            assert row["detector"] == {"name": "fake", "sha256": detector.sha256}
            assert "verdict" not in row
        else:
            alone = detector.detect(row["path"]).to_dict()
            del alone["seconds"]
            got = {k: v for k, v in row.items() if k not in ("path", "masksim")}
            assert got == json.loads(json.dumps(alone))
    failed = {Path(row["path"]).name for row in rows if "error" in row}
    assert failed == {"05-broken.jpg", "tiny.png"}


def test_columns_are_those_of_a_detection(whole: Path) -> None:
    """All that a row holds has a column, so nothing is dropped when fields are added."""
    columns = set(flat_columns(fake_detector.GENERATORS))
    good: set[str] = set()
    bad: set[str] = set()
    for row in rows_of(whole):
        (bad if "error" in row else good).update(flatten(row))
    assert good | {"seconds", "error_code", "error_message"} == columns
    assert bad < columns
    kinds = flat_columns(["a-b"])
    assert kinds["similarity_a-b"] == "float"
    assert kinds["false_positive_rate_a-b"] == "float"  # may be None
    assert kinds["verdict_level"] == "str"  # a Literal
    assert kinds["verdict_cautions"] == "json"
    assert kinds["verdict_unknown_generator"] == "bool"
    assert kinds["image_width"] == "int"
    assert "image_name" not in kinds


@in_one
def test_csv_says_the_same(folder: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    summary = go(inputs.list_inputs([str(folder)]), out)
    with open(out, encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert summary.images == len(table) == 26
    for line, row in zip(table, rows_of(whole), strict=True):
        flat = flatten(row)
        assert line["path"] == row["path"]
        assert line["error_code"] == (flat.get("error_code") or "")
        assert line["error_message"] == (flat.get("error_message") or "")
        if "verdict" in row:
            assert line["verdict_level"] == row["verdict"]["level"]
            assert line["verdict_unknown_generator"] == "false"
            assert json.loads(line["windows"]) == row["windows"]
            rate = float(line["verdict_false_positive_rate"])
            assert rate == row["verdict"]["false_positive_rate"]
            assert [float(line[f"similarity_{s['generator']}"]) for s in row["scores"]] == [
                s["similarity"] for s in row["scores"]
            ]


@in_one
def test_parquet_says_the_same(folder: Path, whole: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "results.parquet"
    paths = inputs.list_inputs([str(folder)])
    go(replace(paths, paths=paths.paths[:10]), out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]  # the part file has gone
    with pytest.raises(UsageError):
        go(paths, out)
    summary = go(paths, out, resume=True)  # from the finished file
    assert (summary.images, summary.resumed) == (26, 10)
    table = parquet.read_table(out)
    kinds = flat_columns(fake_detector.GENERATORS)
    assert table.column_names == list(kinds)
    types = {"int": "int64", "float": "double", "bool": "bool", "str": "string", "json": "string"}
    assert [str(f.type) for f in table.schema] == [types[kind] for kind in kinds.values()]
    for line, row in zip(table.to_pylist(), rows_of(whole), strict=True):
        flat = flatten(row)
        del line["seconds"]
        assert line == {name: flat.get(name) for name in line}


@in_one
def test_parquet_goes_on_from_the_part_file(folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = inputs.list_inputs([str(folder)]).paths
    go(paths, tmp_path / "whole.parquet")
    out, part = tmp_path / "results.parquet", tmp_path / "results.parquet.part"
    with pytest.raises(RuntimeError, match="enough"):
        go(iter(paths), out, progress=stop_at(9))
    assert part.exists()
    assert not out.exists()
    with pytest.raises(UsageError):
        go(paths, out)
    part.write_bytes(part.read_bytes()[:-7])
    assert go(paths, out, resume=True).resumed == 8
    first, second = (
        parquet.read_table(p).drop_columns(["seconds"]) for p in (out, tmp_path / "whole.parquet")
    )
    assert first.equals(second)


def stop_at(count: int) -> Any:
    def progress(stage: str, done: int, total: int) -> None:
        if done >= count:
            raise RuntimeError("enough")

    return progress


# --- going on ------------------------------------------------------------------------------------


@in_one
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_any_torn_file_is_gone_on_with(
    folder: Path, whole: Path, tmp_path: Path, form: str
) -> None:
    """Cut at any byte, the file becomes the whole one again."""
    paths = inputs.list_inputs([str(folder)]).paths
    paths[2:2] = ["car\rriage.png"]
    out = tmp_path / f"results.{form}"
    go(paths, out)
    full = out.read_bytes()
    ends = [k + 1 for k, byte in enumerate(full) if byte == 10]
    cuts = [0, 8, ends[0] - 1, ends[3], ends[7] + 1, full.index(b"car") + 4, len(full) - 1]
    # After a loss of power the file may be longer than what was written of it: zeros.
    for cut, zeros in [*((cut, 0) for cut in cuts), *((cut, 5000) for cut in cuts)]:
        out.write_bytes(full[:cut] + bytes(zeros))
        summary = go(paths, out, resume=True)
        there = sum(end <= cut for end in ends) - (form == "csv" and cut >= ends[0])
        assert summary.resumed == there
        assert summary.images == 27
        assert sum(summary.levels.values()) + sum(summary.errors.values()) == 27
        assert without_seconds(out) == without_seconds_of(full, form)


def without_seconds(path: Path) -> Any:
    return without_seconds_of(path.read_bytes(), path.suffix[1:])


def without_seconds_of(content: bytes, form: str) -> Any:
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    else:
        rows = [json.loads(line) for line in content.splitlines()]
    for row in rows:
        del row["seconds"]
    return rows


def test_nothing_is_left_to_do(folder: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    out.write_bytes(whole.read_bytes())
    summary = go(inputs.list_inputs([str(folder)]), out, resume=True)
    assert (summary.images, summary.resumed) == (26, 26)
    assert out.read_bytes() == whole.read_bytes()
    assert summary.errors == {"truncated": 2}
    assert summary.reaches("error")


@in_one
def test_another_spelling_is_the_same_image(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    out = tmp_path / "results.jsonl"
    go(["01.png", "./02.png"], out)
    assert go(["./01.png", "02.png", "sub//00.png"], out, resume=True).resumed == 2
    assert [row["path"] for row in rows_of(out)] == ["01.png", "./02.png", "sub//00.png"]


@in_one
def test_results_are_not_replaced_unasked(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    paths = [str(folder / "01.png")]
    out.write_text("precious")
    with pytest.raises(UsageError, match="--overwrite"):
        go(paths, out)
    with pytest.raises(DataError, match="not a file of results"):
        go(paths, out, resume=True)
    assert out.read_text() == "precious"
    with pytest.raises(UsageError, match="not both"):
        go(paths, out, resume=True, overwrite=True)
    assert go(paths, out, overwrite=True).images == 1
    assert len(rows_of(out)) == 1


@in_one
def test_results_of_another_detector_or_version_are_not_gone_on_with(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.jsonl"
    paths = [str(folder / "01.png"), str(folder / "02.png")]
    go(paths[:1], out)
    before = out.read_bytes()
    with pytest.raises(UsageError, match=r"detector 0123456789ab .* this is detector ffffffffffff"):
        go(paths, out, resume=True, load=batch_detectors.other)
    assert out.read_bytes() == before
    out.write_bytes(before.replace(b'"masksim": "', b'"masksim": "9'))
    with pytest.raises(UsageError, match=r"by masksim 9"):
        go(paths, out, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], b"{}\n", lines[1]], "row 2 is not a row"),
        (lambda lines: [lines[0], b"\0\0\0\n"], "row 2 is not a row"),
        (lambda lines: [lines[0], b"\0\0\0", lines[1][:-1]], "not a file of results"),
        (lambda lines: [lines[0], lines[1], lines[0]], "row 3: .* twice"),
    ],
)
def test_damage_is_told(
    folder: Path, whole: Path, tmp_path: Path, change: Any, message: str
) -> None:
    out = tmp_path / "results.jsonl"
    damaged = b"".join(change(whole.read_bytes().splitlines(keepends=True)[:2]))
    out.write_bytes(damaged)
    with pytest.raises(DataError, match=message):
        go(inputs.list_inputs([str(folder)]), out, resume=True)
    assert out.read_bytes() == damaged


@in_one
def test_csv_with_other_columns_is_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    out.write_text("path,level\na.png,none\n")
    with pytest.raises(DataError, match="other columns"):
        go([str(folder / "01.png")], out, resume=True)


@in_one
@pytest.mark.parametrize("name", ["a\rb.png", "x" * 131_073])
def test_csv_that_cannot_be_read_is_damage(folder: Path, tmp_path: Path, name: str) -> None:
    """Not quoted, as by another program; longer than Python's reader takes."""
    out = tmp_path / "results.csv"
    paths = [str(folder / "01.png")]
    go(paths, out)
    damaged = out.read_bytes().replace(paths[0].encode(), name.encode(), 1)
    out.write_bytes(damaged)
    with pytest.raises(DataError, match="row 2 is not a row"):
        go(paths, out, resume=True)
    assert out.read_bytes() == damaged


@in_one
@pytest.mark.parametrize("at", ["write", "fsync"])
def test_a_full_disk_is_told_and_gone_on_from(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    out = tmp_path / "results.jsonl"
    paths = inputs.list_inputs([str(folder)])
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Small(io.BufferedRandom):
        def write(self, line: Any) -> int:
            if at == "write" and self.tell() > 2000:
                super().write(line[:100])  # as much as there was room for
                raise full
            return super().write(line)

    def fsync(_: int) -> None:
        if at == "fsync" and out.stat().st_size > 2000:
            raise full

    monkeypatch.setattr(
        output, "open", lambda path, mode: Small(io.FileIO(path, mode)), raising=False
    )
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DataError, match=r"results.jsonl cannot be .*No space.*--resume") as caught:
        go(paths, out)
    assert (caught.value.code, caught.value.exit_code) == ("not_written", 5)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.delattr(output, "open")
    assert go(paths, out, resume=True).resumed > 0
    assert rows_of(out) == rows_of(whole)


@in_one
@pytest.mark.parametrize("where", ["write_table", "replace"])
def test_parquet_on_a_full_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "results.parquet"
    paths = inputs.list_inputs([str(folder)])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parquet.ParquetWriter if where == "write_table" else os, where, full)
        with pytest.raises(DataError, match=r"No space.*--resume") as caught:
            go(paths, out)
    assert caught.value.code == "not_written"
    assert [path.name for path in tmp_path.iterdir()] == ["results.parquet.part"]
    assert go(paths, out, resume=True).resumed == 26
    assert parquet.read_table(out).num_rows == 26


@in_one
def test_a_damaged_parquet_file_is_told_as_such(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "results.parquet"
    paths = inputs.list_inputs([str(folder)])
    go(paths, out)
    whole = out.read_bytes()
    half = len(whole) // 2
    for damaged in (b"", b"no Parquet", whole[:half], whole[:4] + bytes(half) + whole[4 + half :]):
        out.write_bytes(damaged)
        with pytest.raises(DataError, match="is not a Parquet file"):
            go(paths, out, resume=True)
        assert out.read_bytes() == damaged
        assert [path.name for path in tmp_path.iterdir()] == [out.name]


@in_one
@pytest.mark.skipif(sys.platform == "win32", reason="no lock there")
def test_a_finished_parquet_file_is_locked_while_it_is_unpacked(
    folder: Path, tmp_path: Path
) -> None:
    fcntl = pytest.importorskip("fcntl")
    pytest.importorskip("pyarrow")
    out = tmp_path / "results.parquet"
    paths = inputs.list_inputs([str(folder)])
    go(paths, out)
    with open(out, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another batch"):
            go(paths, out, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert go(paths, out, resume=True).resumed == 26


@needs_names
@pytest.mark.parametrize("removed", [False, True])
def test_results_that_are_replaced_while_they_are_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "results.jsonl"
    out.touch()
    lock = fcntl.flock

    def late(file: Any, how: int) -> None:
        """Get the lock after the batch that had it has put another file there."""
        if removed:
            out.unlink()
        else:
            (tmp_path / "new").touch()
            os.replace(tmp_path / "new", out)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UsageError, match="another batch was writing"):
        go(["a.png"], out, resume=True)


@needs_names
def test_a_device_is_no_file_of_results(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    out.symlink_to(os.devnull)
    with pytest.raises(UsageError, match="is not a file"):
        go(["a.png"], out, resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="no lock there")
@in_one
def test_two_batches_do_not_write_one_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    paths = [str(folder / "01.png")]

    def second(stage: str, done: int, total: int) -> None:
        with pytest.raises(UsageError, match="another batch"):
            go(paths, out, resume=True)

    go(paths, out, progress=second)
    assert len(rows_of(out)) == 1


# --- processes that die --------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
@pytest.mark.parametrize("workers", [1, 3])
def test_a_dead_process_costs_one_image(folder: Path, tmp_path: Path, workers: int) -> None:
    content = (folder / "07.png").read_bytes()
    for k in range(12):
        (tmp_path / f"{k:02d}.png").write_bytes(content)
    for name in ("deadly", "buggy", "once-a", "once-b"):
        (tmp_path / f"{name}.png").write_bytes(content)
    paths = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    paths = [*paths[-4:-2], *paths[:6], *paths[-2:], *paths[6:-4]]
    out = tmp_path / "results.jsonl"
    summary = go(paths, out, workers=workers)
    rows = {Path(row["path"]).stem: row for row in rows_of(out)}
    assert [row["path"] for row in rows_of(out)] == paths
    assert summary.errors == {"crashed": 1, "error": 1}
    assert sum(summary.levels.values()) == 14
    assert rows["deadly"]["error"]["code"] == "crashed"
    assert "signal 9" in rows["deadly"]["error"]["message"]
    assert "ZeroDivisionError: in the middle of it" in rows["buggy"]["error"]["message"]
    assert "verdict" in rows["once-a"]
    assert "verdict" in rows["once-b"]


def test_an_image_that_takes_too_long_is_a_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "WAIT", 0.1)
    content = (folder / "07.png").read_bytes()
    paths = [tmp_path / f"{name}.png" for name in ("a", "slow-1", "b", "slow-2", "c", "d")]
    for path in paths:
        path.write_bytes(content)
    out = tmp_path / "results.jsonl"
    summary = go(map(str, paths), out, workers=2, timeout=2.0)
    assert [row["path"] for row in rows_of(out)] == list(map(str, paths))
    assert summary.errors == {"timed_out": 2}
    for row in rows_of(out):
        assert ("error" in row) == ("slow" in row["path"])
        if "error" in row:
            assert row["error"]["code"] == "timed_out"
            assert row["error"]["message"] == f"{row['path']}: not done after 2 seconds"


def test_paths_and_messages_of_any_length_block_nothing(tmp_path: Path) -> None:
    """More than fits a pipe, both ways: it must not be that both ends wait to send."""
    paths = [f"{k}{'x' * 300_000}" for k in range(6)] + [f"{'é' * 2047}{k}" for k in range(20)]
    out = tmp_path / "results.jsonl"
    summary = go(iter(paths), out, load=batch_detectors.talkative)
    rows = rows_of(out)
    assert [row["path"] for row in rows] == paths
    assert summary.errors == {"not_found": 6, "error": 20}
    assert "300001 bytes" in rows[0]["error"]["message"]
    for row in rows[6:]:
        message = row["error"]["message"]
        assert len(message) < 2100
        assert message.startswith(row["path"][:900])
        assert message.endswith("and so on.")


def test_processes_that_never_start_are_told(folder: Path, tmp_path: Path) -> None:
    paths = [str(folder / "01.png")]
    with pytest.raises(MasksimError, match=r"before they are ready \(exit code 7\)"):
        go(paths, tmp_path / "a.jsonl", workers=1, load=batch_detectors.dies_at_start)
    with pytest.raises(ModelError, match="its files have gone") as caught:
        go(paths, tmp_path / "b.jsonl", workers=1, load=batch_detectors.fails_at_start)
    assert caught.value.code == "model_not_found"


def test_memory_is_bounded_by_what_is_in_flight(folder: Path, tmp_path: Path) -> None:
    """Paths are taken only as rows are written, however many there are."""
    count, taken, most = 600, 0, 0
    deadly = tmp_path / "missing"

    def paths() -> Iterator[str]:
        nonlocal taken
        for k in range(count):
            taken += 1
            yield str(deadly / f"{k}.png")  # quick: not found

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal most
        most = max(most, taken - done)

    summary = go(paths(), tmp_path / "results.jsonl", workers=2, progress=progress)
    assert summary.errors == {"not_found": count}
    assert WINDOW <= most <= 2 * WINDOW + 1


# --- which images --------------------------------------------------------------------------------


def listed(*arguments: Any, **options: Any) -> list[str]:
    return inputs.list_inputs([str(a) for a in arguments], **options).paths


def test_folders_patterns_and_lists_mean_the_same(folder: Path, tmp_path: Path) -> None:
    everything = listed(folder)
    assert len(everything) == 26
    assert everything == listed(f"{folder}{os.sep}") == listed(folder, folder, everything[3])
    assert sorted(listed(folder / "*.*g", folder / "sub" / "*")) == sorted(everything)
    assert sorted(listed(f"{folder}/**/*.[pj]*g")) == sorted(everything)
    assert set(listed(f"{folder}/**")) - set(everything) == {str(folder / "notes.txt")}
    assert listed(folder, recursive=False) == [p for p in everything if "sub" not in p]
    text = tmp_path / "list.txt"
    text.write_text("\ufeff" + "\r\n".join([*everything, "", everything[0], "absent.dat"]), "utf-8")
    assert listed(text) == [*everything, "absent.dat"]
    table = tmp_path / "list.csv"
    with open(table, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["n", "where"], *enumerate(everything)])
    assert listed(table, column="where") == everything
    with pytest.raises(DataError, match="no column 'path'"):
        listed(table)
    assert inputs.list_inputs([str(table)], column="where").files == (str(table),)
    with pytest.raises(UsageError, match="is a list of images"):
        run_batch(
            inputs.list_inputs([str(table)], column="where"), table, overwrite=True,
            load=batch_detectors.trapped,
        )  # fmt: skip


def test_lists_start_from_a_folder_of_choice(tmp_path: Path) -> None:
    text = tmp_path / "list.txt"
    absolute = str(tmp_path / "b.png")
    text.write_text(f"a.png\n{absolute}\nfile:///c.png\n")
    assert listed(text) == ["a.png", absolute, "file:///c.png"]
    assert listed(text, root="there") == [
        os.path.join("there", "a.png"), absolute, "file:///c.png",
    ]  # fmt: skip


def test_a_parquet_list(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"image": ["a.png", None, "b.png"]}), path)
    assert listed(path, column="image") == ["a.png", "b.png"]
    with pytest.raises(DataError, match="no column"):
        listed(path)
    path.write_bytes(b"PAR2")
    with pytest.raises(DataError, match="not a Parquet file"):
        listed(path, column="image")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("minified.txt", b"a.png\n" + b"x" * 70_000, "not a list of paths"),
        ("photo.txt", b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\0\0\0", "binary"),
        ("powershell.txt", "a.png\r\n".encode("utf-16"), "UTF-16"),
        ("long.csv", b"path\n" + b"x" * 140_000, "not a CSV file"),
        ("wide.csv", b"path\n" + b"x" * 70_000, "not a list of paths"),
    ],
)
def test_what_is_no_list_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        listed(path)
    assert caught.value.code == "manifest_invalid"


@pytest.mark.parametrize("arguments", [[], ["-", "-"], ["absent"], ["absent/*.png"]])
def test_what_means_nothing_is_refused(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        inputs.list_inputs([str(tmp_path / a) if a != "-" else a for a in arguments])


@in_one
@needs_names
def test_names_of_all_kinds_survive(folder: Path, tmp_path: Path) -> None:
    content = (
        folder / "03.png" if (folder / "03.png").exists() else folder / "04.png"
    ).read_bytes()
    names = ["=1+1.png", "-x.png", "@a.png", "new\nline.png", 'quo"te,.png', "\udcff.png", "é.png"]
    names += ["carriage\rreturn.png", "both\r\n.png", "end.png\r", r"\xff.png", "\\\udcff.png"]
    images = tmp_path / "images"
    images.mkdir()
    for name in names:
        (images / name).write_bytes(content)
    list_file = tmp_path / "list.txt"
    list_file.write_bytes(b"\0".join(os.fsencode(name) for name in names))
    here = os.getcwd()
    os.chdir(images)
    try:
        paths = listed(list_file)
        assert paths[:3] == ["./=1+1.png", "./-x.png", "./@a.png"]  # no formula, no option
        assert paths[3:] == names[3:]
        for form in ("jsonl", "csv"):
            out = tmp_path / f"results.{form}"
            go(paths[:5], out)
            full = out.read_bytes()
            assert go(paths, out, resume=True).levels == {"no evidence": 12}
            assert go(paths, out, resume=True).resumed == 12
            if form == "jsonl":
                assert [row["path"] for row in rows_of(out)] == paths
                assert rows_of(out)[0]["image"]["name"] == "./=1+1.png"
            else:
                with open(out, encoding="utf-8", errors="surrogateescape", newline="") as file:
                    assert [row["path"] for row in csv.DictReader(file)] == paths
            # Cut inside the name with a line's end: no row is lost.
            out.write_bytes(full[: full.rindex(b"new") + 5])
            assert go(paths, out, resume=True).images == 12
    finally:
        os.chdir(here)
    assert len(listed(images)) == 11  # by its end one is no image


@in_one
@needs_names
def test_parquet_tells_odd_bytes_from_their_spelling(folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = ["\udcff.png", r"\xff.png", r"\\xff.png", "\\\udcff.png"]
    out = tmp_path / "results.parquet"
    assert go(paths[:1], out).images == 1
    assert go(paths, out, resume=True).images == 4
    assert go(paths, out, resume=True).resumed == 4
    written = parquet.read_table(out)["path"].to_pylist()
    assert written == [r"\xff.png", r"\\xff.png", r"\\\\xff.png", r"\\\xff.png"]


@needs_names
def test_links_in_circles_and_closed_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes((folder / "01.png").read_bytes())
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "linked").symlink_to(folder / "sub", target_is_directory=True)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a" / "loop")
    found = listed(tmp_path)
    assert found[:2] == [str(tmp_path / "loop.png"), str(tmp_path / "a" / "x.png")]
    assert len(found) == 2 + 9
    summary = go(found[:2], tmp_path / "results.jsonl")
    assert summary.errors == {"unreadable": 1}


def test_a_folder_that_cannot_be_read_is_a_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may read everything, so the system's refusal is played.
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = inputs.list_inputs([str(folder)])
    monkeypatch.undo()
    out = tmp_path / "results.jsonl"
    summary = go(found, out)
    row = rows_of(out)[-1]
    assert row["path"] == str(folder / "sub")
    assert row["error"]["code"] == "unreadable"
    assert "the folder cannot be read: Permission denied" in row["error"]["message"]
    assert summary.images == 17 + 1
    only = inputs.Inputs([str(folder / "sub")], found.unreadable)
    assert go(only, tmp_path / "only.jsonl").errors == {"unreadable": 1}


def test_shards_are_a_partition_that_stays() -> None:
    paths = [f"photos/{k}.jpg" for k in range(1000)]
    parts = [inputs.shard(paths, i, 4) for i in (1, 2, 3, 4)]
    assert sorted(path for part in parts for path in part) == sorted(paths)
    assert all(200 < len(part) < 300 for part in parts)
    assert all(part == [p for p in paths if p in set(part)] for part in parts)
    more = [*paths[500:], "photos/new.jpg", *paths[:500]]
    assert [set(inputs.shard(more, i, 4)) - {"photos/new.jpg"} for i in (1, 2, 3, 4)] == [
        set(part) for part in parts
    ]
    assert inputs.shard([f"./{p}" for p in parts[0]], 1, 4) == [f"./{p}" for p in parts[0]]
    # By hand, so that it stays: echo -n a.jpg | sha256sum | cut -c 1-16
    number = 1 + int("509b0d4641a7c3ba", 16) % 7
    assert inputs.shard(["a.jpg"], number, 7) == ["a.jpg"]
    for wrong in [(0, 4), (5, 4), (1, 0)]:
        with pytest.raises(UsageError):
            inputs.shard(paths, *wrong)


@in_one
def test_fsspec_reads_object_stores(folder: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    url = folder.as_uri()
    found = listed(url)
    assert [p.removeprefix(url) for p in found] == sorted(
        p.removeprefix(str(folder)) for p in listed(folder)
    )
    assert listed(f"{url}/sub/*.png") == [p for p in found if "/sub/" in p]
    out = tmp_path / "results.jsonl"
    summary = go([*found, f"{url}/gone.png"], out)
    assert summary.errors == {"truncated": 2, "not_found": 1}
    local = {Path(p).name: fake_detector.Detector() for p in listed(folder)}
    for row in rows_of(out):
        if "verdict" in row:
            alone = local[Path(row["path"]).name].detect(row["path"][len("file://") :])
            assert row["verdict"] == json.loads(json.dumps(alone.to_dict()["verdict"]))
            assert row["image"]["sha256"] == alone.image.sha256
    assert fsspec is not None
    with pytest.raises(UsageError, match="cannot be listed"):
        listed("nosuchstore://a/b")


# --- options of the function ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"engine": "spark"}, {"ray_address": "auto"}, {"timeout": 0.0}],
)
def test_wrong_options(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        go([str(folder / "01.png")], tmp_path / "results.jsonl", **options)
    with pytest.raises(UsageError, match=r"\.jsonl, \.csv, \.parquet"):
        go([str(folder / "01.png")], tmp_path / "results.xml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("level", [*STRENGTH, "no evidence", "uncalibrated"])
def test_which_levels_are_reached(level: str) -> None:
    summary = Summary("x", 1, 0, {level: 1}, {}, 1.0, 1, "d", "0")
    reached = [name for name in STRENGTH if summary.reaches(name)]
    expected = STRENGTH[: STRENGTH.index(level) + 1] if level in STRENGTH else ()
    assert reached == list(expected)
    assert not summary.reaches("error")
    with pytest.raises(UsageError):
        summary.reaches("certainty")


# --- the command, with the real detector ---------------------------------------------------------


def command(arguments: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONWARNINGS": "error"}
    return subprocess.Popen(
        [sys.executable, "-m", "masksim", "batch", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options,
    )  # fmt: skip


def finish(arguments: Sequence[str], stdin: bytes = b"") -> tuple[int, str, str]:
    process = command(arguments, stdin=subprocess.PIPE)
    out, err = process.communicate(stdin, timeout=120)
    return process.returncode, out.decode(), err.decode()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("photos")
    for k in range(40):
        Image.fromarray(make_natural(256, 256, k)).save(made / f"{k:02d}.jpg", quality=92)
    (made / "bad.jpg").write_bytes(b"not an image")
    return made


@pytest.fixture(scope="session")
def real_rows(photos: Path) -> list[dict[str, Any]]:
    """What the detector of the package says of each, in one process."""
    from masksim.load import load_detector

    detector = load_detector(threads=1)
    rows = [analyse(detector, path) for path in listed(photos)]
    for row in rows:
        del row["seconds"]
    return json.loads(json.dumps(rows))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no process groups there")
def test_kill_at_any_moment_and_go_on(
    photos: Path, real_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "results.jsonl"
    draw = random.Random(1)
    sizes = []
    for _ in range(3):
        process = command([str(photos), "--out", str(out), "--resume"], start_new_session=True)
        before = out.stat().st_size if out.exists() else 0
        limit = time.monotonic() + 60
        # As soon as it works again, then a moment more.
        while (out.stat().st_size if out.exists() else 0) <= before:
            assert time.monotonic() < limit
            if process.poll() is not None:
                break
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        sizes.append(out.stat().st_size)
    assert sizes[0] < sizes[-1]
    code, printed, said = finish([str(photos), "--out", str(out), "--resume", "--json"])
    assert code == 0, said
    assert rows_of(out) == real_rows
    summary = json.loads(printed)
    assert summary["images"] == 41
    assert summary["resumed"] > 0
    assert summary["errors"] == {"not_an_image": 1}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_command_on_a_full_disk(
    photos: Path, real_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """A limit on a file's size stands for the disk."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "results.jsonl"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    process = command([str(photos), "--out", str(out), "--workers", "1"], preexec_fn=limit)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 5, said
    assert b"Traceback" not in said
    assert f"{out} cannot be written: File too large".encode() in said
    assert b"--resume" in said
    assert b"[not_written]" in said
    assert out.stat().st_size == 10_000
    code, _, said_then = finish([str(photos), "--out", str(out), "--resume"])
    assert code == 0, said_then
    assert rows_of(out) == real_rows


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a process there")
def test_ctrl_c_keeps_the_rows(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    links = tmp_path / "links"  # so many that it is not done before we come, on a busy machine too
    links.mkdir()
    for k in range(800):
        (links / f"{k}.jpg").symlink_to(photos / f"{k % 40:02d}.jpg")
    process = command([str(links), "--out", str(out), "--workers", "1"], start_new_session=True)
    limit = time.monotonic() + 60
    while not (out.exists() and out.stat().st_size) and time.monotonic() < limit:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert b"Traceback" not in said
    assert said.strip() == b"interrupted"
    content = out.read_bytes()
    assert content.endswith(b"\n")
    assert 0 < content.count(b"\n") < 800


@pytest.mark.slow
def test_command_stdin_shards_and_exit_codes(
    photos: Path, real_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    names = "\n".join(listed(photos)).encode()
    parts, counts = [], []
    for i in (1, 2):
        out = tmp_path / f"{i}.jsonl"
        code, printed, said = finish(
            ["-", "--out", str(out), "--shard", f"{i}/2", "--json", "--fail-on", "error"], names
        )
        summary = json.loads(printed)
        assert code == (3 if summary["errors"] else 0), said
        assert f"{out}: {summary['images']} images" in said
        counts.append(len(summary["errors"]))
        parts += rows_of(out)
    assert sorted(counts) == [0, 1]
    assert sorted(parts, key=lambda row: row["path"]) == real_rows


@pytest.mark.parametrize("arguments", [[], ["--shard", "3"], ["--shard", "3/2"], ["--workers=0"]])
def test_command_refuses_before_any_work(
    arguments: list[str], photos: Path, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from masksim.cli.main import app

    out = tmp_path / "results.jsonl"
    if not arguments:
        out.touch()
    result = CliRunner().invoke(app, ["batch", str(photos), "--out", str(out), *arguments])
    assert result.exit_code == 2
    assert out.exists() == (not arguments)


def test_fail_on_a_level(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows that are there, so that each level is met without an image of it."""
    from typer.testing import CliRunner

    from masksim.cli.main import app
    from masksim.load import load_detector

    detector = load_detector(threads=1)
    paths = [photos / "00.jpg", photos / "bad.jpg"]
    rows = [analyse(detector, str(path)) for path in paths]
    out = tmp_path / "results.jsonl"

    def exit_code(level: str, *wanted: str) -> int:
        changed = [{**rows[0], "verdict": {**rows[0]["verdict"], "level": level}}, rows[1]]
        out.write_text("".join(json.dumps(row) + "\n" for row in changed))
        arguments = [x for name in wanted for x in ("--fail-on", name)]
        result = CliRunner().invoke(
            app, ["batch", *map(str, paths), "--out", str(out), "--resume", *arguments]
        )
        return result.exit_code

    assert exit_code("strong evidence") == 0
    assert exit_code("strong evidence", "evidence") == 10
    assert exit_code("evidence", "evidence", "error") == 10
    assert exit_code("weak evidence", "evidence") == 0
    assert exit_code("weak evidence", "evidence", "error") == 3
    assert exit_code("weak evidence", "inconclusive") == 10
    assert exit_code("inconclusive", "weak-evidence") == 0
    assert exit_code("no evidence", "inconclusive") == 0


def test_an_image_fact_more_is_a_column_more() -> None:
    assert {f"image_{name}" for name in ImageFacts.__dataclass_fields__ if name != "name"} < set(
        flat_columns([])
    )


# --- Ray -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # Ray warns of itself
def test_ray_and_local_are_identical(
    photos: Path,
    real_rows: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else last of all on a busy machine
    from functools import partial

    from masksim.load import load_detector

    out = tmp_path / "results.jsonl"
    paths = inputs.list_inputs([str(photos)])
    load = partial(load_detector, threads=1)
    closed = str(tmp_path / "closed")
    some = inputs.Inputs([*paths.paths[:20], closed], {closed: "closed: cannot be read"})
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert run_batch(some, out, load=load, workers=2, engine="ray").images == 21
        summary = run_batch(paths, out, load=load, workers=2, engine="ray", resume=True)
        assert (summary.images, summary.resumed) == (42, 21)
        rows = [row for row in rows_of(out) if row["path"] != closed]
        assert rows == real_rows
        assert rows_of(out)[20]["error"]["code"] == "unreadable"
        scored = score_dataset(
            ray.data.from_items([{"path": path} for path in paths.paths]), workers=2
        )
        flat = {row["path"]: row for row in scored.take_all()}
    finally:
        ray.shutdown()
    for row in real_rows:
        expected = flatten(row)
        got = flat[row["path"]]
        assert {k: got[k] for k in expected} == expected
