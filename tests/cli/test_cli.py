"""`masksim.cli.main`: results on stdout, messages on stderr, exit codes, and no traceback.

The first part runs with the detector of `fake_detector`; the last with the package's own.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import fake_detector as fake  # type: ignore[import-not-found]
import masksim
from masksim.cli import console
from masksim.cli import main as cli
from masksim.errors import ImageError
from masksim.provenance.origin import Origin, Says
from masksim.verdict import LEVELS
from terminal import FAKE, MAIN, TESTS, on_terminal, process, without  # type: ignore[import-not-found]

BUNDLED = Path(masksim.__file__).parent / "weights" / "default" / "detector.json"

NO_TORCH = without("torch", "onnx", "matplotlib")


@pytest.fixture
def photo(tmp_path: Path, natural_image: Callable[..., NDArray[np.uint8]]) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(natural_image(300, 400)).save(path, quality=90)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the app in this process, with the fake detector: ``run(*arguments, input=None)``."""
    monkeypatch.setattr("masksim.load.load_detector", fake.load_detector)
    monkeypatch.setenv("COLUMNS", "80")
    fake.calls.clear()

    def invoke(*arguments: Any, **options: Any) -> Any:
        return CliRunner().invoke(cli.app, [str(a) for a in arguments], **options)

    return invoke


def rows(text: str) -> list[dict[str, Any]]:
    """Read JSON Lines: each line is one object, and there is nothing else."""
    assert text.endswith("\n")
    found = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(row, dict) for row in found)
    return found


# ------------------------------------------------------------------------------------- detect


def test_text_of_one_image(run: Callable[..., Any], photo: Path) -> None:
    done = run("detect", photo)
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{photo}\n  No evidence of a known generator's")
    assert done.stderr == ""
    assert fake.calls == [
        {
            "path": None, "threads": None, "providers": ["CPUExecutionProvider"],
            "stability": True, "population": "auto", "likelihood_ratio": False,
            "metadata": True,
        }
    ]  # fmt: skip


def test_the_file_s_own_words_stand_apart(run: Callable[..., Any], tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0131] = "ChatGPT"
    path = tmp_path / "made.png"
    Image.new("RGB", (300, 300), "white").save(path, exif=tags)
    text = run("detect", path).stdout
    assert (
        "\n  The file says:\n    The file carries an unchecked claim that ChatGPT made it." in text
    )
    beside = "No evidence of a known generator's pattern. But the file carries an unchecked claim"
    assert beside in " ".join(text.split())
    (row,) = rows(run("detect", "--json", path).stdout)
    assert row["origin"]["generator"] == "ChatGPT"
    assert row["origin"]["beside"].startswith("No evidence")
    piped = rows(run("detect", "--json", "-", input=path.read_bytes()).stdout)
    assert piped[0]["origin"] == row["origin"]
    assert "The file says" not in run("detect", "--no-metadata", path).stdout
    (bare,) = rows(run("detect", "--json", "--no-metadata", path).stdout)
    assert bare["origin"] is None
    assert bare["verdict"] == row["verdict"]


def test_json_lines_in_the_order_given(run: Callable[..., Any], photo: Path) -> None:
    dark = photo.with_name("dark.png")
    Image.new("RGB", (256, 256)).save(dark)
    done = run("detect", "--json", dark, photo, dark)
    assert done.exit_code == 0
    found = rows(done.stdout)
    assert [row["image"]["name"] for row in found] == [str(dark), str(photo), str(dark)]
    assert [row["verdict"]["level"] for row in found] == [
        "strong evidence",
        "no evidence",
        "strong evidence",
    ]
    assert "maps" not in found[0]
    assert done.stderr == ""


def test_a_bad_image_is_a_row_and_the_rest_goes_on(run: Callable[..., Any], photo: Path) -> None:
    small = photo.with_name("small.png")
    Image.new("RGB", (255, 300)).save(small)
    arguments = [photo, small, "no\x1b[31m.png", photo]
    done = run("detect", "--json", *arguments)
    assert done.exit_code == 3
    found = rows(done.stdout)
    assert [row.get("error", {}).get("code") for row in found] == [
        None,
        "too_small",
        "not_found",
        None,
    ]
    assert [row["image"]["name"] for row in found] == [str(a) for a in arguments]
    assert done.stderr == "2 of 4 images could not be analysed\n"

    done = run("detect", *arguments)
    assert done.exit_code == 3
    assert f"{small}\n  Not analysed: {small}: under 256 pixels [too_small]\n" in done.stdout
    assert done.stdout.count("No evidence") == 2
    assert "\x1b" not in done.stdout


def test_hostile_files(
    run: Callable[..., Any], hostile_files: dict[str, tuple[Path, str]], photo: Path
) -> None:
    paths = [path for path, _ in hostile_files.values()]
    done = run("detect", "--json", *paths, photo)
    assert done.exit_code == 3
    *failed, last = rows(done.stdout)
    assert {Path(row["image"]["name"]): row["error"]["code"] for row in failed} == dict(
        hostile_files.values()
    )
    assert all(set(row) == {"image", "error"} for row in failed)
    assert last["verdict"]["level"] == "no evidence"
    assert done.stderr == f"{len(paths)} of {len(paths) + 1} images could not be analysed\n"


def test_an_image_on_stdin(run: Callable[..., Any], photo: Path) -> None:
    done = run("detect", "--json", "-", photo, input=photo.read_bytes())
    assert done.exit_code == 0
    first, second = rows(done.stdout)
    assert first["image"].pop("name") == "<stdin>"
    assert second["image"].pop("name") == str(photo)
    assert first["image"] == second["image"]

    done = run("detect", "--json", "-", input=b"")
    assert done.exit_code == 3
    assert rows(done.stdout)[0]["error"]["code"] == "empty_file"
    assert run("detect", "-", "-", input=photo.read_bytes()).exit_code == 2


def test_pictures(run: Callable[..., Any], photo: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    twin = tmp_path / "b" / "PHOTO.jpg"
    twin.write_bytes(photo.read_bytes())
    folder = tmp_path / "deep" / "maps"
    done = run("detect", "--json", "--maps", folder, photo, "missing.png", twin)
    assert done.exit_code == 3
    first, missing, second = rows(done.stdout)
    assert "maps" not in missing
    written = [*first["maps"].values(), *second["maps"].values()]
    assert list(first["maps"]) == list(fake.GENERATORS)
    assert sorted(written) == sorted(str(path) for path in folder.iterdir())
    assert len({path.lower() for path in written}) == 2 * len(fake.GENERATORS)
    with Image.open(first["maps"]["dalle3"]) as image:
        assert image.format == "PNG"

    done = run("detect", "--maps", folder, photo)  # before any image is analysed
    assert (done.exit_code, done.stdout) == (2, "")
    assert "is there; --overwrite replaces it" in done.stderr
    text = run("detect", "--maps", folder, "--overwrite", photo).stdout
    assert text.count("  Picture: ") == len(fake.GENERATORS)
    done = run("detect", "--maps", photo, photo)  # not a folder
    assert (done.exit_code, done.stdout) == (2, "")


def test_picture_names_are_plain_and_distinct(tmp_path: Path) -> None:
    images = ["../..", "<stdin>", "<x>", "a.jpg", "a.jpg", "a.jpg"]
    planned = cli.picture_paths(tmp_path, images, ["a:b", "sd1"])
    paths = [path for one in planned for path in one.values()]
    assert len(set(paths)) == 12
    assert all(path.parent == tmp_path and not path.name.startswith(".") for path in paths)
    names = [path.name for path in paths if "sd1" in path.name]
    assert names[-3:] == ["a.jpg-sd1.png", "a.jpg-sd1-2.png", "a.jpg-sd1-3.png"]


def test_no_detector(run: Callable[..., Any], photo: Path) -> None:
    done = run("detect", "--json", "--model", "nowhere", photo)
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr == "error: there is no detector in nowhere [model_not_found]\n"


def test_no_cuda(run: Callable[..., Any], photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    done = run("detect", "--device", "cuda", photo)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "onnxruntime-gpu" in done.stderr
    assert fake.calls == []

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    assert run("detect", "--device", "cuda", "--threads", "3", photo).exit_code == 0
    (call,) = fake.calls
    assert (call["threads"], call["providers"]) == (3, both)
    asked = run("detect", "--quick", "--population", "x", "--likelihood-ratio", photo)
    assert asked.exit_code == 0
    options = {"stability": False, "population": "x", "likelihood_ratio": True}
    assert options.items() <= fake.calls[-1].items()


@pytest.mark.parametrize(
    "arguments",
    [
        ["detect"],
        ["detect", "--unknown", "x.png"],
        ["detect", "--threads", "0", "x.png"],
        ["detect", "--device", "tpu", "x.png"],
        ["unknown"],
        ["info", "extra"],
    ],
)
def test_wrong_usage(run: Callable[..., Any], arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr


def test_ctrl_c(run: Callable[..., Any], photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(fake.Detector, "detect", stop)
    done = run("detect", photo)
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_folder_or_a_pattern_leads_to_batch(run: Callable[..., Any], photo: Path) -> None:
    folder = photo.parent / "my photos"
    folder.mkdir()
    for given in (folder, photo.parent / "*.jpg"):
        for option in ([], ["--maps", photo.parent / "maps"]):
            done = run("detect", "--json", *option, given)
            assert done.exit_code == 3
            (row,) = rows(done.stdout)
            assert row["error"]["code"] == ("not_a_file" if given == folder else "not_found")
            assert f"masksim batch '{given}' --out results.jsonl" in row["error"]["message"]
    assert "masksim batch" in " ".join(run("detect", folder).stdout.split())
    assert "masksim batch" in run("report", folder, "-o", photo.parent / "r.html").stderr


@pytest.mark.parametrize(
    "address", ["https://example.com/a//b.jpg?x=1", "s3://bucket/a.png", "file:///tmp/a.png"]
)
def test_an_address_is_not_fetched(run: Callable[..., Any], address: str, tmp_path: Path) -> None:
    done = run("detect", "--json", address)
    assert done.exit_code == 3
    (row,) = rows(done.stdout)
    assert row["image"]["name"] == address
    assert row["error"]["code"] == "not_found"
    assert row["error"]["message"].startswith(f"{address}: ")
    assert "fetches nothing" in row["error"]["message"]
    done = run("report", address, "-o", tmp_path / "r.html")
    assert (done.exit_code, address in done.stderr) == (3, True)
    done = run("info", "--model", address)
    assert done.exit_code == 2
    assert "fetches nothing" in " ".join(done.stderr.replace("│", " ").split())


def test_progress_in_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    clock = iter([0.0, 0.0, 5.0, 10.0, 15.0, 20.0])
    monkeypatch.setattr(console, "say", said.append)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with console.stages(every=10) as progress:
        for done in (10, 60, 110, 160, 210):
            progress("images", done, 10210)
    assert said == [
        "110 of 10210 images, 10.0 images/s, 17 min left",
        "210 of 10210 images, 10.0 images/s, 17 min left",
    ]


def test_a_remark_begins_no_new_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with console.stages() as progress:
        progress("preparing", 1, 4)
        progress("preparing (1 failed)", 2, 4)
        progress("a.zip", 0, 9)
        progress("a.zip (unpack)", 0, 9)
    assert capsys.readouterr().err.splitlines() == [
        "preparing: 4 parts, 1 done before",
        "a.zip: 9 parts, 0 done before",
        "a.zip (unpack): 9 parts, 0 done before",
    ]


# ------------------------------------------------------------------------------ other commands


def every_command(app: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group."""
    yield words
    for one in app.registered_commands:
        yield *words, one.name or one.callback.__name__.replace("_", "-")
    for group in app.registered_groups:
        yield from every_command(group.typer_instance, (*words, group.typer_instance.info.name))


@pytest.mark.parametrize("words", list(every_command(cli.app)), ids=" ".join)
def test_short_help(run: Callable[..., Any], words: tuple[str, ...]) -> None:
    short, long = run(*words, "-h"), run(*words, "--help")
    assert (short.exit_code, short.stdout) == (0, long.stdout)
    assert "Usage" in short.stdout


def test_the_help_of_report_shows_its_options(run: Callable[..., Any]) -> None:
    shown = run("report", "--help").stdout
    for option in ("--out", "-o", "--maps", "--overwrite", "--json", "--model", "verify", "IMAGE"):
        assert option in shown, option


def test_no_colour_when_none_is_wanted() -> None:
    """Neither in help nor in wrong usage, on a terminal; `NO_COLOR` empty counts as not set."""
    for arguments in (["--help"], ["detect", "--help"], ["detect", "--unknown"], ["report", "-h"]):
        for force in ({}, {"FORCE_COLOR": "1"}):
            plain = on_terminal(*arguments, stdout=True, env={"NO_COLOR": "1", **force})
            assert plain.shown
            assert b"\x1b" not in plain.shown
    coloured = on_terminal("--help", stdout=True, env={"NO_COLOR": ""})
    assert b"\x1b[" in coloured.shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_tab_completion(shell: str) -> None:
    before = "import sys; sys.argv[0] = 'masksim'\n"
    asked = {
        **os.environ, "_MASKSIM_COMPLETE": f"complete_{shell}", "COMP_WORDS": "masksim de",
        "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "masksim de",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    done = process(before=before, env=asked)
    assert b"detect" in done.stdout, done
    assert b"info" not in done.stdout
    script = {**os.environ, "_MASKSIM_COMPLETE": f"source_{shell}"}
    assert b"masksim" in process(before=before, env=script).stdout


def test_the_word_for_the_detector_of_the_package(
    run: Callable[..., Any], photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from masksim.load import bundled_path

    monkeypatch.chdir(tmp_path)
    assert run("detect", "--model", "default", photo).exit_code == 0
    assert fake.calls[-1]["path"] == bundled_path()
    assert run("info", "--model", "default").exit_code == 0
    (tmp_path / "default").mkdir()  # a folder of that name goes before
    assert run("info", "--model", "default").exit_code == 4
    assert fake.calls[-1]["path"] == Path("default")


def test_every_command_takes_the_detector_alike() -> None:
    """`--model` and DETECTOR are declared once: an address and `default` mean the same anywhere."""

    def callbacks(app: Any) -> Iterator[Any]:
        yield from (one.callback for one in app.registered_commands)
        for group in app.registered_groups:
            yield from callbacks(group.typer_instance)

    found = [
        parameter.annotation
        for callback in callbacks(cli.app)
        for name, parameter in inspect.signature(callback).parameters.items()
        if name in ("model", "detector")
    ]
    assert len(found) >= 12
    assert set(found) == {"Model", "DetectorArgument"}


def test_cache(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kept"
    monkeypatch.setenv("MASKSIM_CACHE", str(folder))
    (folder / "pieces" / "a").mkdir(parents=True)
    (folder / "pieces" / "a" / "0.npz").write_bytes(b"x" * 2_000_000)
    (folder / "mine.txt").write_text("of somebody else")
    assert json.loads(run("cache", "--json").stdout) == {
        "cache": str(folder), "bytes": {"pieces": 2_000_000, "archives": 0},
    }  # fmt: skip
    assert "pieces: 2.0 MB" in run("cache").stdout
    assert "pieces: 0.0 MB" in run("cache", "--clear").stdout
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    monkeypatch.delenv("MASKSIM_CACHE")
    from platformdirs import user_cache_dir

    shown = json.loads(run("cache", "--json").stdout)
    assert shown["cache"] == user_cache_dir("masksim", appauthor=False)


# Each with files that are not there: what is missing is told before any file is looked for.
EXTRAS = [
    ("enroll", ["enroll", "new", "nowhere", "--out", "d"], "scipy", "enroll"),
    ("enroll", ["enroll", "new", "nowhere", "--out", "d"], "sklearn", "enroll"),
    ("train", ["train", "--manifest", "none.csv", "--out", "d"], "sklearn", "train"),
    ("train", ["train", "--manifest", "none.csv", "--out", "d"], "onnx", "train"),
    (
        "original",
        ["train", "--recipe", "original", "--manifest", "none.csv", "--out", "d"],
        "torch", "train",
    ),
    ("residual", ["train-residual", "--manifest", "none.csv", "--out", "d"], "torch", "train"),
    (
        "board",
        ["train-residual", "--manifest", "none.csv", "--out", "d", "--tensorboard"],
        "tensorboard", "tensorboard",
    ),
    ("import", ["import-original", "nowhere", "d"], "torch", "train"),
    ("evaluate", ["evaluate", "--manifest", "none.csv"], "sklearn", "evaluate"),
    (
        "pictures",
        ["evaluate", "--manifest", "none.csv", "--out", "d", "--pictures"], "matplotlib", "plot",
    ),
    ("parquet", ["evaluate", "--manifest", "none.parquet"], "pyarrow", "parquet"),
    ("batch", ["batch", "nowhere", "--out", "r.parquet"], "pyarrow", "parquet"),
    ("ray", ["batch", "nowhere", "--out", "r.csv", "--engine", "ray"], "ray", "ray"),
    ("remote", ["batch", "s3://bucket/x", "--out", "r.csv"], "fsspec", "remote"),
    ("audit", ["audit", "nowhere", "--manifest", "none.parquet"], "pyarrow", "parquet"),
    ("onnx", ["export", "onnx", "nowhere", "--out", "g.onnx"], "onnx", "export"),
    ("openvino", ["export", "openvino", "nowhere", "--out", "g"], "openvino", "export"),
    ("verify", ["export", "verify", "g.xml", "nowhere", "a.jpg"], "openvino", "export"),
    ("download", ["data", "download", "nothing"], "httpx", "data"),
    (
        "prepare",
        ["data", "prepare", "--real", "nowhere", "--parquet"], "pyarrow", "parquet",
    ),
    ("near", ["data", "verify", "none.csv"], "imagehash", "data"),
    ("probe", ["data", "verify", "none.csv", "--near", "-1"], "sklearn", "data"),
    ("serve", ["serve", "--model", "nowhere"], "fastapi", "serve"),
    ("serve", ["serve", "--model", "nowhere"], "uvicorn", "serve"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "package", "extra"), [one[1:] for one in EXTRAS])
def test_extras_are_asked_for_first(
    run: Callable[..., Any],
    arguments: list[str],
    package: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Missing:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name.split(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    if package == "tensorboard":
        pytest.importorskip("torch", reason="without torch, that is what is missing first")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing, *sys.meta_path])
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert f'python -m pip install ".[{extra}]"' in done.stderr
    assert done.stderr.count("\n") == 1
    assert "[extra_missing]" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--manifest", "m.csv", "--split", "train"],
        ["audit", "default", "--manifest", "m.csv", "--split", "train"],
        ["export", "verify", "g.onnx", "default", "--manifest", "m.csv", "--split", "train"],
        ["data", "verify", "m.csv", "--split", "train"],
        ["train", "--manifest", "m.csv", "--out", "d"],
        ["train", "--recipe", "original", "--manifest", "m.csv", "--out", "d"],
        ["train-residual", "--manifest", "m.csv", "--out", "d"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_a_split_without_images_is_named(
    run: Callable[..., Any], words: list[str], photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of names and kinds, as the original's, has all its images in the split test."""
    if "original" in words or words[0] == "train-residual":
        pytest.importorskip("torch")
    monkeypatch.chdir(photo.parent)
    Path("m.csv").write_text("filename,typ\nphoto.jpg,real\n")
    done = run(*words)
    assert (done.exit_code, done.stdout) == (5, ""), done.output
    assert "no image is in the split 'train'; images by split: test 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_help(run: Callable[..., Any]) -> None:
    assert run("--version").stdout == f"masksim {masksim.__version__}\n"
    assert run("-V").stdout == run("--version").stdout
    shown = run("--help").stdout
    assert all(command in shown for command in ("detect", "info", "import-original", "data"))
    assert run("data", "--help").exit_code == 0


def test_info(run: Callable[..., Any]) -> None:
    facts = json.loads(run("info", "--json").stdout)
    assert facts["generators"] == list(fake.GENERATORS)
    stratum = {"stratum": "all", "photos": fake.SAMPLE_SIZE, "sources": fake.SAMPLE_SIZE}
    assert facts["calibration"] == {
        "sample_size": fake.SAMPLE_SIZE,
        "photos": fake.SAMPLE_SIZE,
        "populations": {"built-in": [stratum]},
    }
    assert facts["branches"][0]["preprocess"] == {"window": 256, "windows": 5}
    assert facts["sha256"] == fake.Detector.sha256
    text = run("info").stdout
    assert f"calibration: {fake.SAMPLE_SIZE} real photos" in text
    assert 'trained_on: ["a", "b"]' in text
    done = run("info", "--model", "nowhere")
    assert (done.exit_code, done.stdout) == (4, "")


def test_import_original_of_nothing(run: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="importing needs torch, and says so first")
    (tmp_path / "empty").mkdir()
    done = run("import-original", tmp_path / "empty", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (4, "")
    assert "[model_not_found]" in done.stderr
    done = run("import-original", tmp_path / "empty", tmp_path / "out", "--colour", "CMYK")
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_import_original(run: Callable[..., Any], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="importing needs torch")
    import make_original_fixture as original  # type: ignore[import-not-found]

    arrays = original.state("linear3x3", 64, 1)
    content = {
        "state_dict": {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()},
        "hyper_parameters": {"preprocess": "linear3x3", "num_masks": 1, "img_size": 64},
    }
    torch.save(content, tmp_path / "sd1-epoch=3-valid_auroc=1.00-valid_loss=0.1-low_loss.ckpt")
    done = run("import-original", tmp_path, tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'out'}: sd1, sha256 ")
    assert run("import-original", tmp_path, tmp_path / "out").exit_code == 2
    again = run("import-original", tmp_path, tmp_path / "out", "--overwrite", "--colour", "RGB")
    assert again.exit_code == 0


# ------------------------------------------------------------------------- what is documented


def fields(value: Any) -> Iterator[str]:
    """Every key of a result, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from fields(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner)


def test_every_field_code_level_and_option_is_documented(run: Callable[..., Any]) -> None:
    page = (TESTS.parent / "docs" / "detect.md").read_text(encoding="utf-8")
    names = {*fields(fake.detection().to_dict()), "maps", "error", *ImageError.codes}
    names |= {*fields(Origin().to_dict()), "beside", *get_args(Says)}
    names |= {level for _, level in LEVELS} | {"no evidence", "uncalibrated"}
    assert [name for name in sorted(names) if f"`{name}`" not in page and name != "error"] == []
    for option in re.findall(r"--[a-z]+", run("detect", "--help").stdout):
        assert f"`{option}" in page or option == "--help"


# ----------------------------------------------------------------------------- whole processes


def test_streams_and_exit_codes_of_a_process(photo: Path) -> None:
    done = process("detect", "--json", photo, "missing.png")
    assert done.returncode == 3
    assert len(rows(done.stdout.decode("ascii"))) == 2
    assert done.stderr.splitlines() == [b"1 of 2 images could not be analysed"]

    done = process("detect", "--json", photo, "--model", "nowhere")
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"Traceback" not in done.stderr


def test_odd_names_on_an_ascii_terminal(photo: Path) -> None:
    path = photo.with_name("f\u00e9\udce9\u4e2d.jpg")
    try:
        path.write_bytes(photo.read_bytes())
    except (OSError, UnicodeError):
        pytest.skip("this file system takes text alone as names")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    for options in ([], ["--json"]):
        done = process("detect", *options, path, env=ascii_only)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
    assert rows(done.stdout.decode())[0]["image"]["name"] == str(path)


@pytest.mark.skipif(os.name != "posix", reason="pipes as on Unix")
def test_a_reader_that_leaves(photo: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", FAKE + MAIN, "detect", "--json"]
    with subprocess.Popen(
        [*command, *[str(photo)] * 50], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        complaint = child.stderr.read()
        assert child.wait(60) == 141
    assert complaint == b""


@pytest.mark.skipif(os.name != "posix", reason="signals as on Unix")
def test_ctrl_c_in_a_process() -> None:
    command = [sys.executable, "-W", "error", "-c", FAKE + MAIN, "detect", "--json", "no.png", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()  # the first row: now it reads stdin, which stays open
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
        assert child.stderr.read() == b"interrupted\n"


def test_help_is_light() -> None:
    heavy = ["PIL", "numpy", "onnxruntime", "safetensors", "sklearn", "torch"]
    code = (
        f"import sys, atexit\natexit.register(lambda: print([n for n in {heavy} if n in "
        "sys.modules], file=sys.stderr))\n"
    )
    done = process("--help", before=code)
    assert done.returncode == 0
    assert done.stderr.strip() == b"[]"


# ------------------------------------------------------------------------- the real detector

bundled = pytest.mark.skipif(
    not BUNDLED.is_file(), reason="the package holds no trained detector (weights/default)"
)


@bundled
def test_the_bundled_detector_needs_no_torch(photo: Path, tmp_path: Path) -> None:
    done = process(
        *("detect", "--json", "--maps", tmp_path / "maps", photo, "missing.png"), before=NO_TORCH
    )
    assert done.returncode == 3, done.stderr
    found, missing = rows(done.stdout.decode())
    assert missing["error"]["code"] == "not_found"
    assert found["image"]["name"] == str(photo)
    assert found["image"]["format"] == "JPEG"
    names = [score["generator"] for score in found["scores"]]
    assert set(found["maps"]) == set(names)
    assert found["verdict"]["sample_size"] > 0
    for score in found["scores"]:
        assert 0 < score["false_positive_rate"] <= 1
    for path in found["maps"].values():
        with Image.open(path) as image:
            image.load()


@bundled
def test_the_bundled_detector_and_hostile_files(
    hostile_files: dict[str, tuple[Path, str]], photo: Path
) -> None:
    paths = [path for path, _ in hostile_files.values()]
    done = process("detect", "--json", *paths, photo, before="")
    assert done.returncode == 3
    *failed, last = rows(done.stdout.decode())
    codes = {Path(row["image"]["name"]): row["error"]["code"] for row in failed}
    assert codes == dict(hostile_files.values())
    assert "verdict" in last


@bundled
def test_the_bundled_detector_in_words(photo: Path) -> None:
    done = process("detect", photo, before="")
    assert done.returncode == 0
    assert b"real photos" in done.stdout
    facts = json.loads(process("info", "--json", before="").stdout)
    assert facts["calibration"]["sample_size"] > 0
    assert facts["generators"]
    assert process("info", before="").returncode == 0
