"""`masksim.original.importer`: checkpoints that are read, and files that must not pass."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_original_fixture as fixture  # type: ignore[import-not-found]
from masksim.checkpoint import DetectorFile
from masksim.errors import ModelError, UsageError
from masksim.original.importer import import_original, read_original_checkpoint
from masksim.residual import ResidualConfig, weight_shapes

WINDOW = 24


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values, strict=True)


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
