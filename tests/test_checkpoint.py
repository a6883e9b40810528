"""`masksim.checkpoint`: detector files that survive, and files that must not pass."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import make_original_fixture as fixture  # type: ignore[import-not-found]
from masksim.checkpoint import Branch, DetectorFile
from masksim.errors import ModelError, UsageError
from masksim.residual import OnnxResidual, ResidualConfig, residual_onnx

WINDOW = 24


def original_branch(generator: str = "sd1", **changes: Any) -> Branch:
    config = ResidualConfig("linear3x3")
    arrays = fixture.state("linear3x3", WINDOW, 1)
    weights = {"0.weight": arrays.pop("preproc.0.weight")}
    values: dict[str, Any] = {
        "residual": config,
        "residual_weights": weights,
        "onnx": residual_onnx(config, weights),
        "preprocess": {"window": WINDOW, "colour": "RGB", "windows": 1, "aligned": True},
        "spectrum": {"kind": "log", "epsilon": 1e-10},
        "head": "original",
        "generators": (generator,),
        "tensors": arrays,
    }
    return Branch(**{**values, **changes})


def shared_branch() -> Branch:
    config = ResidualConfig("cross_diff")
    transposed = np.arange(12, dtype=np.float32).reshape(3, 4).T  # not in the order of memory
    return Branch(
        residual=config,
        residual_weights={},
        onnx=residual_onnx(config, {}),
        preprocess={"window": 256, "colour": "RGB"},
        spectrum={"kind": "welch", "segment": 256, "hop": 0.5},
        head="shared",
        generators=("DALL-E 3", "gpt-image"),
        tensors={"half": np.linspace(-1, 1, 7, dtype=np.float16), "order": transposed},
        head_config={"blocks": [4, 8]},
    )


def some_file() -> DetectorFile:
    return DetectorFile(
        config={"recipe": "test", "threshold": 0.1 + 0.2, "text": "é\n"},
        branches=(original_branch(), shared_branch()),
        calibration={"scores": np.arange(5.0), "counts": np.arange(3)},
        provenance={"by": "the tests", "list": [1, None, True]},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    some_file().save(tmp_path / "detector")
    return tmp_path / "detector"


def assert_same(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        np.testing.assert_array_equal(found[name], values)


# --- the folder --------------------------------------------------------------------------------


def test_a_file_comes_back_as_it_was(folder: Path) -> None:
    expected, found = some_file(), DetectorFile.load(folder)
    assert found.config == expected.config
    assert found.provenance == expected.provenance
    assert found.calibration is not None
    assert_same(found.calibration, expected.calibration)
    assert found.generators == ("sd1", "DALL-E 3", "gpt-image")
    for a, b in zip(found.branches, expected.branches, strict=True):
        assert_same(a.tensors, b.tensors)
        assert_same(a.residual_weights, b.residual_weights)
        for part in ("residual", "onnx", "preprocess", "spectrum", "head", "head_config"):
            assert getattr(a, part) == getattr(b, part)
        assert a.generators == b.generators
        pixels = np.random.default_rng(1).random((1, 3, 9, 9), dtype=np.float32)
        assert OnnxResidual(a.onnx)(pixels).shape == pixels.shape


def test_the_folder_holds_what_is_documented(folder: Path) -> None:
    parts = {
        "heads.safetensors",
        "calibration.safetensors",
        "residual-0.onnx",
        "residual-0.safetensors",
        "residual-1.onnx",
    }
    assert {p.name for p in folder.iterdir()} == parts | {"detector.json"}
    described = json.loads((folder / "detector.json").read_text(encoding="utf-8"))
    for name in parts:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert described["parts"][name] == digest
    if os.name == "posix":  # readable as any new folder is
        (folder.parent / "other").mkdir()
        assert folder.stat().st_mode == (folder.parent / "other").stat().st_mode


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    saved = [some_file().save(tmp_path / name) for name in ("a", "b")]
    assert saved[0].sha256 == saved[1].sha256 == DetectorFile.load(tmp_path / "a").sha256
    assert len(saved[0].sha256) == 64
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_no_calibration_is_none(tmp_path: Path) -> None:
    DetectorFile(config={}, branches=(shared_branch(),)).save(tmp_path / "deep" / "er")
    assert DetectorFile.load(tmp_path / "deep" / "er").calibration is None


def test_loading_needs_neither_torch_nor_onnx_nor_pickle(folder: Path) -> None:
    code = (
        "import sys, pickle\n"
        "sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "def refuse(*a, **k): raise AssertionError('pickle')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = refuse\n"
        "from masksim.checkpoint import DetectorFile\n"
        "print(DetectorFile.load(sys.argv[1]).generators)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('sd1', 'DALL-E 3', 'gpt-image')"


PARTS = [
    "detector.json",
    "heads.safetensors",
    "calibration.safetensors",
    "residual-0.onnx",
    "residual-0.safetensors",
    "residual-1.onnx",
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.9])
def test_one_changed_byte_is_noticed(folder: Path, part: str, place: float) -> None:
    path = folder / part
    data = bytearray(path.read_bytes())
    at = int(place * len(data))
    while data[at : at + 1].isspace():  # the description may be laid out anew
        at += 1
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        DetectorFile.load(folder)
    codes = {"model_hash", "model_invalid"} if part == "detector.json" else {"model_hash"}
    assert caught.value.code in codes


@pytest.mark.parametrize("part", PARTS)
def test_missing_empty_and_truncated_parts(folder: Path, part: str) -> None:
    path = folder / part
    data = path.read_bytes()
    for kept in (b"", data[: len(data) // 2], data + b"x"):
        path.write_bytes(kept)
        with pytest.raises(ModelError) as caught:
            DetectorFile.load(folder)
        assert caught.value.code == ("model_invalid" if part == "detector.json" else "model_hash")
    path.unlink()
    with pytest.raises(ModelError) as caught:
        DetectorFile.load(folder)
    assert caught.value.code == ("model_not_found" if part == "detector.json" else "model_invalid")


def test_what_is_no_detector(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    for name in ("absent", "empty", "file"):
        with pytest.raises(ModelError) as caught:
            DetectorFile.load(tmp_path / name)
        assert caught.value.code == "model_not_found"
    for text in ("{}", "[]", "null", '{"format": "other"}', "[" * 100_000, "\xff", '"\\ud800"'):
        (tmp_path / "empty" / "detector.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ModelError) as caught:
            DetectorFile.load(tmp_path / "empty")
        assert caught.value.code == "model_invalid"


def rewrite(folder: Path, change: Callable[[Any], Any], *, sign: bool = True) -> None:
    """Change the description and, as whoever means harm can, give it its digest again."""
    path = folder / "detector.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    change(described)
    if sign:
        described.pop("digest", None)
        text = json.dumps(described, sort_keys=True, separators=(",", ":"))
        described["digest"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(described), encoding="utf-8")


def test_layout_and_order_do_not_matter(folder: Path) -> None:
    before = DetectorFile.load(folder).sha256
    rewrite(folder, lambda d: None, sign=False)
    assert DetectorFile.load(folder).sha256 == before
    rewrite(folder, lambda d: None)
    assert DetectorFile.load(folder).sha256 == before


HARMFUL: dict[str, Callable[[Any], Any]] = {
    "unknown keys in the description: ['extra']": lambda d: d.update(extra=1),
    "missing keys in the description: ['provenance']": lambda d: d.pop("provenance"),
    "unknown keys in a branch: ['extra']": lambda d: d["branches"][0].update(extra=1),
    "missing keys in a branch: ['spectrum']": lambda d: d["branches"][0].pop("spectrum"),
    "format version 2": lambda d: d.update(format_version=2),
    "format version True": lambda d: d.update(format_version=True),
    "format version None": lambda d: d.pop("format_version"),
    "branches must be a list": lambda d: d.update(branches={}),
    "a branch must be a dict": lambda d: d.update(branches=[1]),
    "a detector has 1 to 1000 branches": lambda d: d.update(branches=[]),
    "config must be a dict": lambda d: d.update(config=None),
    "unknown kind of head 'other'": lambda d: d["branches"][0].update(head="other"),
    "head must be a str": lambda d: d["branches"][0].update(head=["original"]),
    "configuration of the residual: ['x']": lambda d: d["branches"][0]["residual"].update(x=1),
    "'bank', 'learned'], got 'unet'": lambda d: d["branches"][0].update(residual={"kind": "unet"}),
    "'bank', 'learned'], got []": lambda d: d["branches"][0].update(residual={"kind": []}),
    "generators must be strings": lambda d: d["branches"][0].update(generators=[1]),
    "a branch needs generators": lambda d: d["branches"][0].update(generators=[]),
    "each once": lambda d: d["branches"][1].update(generators=["a", "a"]),
    "invalid name of a generator: '../../x'": lambda d: d["branches"][0].update(
        generators=["../../x"]
    ),
    "unknown parts: ['../secret']": lambda d: d["parts"].update({"../secret": "0" * 64}),
    "unknown parts: ['/etc/hostname']": lambda d: d["parts"].update({"/etc/hostname": "0" * 64}),
    "unknown parts: ['residual-2.onnx']": lambda d: d["parts"].update({"residual-2.onnx": "0"}),
    "does not list the parts ['residual-1.onnx']": lambda d: d["parts"].pop("residual-1.onnx"),
    "parts must be a dict": lambda d: d.update(parts=[]),
    "needs the side of its window": lambda d: d["branches"][0].update(preprocess={}),
    "expected (3, 25, 25)": lambda d: d["branches"][0].update(preprocess={"window": 25}),
    "which is of no branch": lambda d: (
        d["branches"].pop(),
        d["parts"].pop("residual-1.onnx"),
    ),
    "not 7": lambda d: d["parts"].update({"heads.safetensors": 7}),
}


@pytest.mark.parametrize("message", HARMFUL)
def test_a_harmful_description_is_refused(folder: Path, message: str) -> None:
    (folder.parent / "secret").write_text("secret")
    rewrite(folder, HARMFUL[message])
    with pytest.raises(ModelError) as caught:
        DetectorFile.load(folder)
    assert message in str(caught.value)
    assert caught.value.code == ("model_hash" if message == "not 7" else "model_invalid")
    assert caught.value.exit_code == 4


def test_a_harmful_part_with_its_own_hash_is_refused(folder: Path) -> None:
    heads = safetensors.numpy.load((folder / "heads.safetensors").read_bytes())
    nan = {**heads, "0.clf_a": np.array(np.nan, dtype=np.float32)}
    for data, message in (
        (b"not tensors", "heads.safetensors is not a safetensors file"),
        (b"\xff" * 64, "heads.safetensors is not a safetensors file"),
        (safetensors.numpy.save({**heads, "01.x": heads["0.clf_a"]}), "'01.x', which is of no"),
        (safetensors.numpy.save({**heads, "x": heads["0.clf_a"]}), "'x', which is of no branch"),
        (safetensors.numpy.save({**heads, "0.x": heads["0.clf_a"]}), "x is unknown"),
        (safetensors.numpy.save({"0.clf_a": heads["0.clf_a"]}), "clf_b is missing"),
        (safetensors.numpy.save(nan), "clf_a has values that are not finite"),
    ):
        (folder / "heads.safetensors").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        hashes = {"heads.safetensors": digest}
        rewrite(folder, functools.partial(lambda new, d: d["parts"].update(new), hashes))
        with pytest.raises(ModelError) as caught:
            DetectorFile.load(folder)
        assert message in str(caught.value)
        assert caught.value.code == "model_invalid"


def test_parts_that_do_not_fit_are_refused_before_saving() -> None:
    for changes, message in (
        ({"generators": ("a", "b")}, "one generator"),
        ({"generators": ()}, "needs generators"),
        ({"generators": ("a/b",)}, "invalid name"),
        ({"generators": (".hidden",)}, "invalid name"),
        ({"generators": ("a\n",)}, "invalid name"),
        ({"onnx": b""}, "needs the graph"),
        ({"residual_weights": {}}, "0.weight is missing"),
        ({"tensors": {"x": np.array(["text"])}}, "unsupported type"),
    ):
        with pytest.raises(ModelError, match=message):
            original_branch(**changes)
    with pytest.raises(ModelError, match="1 to 1000 branches"):
        DetectorFile(config={}, branches=())
    with pytest.raises(ModelError, match="unsupported type"):
        DetectorFile({}, (shared_branch(),), calibration={"x": np.array([None])})


@pytest.mark.parametrize("config", [{"x": float("nan")}, {"x": object()}, {"x": np.float32(1)}])
def test_a_configuration_that_is_not_json_writes_nothing(tmp_path: Path, config: Any) -> None:
    with pytest.raises(ModelError, match="cannot be stored as JSON"):
        DetectorFile(config, (shared_branch(),)).save(tmp_path / "detector")
    assert not list(tmp_path.iterdir())


def test_only_detectors_are_overwritten(folder: Path, tmp_path: Path) -> None:
    other = DetectorFile(config={"new": True}, branches=(shared_branch(),))
    with pytest.raises(UsageError, match="overwrite"):
        other.save(folder)
    assert DetectorFile.load(folder).config == some_file().config
    other.save(folder, overwrite=True)
    assert DetectorFile.load(folder).config == {"new": True}
    assert not (folder / "residual-1.onnx").exists()  # nothing of the former is left

    precious = tmp_path / "precious"
    precious.mkdir()
    other.save(precious)  # empty: nothing to lose
    DetectorFile.load(precious)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("photo")
    (tmp_path / "file").write_text("text")
    for name in ("photos", "file"):
        with pytest.raises(UsageError):
            other.save(tmp_path / name, overwrite=True)
    assert (tmp_path / "photos" / "a.jpg").read_text() == "photo"
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize("function", ["fsync", "rename"])
def test_a_failed_save_leaves_what_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    calls = []

    def fail(*arguments: Any) -> None:
        calls.append(arguments)
        raise OSError("the disk is full")

    other = DetectorFile(config={"new": True}, branches=(shared_branch(),))
    with monkeypatch.context() as patch:
        if function == "fsync":
            patch.setattr(os, "fsync", fail)
        else:  # moving the finished folder into place fails, after the former was moved away
            rename = Path.rename
            patch.setattr(
                Path, "rename", lambda p, t: fail() if p.suffix == ".new" else rename(p, t)
            )
        with pytest.raises(UsageError, match="the disk is full"):
            other.save(folder, overwrite=True)
    assert calls
    assert DetectorFile.load(folder).config == some_file().config
    assert list(folder.parent.iterdir()) == [folder]
