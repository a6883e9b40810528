"""`masksim.checkpoint`: detector files that survive, and files that must not pass."""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import make_original_fixture as fixture  # type: ignore[import-not-found]
from masksim.checkpoint import Branch, DetectorFile, import_original, read_original_checkpoint
from masksim.errors import ModelError, UsageError
from masksim.residual import OnnxResidual, ResidualConfig, residual_onnx, weight_shapes

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
    "unknown keys ['x']": lambda d: d["branches"][0]["residual"].update(x=1),
    "unknown residual 'unet'": lambda d: d["branches"][0].update(residual={"kind": "unet"}),
    "unknown residual []": lambda d: d["branches"][0].update(residual={"kind": []}),
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


# --- checkpoints of the original ---------------------------------------------------------------


def checkpoint(path: Path, kind: str = "linear3x3", window: int = WINDOW, **extra: Any) -> Path:
    return Path(fixture.save_checkpoint(path, kind, window, 1, **extra))


NAME = "{}-epoch={}-valid_auroc=1.00-valid_loss={}-low_loss.ckpt"


@pytest.mark.parametrize("kind", ["DnCNN", "linear3x3", "cross_diff", "none"])
def test_a_checkpoint_is_read(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("torch")
    path = checkpoint(tmp_path / NAME.format("dalle2", 37, "0.065"), kind, 41)
    found = read_original_checkpoint(path)
    assert (found.generator, found.window, found.valid_loss) == ("dalle2", 41, 0.065)
    assert found.residual == (
        ResidualConfig.dncnn() if kind == "DnCNN" else ResidualConfig(kind)  # type: ignore[arg-type]
    )
    arrays = fixture.state(kind, 41, 1)
    weights = {n[8:]: arrays.pop(n) for n in list(arrays) if n.startswith("preproc.")}
    assert_same(found.tensors, arrays)
    assert_same(found.residual_weights, weights)
    assert set(found.residual_weights) == set(weight_shapes(found.residual))
    assert found.facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.facts["epoch"] == 3
    json.dumps(found.facts, allow_nan=False)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_precisions_are_converted(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    arrays = fixture.state("linear3x3", WINDOW, 1)
    tensors = {n: torch.from_numpy(v).to(getattr(torch, dtype)) for n, v in arrays.items()}
    found = read_original_checkpoint(checkpoint(tmp_path / "sd1.ckpt", state_dict=tensors))
    assert found.generator == "sd1"
    assert found.valid_loss is None
    for name, values in found.tensors.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, tensors[name].float().numpy())


def test_hyper_parameters_may_be_missing_or_harmless_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    # Lightning keeps them in a class of its own, which need not be installed for reading.
    module = types.ModuleType("pytorch_lightning.utilities.parsing")

    class AttributeDict(dict):
        pass

    AttributeDict.__module__ = module.__name__
    AttributeDict.__qualname__ = "AttributeDict"
    module.AttributeDict = AttributeDict  # type: ignore[attr-defined]
    plain = {"img_size": WINDOW, "num_masks": 1, "preprocess": "linear3x3"}
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.utilities", module.__name__):
            patch.setitem(sys.modules, name, module)
        checkpoint(tmp_path / "attribute.ckpt", hyper_parameters=AttributeDict(plain))
    checkpoint(tmp_path / "space.ckpt", hyper_parameters=argparse.Namespace(**plain))
    where = {**plain, "where": Path("a/b"), "nested": argparse.Namespace(x=1)}
    checkpoint(tmp_path / "path.ckpt", hyper_parameters=where)
    checkpoint(tmp_path / "none.ckpt", hyper_parameters=None)
    checkpoint(tmp_path / "empty.ckpt", hyper_parameters={})
    for path in tmp_path.glob("*.ckpt"):
        found = read_original_checkpoint(path)
        assert (found.window, found.residual.kind) == (WINDOW, "linear3x3"), path.name
        json.dumps(found.facts, allow_nan=False)


def test_a_fixed_kernel_in_the_checkpoint_must_be_the_one(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = {n: torch.from_numpy(v) for n, v in fixture.state("cross_diff", WINDOW, 1).items()}
    kernel = torch.tensor([[1.0, -1], [-1, 1]]).expand(3, 1, 2, 2).clone()
    path = tmp_path / "a.ckpt"
    checkpoint(path, "cross_diff", state_dict={**tensors, "preproc.kernel": kernel})
    assert read_original_checkpoint(path).residual_weights == {}
    checkpoint(path, "cross_diff", state_dict={**tensors, "preproc.kernel": -kernel})
    with pytest.raises(ModelError, match="kernel is unknown"):
        read_original_checkpoint(path)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_cross_difference_of_the_original_is_read_and_checked(
    tmp_path: Path, dtype: str
) -> None:
    torch = pytest.importorskip("torch")
    tensors = {n: torch.from_numpy(v) for n, v in fixture.state("cross_diff", WINDOW, 1).items()}
    kernel = torch.tensor([[1.0, -1], [-1, 1]], dtype=getattr(torch, dtype))
    kernel = kernel.expand(3, 1, 2, 2).clone()
    path = tmp_path / "sd1.ckpt"
    checkpoint(path, "cross_diff", state_dict={**tensors, "conv_filter.weight": kernel})
    found = read_original_checkpoint(path)
    assert (found.residual, found.residual_weights) == (ResidualConfig("cross_diff"), {})
    assert "conv_filter.weight" not in found.tensors
    for wrong, kind in ((2 * kernel, "cross_diff"), (kernel[:1], "cross_diff"), (kernel, "none")):
        checkpoint(path, kind, state_dict={**tensors, "conv_filter.weight": wrong})
        with pytest.raises(ModelError, match=r"conv_filter\.weight") as caught:
            read_original_checkpoint(path)
        assert caught.value.code == "model_invalid"


@pytest.mark.parametrize("word", ["none", "None", "", "identity", "Mihcak"])
def test_a_word_that_the_original_does_not_know_means_no_residual(
    tmp_path: Path, word: str
) -> None:
    pytest.importorskip("torch")
    hyper = {"img_size": WINDOW, "num_masks": 1, "preprocess": word}
    found = read_original_checkpoint(
        checkpoint(tmp_path / "a.ckpt", "none", hyper_parameters=hyper)
    )
    assert found.residual == ResidualConfig("none")
    assert found.facts["hyper_parameters"]["preprocess"] == word


@pytest.mark.parametrize("masks", [1, 4])
@pytest.mark.parametrize("kernel", [3, 5])
def test_masks_and_their_blur(tmp_path: Path, masks: int, kernel: int) -> None:
    pytest.importorskip("torch")
    arrays = fixture.state("linear3x3", WINDOW, masks, kernel=kernel)
    path = fixture.save_checkpoint(
        tmp_path / "a.ckpt", "linear3x3", WINDOW, masks, arrays=dict(arrays)
    )
    found = read_original_checkpoint(path)
    assert sum(name.startswith("ref_pattern_list.") for name in found.tensors) == masks


def test_a_reference_pattern_among_the_hyper_parameters_is_passed_over(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    hyper = {
        "img_size": WINDOW,
        "num_masks": 1,
        "preprocess": "linear3x3",
        "lr": np.float64(0.001),
        "reference_pattern": np.random.default_rng(0).random((3, WINDOW, WINDOW)),
    }
    found = read_original_checkpoint(checkpoint(tmp_path / "a.ckpt", hyper_parameters=hyper))
    assert found.facts["hyper_parameters"]["reference_pattern"] == "(an array of NumPy)"
    json.dumps(found.facts, allow_nan=False)


def test_the_latest_of_a_generator_is_no_generator_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    source = tmp_path / "newsynth"
    source.mkdir()
    checkpoint(source / "latest-sd1-epoch=49-valid_acc=0.97.ckpt")
    for version in ("", "-v1", "-v2"):
        checkpoint(
            source / f"sd1-epoch=31-valid_auroc=1.00-valid_loss=0.060-low_loss{version}.ckpt"
        )
    file = import_original(source, tmp_path / "detector")
    assert [branch.generators for branch in file.branches] == [("sd1",)]
    assert file.provenance["imported_from"][0]["file"].endswith("-low_loss-v2.ckpt")
    assert len(file.provenance["notes"]) == 3


def test_a_folder_becomes_a_detector(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    source = tmp_path / "newsynth"
    source.mkdir()
    for name, epoch, loss in (
        ("sdxl", 10, "0.200"),
        ("sdxl", 20, "0.050"),
        ("sdxl", 30, "0.050"),
        ("dalle2", 37, "0.065"),
        ("midjourney", 5, "1.5"),
    ):
        checkpoint(source / NAME.format(name, epoch, loss), epoch=epoch)
    (source / "notes.txt").write_text("not a checkpoint")
    saved = import_original(source, tmp_path / "detector")
    found = DetectorFile.load(tmp_path / "detector")
    assert found.sha256 == saved.sha256
    assert found.generators == ("dalle2", "midjourney", "sdxl")
    assert [b.preprocess["colour"] for b in found.branches] == ["YCbCr-BT601-studio-8bit"] * 3
    epochs = {f["generator"]: f["epoch"] for f in found.provenance["imported_from"]}
    assert epochs == {"dalle2": 37, "midjourney": 5, "sdxl": 30}
    notes = found.provenance["notes"]
    assert len(notes) == 2
    assert all(note.startswith("sdxl: ") and "passed over for" in note for note in notes)

    with pytest.raises(UsageError, match="overwrite"):
        import_original(source, tmp_path / "detector")
    one = next(source.glob("dalle2*"))
    import_original(one, tmp_path / "detector", colour="RGB", overwrite=True)
    (branch,) = DetectorFile.load(tmp_path / "detector").branches
    assert branch.preprocess == {"window": WINDOW, "colour": "RGB", "windows": 1, "aligned": True}


def test_nothing_to_import(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "absent.ckpt"):
        with pytest.raises(ModelError) as caught:
            import_original(source, tmp_path / "detector")
        assert caught.value.code == "model_not_found"
    with pytest.raises(UsageError, match="unknown colour space 'YCbCr'"):
        import_original(tmp_path, tmp_path / "d", colour="YCbCr")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


class Harm:
    """Pickles into a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def torch_like_zip(
    content: bytes, name: str = "archive/data.pkl", others: Mapping[str, bytes] | None = None
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("archive/version", "3\n")
        for other, data in (others or {}).items():
            archive.writestr(other, data)
    return buffer.getvalue()


@pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "root", "key"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_malicious_pickle_is_never_run(tmp_path: Path, place: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    for harm in (
        Harm(os.system, f"echo harm > {canary}"),
        Harm(open, str(canary), "w"),
        Harm(eval, f"open({str(canary)!r}, 'w').close()"),
        Harm(os.mkdir, str(canary)),
        Harm(getattr, Harm(__import__, "os"), "system"),
    ):
        content: Any = {"state_dict": {}, "hyper_parameters": {}}
        if place == "root":
            content = harm
        elif place == "key":
            content[("a", harm)] = 1
        else:
            content[place]["x"] = harm
        path = tmp_path / "sd1.ckpt"
        path.write_bytes(torch_like_zip(pickle.dumps(content, protocol)))
        with pytest.raises(ModelError, match="asks to import") as caught:
            read_original_checkpoint(path)
        assert caught.value.code == "model_unsafe"
        assert not canary.exists()
        with pytest.raises(ModelError):
            import_original(tmp_path, tmp_path / "detector")
        path.write_bytes(pickle.dumps(content, protocol))  # as torch wrote before zip archives
        with pytest.raises(ModelError):
            read_original_checkpoint(path)
        assert not canary.exists()
    assert not (tmp_path / "detector").exists()


def test_a_malicious_checkpoint_of_torch_is_never_run(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    canary = tmp_path / "canary"
    path = tmp_path / "sd1.ckpt"
    for legacy in (False, True):
        extra = {"x": Harm(os.mkdir, str(canary))}
        checkpoint(path, callbacks=extra)
        if legacy:
            import torch

            torch.save(extra, path, _use_new_zipfile_serialization=False)
        with pytest.raises(ModelError) as caught:
            read_original_checkpoint(path)
        assert legacy or caught.value.code == "model_unsafe"
        assert not canary.exists()


def test_what_only_torch_would_run_is_refused(tmp_path: Path) -> None:
    # Named like tensors, but functions: these must be on no list.
    for name in ("torch.load", "torch.storage._load_from_bytes", "torch.hub.load", "torch.Tensor"):
        module, _, function = name.rpartition(".")
        content = f"c{module}\n{function}\n(tR.".encode()
        path = tmp_path / "sd1.ckpt"
        path.write_bytes(torch_like_zip(content))
        with pytest.raises(ModelError, match=name) as caught:
            read_original_checkpoint(path)
        assert caught.value.code == "model_unsafe"


def test_what_torch_refuses_is_refused_without_its_advice(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "sd1.ckpt"
    path.write_bytes(torch_like_zip(b"\x80\x04(\x91."))  # a frozenset, on none of its lists
    with pytest.raises(ModelError, match="is refused") as caught:
        read_original_checkpoint(path)
    assert caught.value.code == "model_unsafe"
    assert "weights_only" not in str(caught.value)


def test_damaged_checkpoints(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = checkpoint(tmp_path / "sd1.ckpt")
    data = path.read_bytes()
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"x": "a" * 10_000}, 2))
    listed = pickle.dumps([1, 2], 2)
    damaged = {
        "empty": b"",
        "text": b"not a checkpoint",
        "truncated": data[: len(data) // 2],
        "without its end": data[:-1],
        "a zip of something else": torch_like_zip(b"text", "readme.txt"),
        "two pickles": torch_like_zip(listed, others={"constants.pkl": listed}),
        "a compressed zip": compressed.getvalue(),
        "a broken pickle": torch_like_zip(b"\x80\x02}q\x00garbage"),
        "an endless pickle": torch_like_zip(b"\x80\x02" + b"]" * 1000),
        "a list": torch_like_zip(listed),
        "a dictionary without weights": torch_like_zip(pickle.dumps({"epoch": 1}, 2)),
        "weights that are a list": torch_like_zip(pickle.dumps({"state_dict": []}, 2)),
        "weights that are text": torch_like_zip(pickle.dumps({"state_dict": {"a": "b"}}, 2)),
        "no weights": torch_like_zip(pickle.dumps({"state_dict": {}}, 2)),
    }
    for name, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            read_original_checkpoint(path)
        assert caught.value.code == "model_invalid", name
    for at in range(0, len(data), 997):  # anywhere: an error of ours, or a checkpoint
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        with contextlib.suppress(ModelError):
            read_original_checkpoint(path)


def test_missing_and_misshapen_keys_are_listed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = {n: torch.from_numpy(v) for n, v in fixture.state("linear3x3", WINDOW, 2).items()}
    path = tmp_path / "sd1.ckpt"

    def message(changed: dict[str, Any], **hyper: Any) -> str:
        values = {"img_size": WINDOW, "num_masks": 2, "preprocess": "linear3x3", **hyper}
        checkpoint(path, state_dict=changed, hyper_parameters=values)
        with pytest.raises(ModelError) as caught:
            read_original_checkpoint(path)
        assert caught.value.code == "model_invalid"
        return str(caught.value)

    lacking = {n: v for n, v in tensors.items() if n not in ("clf_a", "ref_pattern_list.1")}
    lacking["norm_vector.weight"] = torch.zeros(4)
    found = message({**lacking, "surplus": torch.zeros(1)})
    for part in (
        "sd1.ckpt",
        "clf_a is missing",
        "ref_pattern_list.1 is missing",
        "norm_vector.weight has shape (4,), expected (3,)",
        "surplus is unknown",
    ):
        assert part in found
    assert "ref_pattern_list.2 is missing" in message(tensors, num_masks=3)
    assert "ref_pattern_list.1 is unknown" in message(tensors, num_masks=1)
    assert "expected (3, 32, 32)" in message(tensors, img_size=32)
    assert "num_masks must be" in message(tensors, num_masks=0)
    for size in (0, -1, "24", 24.0, 2**40):
        assert "img_size must be" in message(tensors, img_size=size)
    assert "unknown preprocess 'unet'" in message(tensors, preprocess="unet")
    assert "0.weight is unknown" in message(tensors, preprocess="none")
    found = message(tensors, preprocess="DnCNN")
    assert "model.47.bias is missing" in found
    assert "0.weight is unknown" in found
    nan = {**tensors, "clf_b": torch.tensor(float("nan"))}
    assert "clf_b has values that are not finite" in message(nan)
    integer = {**tensors, "clf_b": torch.tensor(1)}
    assert "clf_b is not a dense floating-point tensor" in message(integer)
    huge = {**tensors, "clf_b": torch.zeros(1).expand(2**40)}
    assert "clf_b has 1099511627776 values" in message(huge)


def test_without_torch_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sd1.ckpt"
    path.write_bytes(torch_like_zip(pickle.dumps({"state_dict": {}}, 2)))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match=r'python -m pip install "\.\[train\]"') as caught:
        read_original_checkpoint(path)
    assert caught.value.code == "torch_missing"
