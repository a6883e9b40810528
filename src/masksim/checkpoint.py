"""Detector files: a folder that holds everything a detection needs.

A detector is a folder::

    detector.json               format, configuration, branches, provenance, SHA-256 of every part
    heads.safetensors           masks and references of all generators
    residual-0.onnx             residual network of branch 0, as it is run
    residual-0.safetensors      the same, as it is trained further (absent if it has no weights)
    calibration.safetensors     optional
    photos.safetensors          optional: features of calibration photos, to enroll generators with

A *branch* is one residual network, one way of preprocessing and computing the spectrum, and the
heads of one or more generators on it. A folder is loaded without pickle and without torch, and
only if each part has its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from masksim import model
from masksim.errors import ModelError, UsageError
from masksim.residual import ResidualConfig, check_weights, weight_shapes

FORMAT = "masksim-detector"
FORMAT_VERSION = 1

HeadKind: TypeAlias = Literal["original", "shared", "bands"]
HEAD_KINDS: tuple[HeadKind, ...] = get_args(HeadKind)

_DESCRIPTION = "detector.json"
_HEADS = "heads.safetensors"
_CALIBRATION = "calibration.safetensors"
_PHOTOS = "photos.safetensors"

_MAX_DESCRIPTION_BYTES = 16 * 2**20
_MAX_BRANCHES = 1000

# Generators name pictures and columns: no path separators, no control characters.
_GENERATOR = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]{1,100}")


# Columns of tables of scores, and rows of those of generators.
_RESERVED = frozenset(
    {"filename", "typ", "source", "history", "format", "processing"}
    | {"real", "unknown", "no evidence", "mean"}
)


def _invalid(message: str) -> ModelError:
    return ModelError(message, code="model_invalid")


@dataclass(frozen=True, eq=False)
class Branch:
    """One residual network and the heads of the generators that are looked for in its spectrum.

    Attributes
    ----------
    residual : ResidualConfig
    residual_weights : mapping of name to array
        As `masksim.residual.weight_shapes` names them; empty if the residual has none.
    onnx : bytes
        The residual network as a graph for `masksim.residual.OnnxResidual`.
    preprocess, spectrum : mapping
        Configuration of those stages, plain values for JSON; the detector knows their keys.
    head : {"original", "shared", "bands"}
        How `tensors` are to be read. ``original``: `masksim.model.OriginalHead`, one generator;
        ``shared``: `masksim.model.SharedHeads`; ``bands``: `masksim.model.heads_by_band`.
    generators : tuple of str
    tensors : mapping of name to array
        Of the heads.
    head_config : mapping
        Configuration of the heads, plain values for JSON.

    Raises
    ------
    ModelError
        Code ``model_invalid`` if the parts do not fit together.
    """

    residual: ResidualConfig
    residual_weights: Mapping[str, NDArray[Any]]
    onnx: bytes = field(repr=False)
    preprocess: Mapping[str, Any]
    spectrum: Mapping[str, Any]
    head: HeadKind
    generators: tuple[str, ...]
    tensors: Mapping[str, NDArray[Any]] = field(repr=False)
    head_config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.head not in HEAD_KINDS:
            raise _invalid(f"unknown kind of head {self.head!r}; known: {', '.join(HEAD_KINDS)}")
        if not self.generators or len(set(self.generators)) != len(self.generators):
            raise _invalid(f"a branch needs generators, each once; got {list(self.generators)}")
        for name in self.generators:
            check_generator_name(name)
        if not self.onnx:
            raise _invalid("a branch needs the graph of its residual")
        check_weights(self.residual, self.residual_weights)
        _check_finite(self.tensors)
        if self.head == "original":
            if len(self.generators) != 1:
                raise _invalid(f"an original head has one generator, got {list(self.generators)}")
            window = self.preprocess.get("window")
            if type(window) is not int or window < 1:
                raise _invalid(f"an original head needs the side of its window, got {window!r}")
            model.check_tensors(self.tensors, size=window - 2 * self.residual.margin)

    @property
    def settings(self) -> dict[str, Any]:
        """What `preprocess` and `spectrum` say, but for the colour, in one."""
        values = {**self.preprocess, **self.spectrum}
        values.pop("colour", None)
        return values

    @property
    def logistic(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The heads' log-slopes and offsets, see `masksim.model.logit`.

        Two of float64 (B, G): B is the number of bands of compression with heads of their own, 1
        where one head serves all.
        """
        names = ("clf_a", "clf_b") if self.head == "original" else ("a", "b")
        a, b = (np.asarray(self.tensors[name], dtype=np.float64) for name in names)
        if self.head != "bands":
            return a.reshape(1, -1), b.reshape(1, -1)
        a, b = np.broadcast_arrays(a, b)  # what all bands share is stored once
        return a, b


def check_generator_name(name: str) -> None:
    """Refuse what cannot name a generator: it names files and columns of tables.

    Raises
    ------
    ModelError
        Code ``model_invalid``.
    """
    if not isinstance(name, str) or not _GENERATOR.fullmatch(name):
        raise _invalid(f"invalid name of a generator: {name!r}")
    if name.lower() in _RESERVED:
        raise _invalid(f"a generator cannot be named {name!r}: the word has a meaning in tables")


def _check_together(branches: tuple[Branch, ...]) -> None:
    """See that branches go together: a generator has heads in one, or on bank and learned residual.

    Raises
    ------
    ModelError
        Code ``model_invalid``.
    """
    kinds = [branch.residual.kind for branch in branches]
    if "learned" not in kinds:
        names = [name for branch in branches for name in branch.generators]
        if len(set(names)) < len(names):
            raise _invalid("a generator stands in two branches")
        return
    if kinds != ["bank", "learned"] or {branch.head for branch in branches} != {"bands"}:
        raise _invalid("heads on a learned residual stand behind those on the bank, both by band")
    bank, learned = branches
    if not set(learned.generators) <= set(bank.generators):
        raise _invalid("a learned residual has heads of generators that the bank has none of")
    values: dict[str, list[NDArray[np.float64]]] = {}
    for name in ("a", "b", "share"):
        for branch in branches:
            array = np.asarray(branch.tensors.get(name, np.zeros(0)), np.float64)
            if array.shape[1:] != (len(branch.generators),):
                raise _invalid(f"{name} has the shape {array.shape}, not one value a head and band")
            values.setdefault(name, []).append(array)
    at = [bank.generators.index(name) for name in learned.generators]
    try:
        total = values["share"][0] + np.zeros((len(values["share"][1]), 1))
        total[:, at] += values["share"][1]
        same = all(np.allclose(values[n][0][:, at], values[n][1], atol=1e-6) for n in ("a", "b"))
    except ValueError as error:
        raise _invalid("the branches have heads for different bands") from error
    shares = np.concatenate([x.ravel() for x in values["share"]])
    if not (((shares >= 0) & (shares <= 1)).all() and np.allclose(total, 1, atol=1e-3)):
        raise _invalid("the shares of a generator's similarities are not 1 in sum")
    if not same:
        raise _invalid("a generator has different probabilities in two branches")


def _check_finite(tensors: Mapping[str, NDArray[Any]]) -> None:
    for name, values in tensors.items():
        if values.dtype.kind not in "fiub":
            raise _invalid(f"{name} has the unsupported type {values.dtype}")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise _invalid(f"{name} has values that are not finite")


@dataclass(frozen=True, eq=False)
class DetectorFile:
    """All that a detector file holds.

    Attributes
    ----------
    config : mapping
        Configuration of the detector as a whole, plain values for JSON.
    branches : tuple of Branch
    calibration : mapping of name to array, or None
    provenance : mapping
        Where it comes from, plain values for JSON.
    format_version : int
    sha256 : str
        Of the description, which holds that of every part: it names the detector. Empty until
        saved or loaded.
    photos : function or None
        Gives the arrays of `masksim.training.stored_features.ReferencePhotos`. A function, because
        that part is large and needed for enrolling alone: it is read, and its hash checked, when
        it is called.
    parts : mapping of name to str
        SHA-256 of every part, as the description lists them. Empty until saved or loaded.
    """

    config: Mapping[str, Any]
    branches: tuple[Branch, ...]
    calibration: Mapping[str, NDArray[Any]] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    sha256: str = ""
    photos: Callable[[], Mapping[str, NDArray[Any]]] | None = field(default=None, repr=False)
    parts: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.branches) <= _MAX_BRANCHES:
            raise _invalid(f"a detector has 1 to {_MAX_BRANCHES} branches")
        _check_together(self.branches)
        if self.calibration is not None:
            for name, values in self.calibration.items():
                if values.dtype.kind not in "fiub":
                    raise _invalid(f"calibration {name} has the unsupported type {values.dtype}")

    @property
    def generators(self) -> tuple[str, ...]:
        """Names of all generators, each once, in the order of the branches."""
        return tuple(dict.fromkeys(name for branch in self.branches for name in branch.generators))

    @property
    def logistic(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See `Branch.logistic`: of all branches together, in the order of `generators`.

        Of a generator with heads in several branches, those of the first: they are all the same.
        """
        pairs = [branch.logistic for branch in self.branches]
        bands = max(len(a) for a, _ in pairs)
        names = [name for branch in self.branches for name in branch.generators]
        first = [names.index(name) for name in self.generators]
        a, b = (
            np.concatenate([np.broadcast_to(x, (bands, x.shape[1])) for x in column], axis=1)
            for column in zip(*pairs, strict=True)
        )
        return a[:, first], b[:, first]

    @property
    def scores_sha256(self) -> str:
        """SHA-256 of what decides similarities alone: equal for detectors that score alike."""
        parts = self._scoring_parts()
        described = {
            "branches": self._described_branches(),
            "parts": {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()},
        }
        return _digest(json.loads(json.dumps(described)))

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> DetectorFile:
        """Write the folder: all of it or, on failure, nothing.

        Parameters
        ----------
        folder : path
            Made, with its parents.
        overwrite : bool
            Replace a detector that is there. Any other folder is left alone.

        Returns
        -------
        DetectorFile
            The same, with its `sha256`.

        Raises
        ------
        UsageError
            If the folder is there and must not or cannot be replaced, or cannot be written.
        ModelError
            If something in it cannot be stored.
        """
        target = Path(folder)
        check_target(target, overwrite)
        parts = self._parts()
        try:
            # Through JSON and back, so that the digest is of what a reader will see.
            described = json.loads(json.dumps(self._description(parts), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise _invalid(f"the configuration cannot be stored as JSON: {error}") from error
        described["digest"] = _digest(described)
        text = json.dumps(described, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        try:
            _write_folder(target, {**parts, _DESCRIPTION: text.encode()})
        except OSError as error:
            raise UsageError(f"cannot write the detector {target}: {error}") from error
        return replace(self, sha256=described["digest"], parts=described["parts"])

    def _parts(self) -> dict[str, bytes]:
        parts = self._scoring_parts()
        if self.calibration is not None:
            parts[_CALIBRATION] = _to_safetensors(self.calibration)
        if self.photos is not None:
            parts[_PHOTOS] = _to_safetensors(self.photos())
        return parts

    def _scoring_parts(self) -> dict[str, bytes]:
        parts: dict[str, bytes] = {}
        heads: dict[str, NDArray[Any]] = {}
        for i, branch in enumerate(self.branches):
            heads.update({f"{i}.{name}": values for name, values in branch.tensors.items()})
            parts[_graph_part(i)] = branch.onnx
            if branch.residual_weights:
                parts[_weights_part(i)] = _to_safetensors(branch.residual_weights)
        parts[_HEADS] = _to_safetensors(heads)
        return parts

    def _described_branches(self) -> list[dict[str, Any]]:
        return [
            {
                "residual": branch.residual.to_dict(),
                "preprocess": dict(branch.preprocess),
                "spectrum": dict(branch.spectrum),
                "head": branch.head,
                "head_config": dict(branch.head_config),
                "generators": list(branch.generators),
            }
            for branch in self.branches
        ]

    def _description(self, parts: Mapping[str, bytes]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": self.format_version,
            "config": dict(self.config),
            "branches": self._described_branches(),
            "provenance": dict(self.provenance),
            "parts": {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()},
        }

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> DetectorFile:
        """Read a folder and verify every part of it.

        Raises
        ------
        ModelError
            Code ``model_not_found`` if there is no detector; ``model_hash`` if a part is not the
            one that was saved; ``model_invalid`` if it is no detector of a known version, or is
            incomplete or contradictory.
        """
        root = Path(folder)
        described = _read_description(root)
        branches_described = _expect(described, "branches", list)
        if not 1 <= len(branches_described) <= _MAX_BRANCHES:
            raise _invalid(f"{root}: a detector has 1 to {_MAX_BRANCHES} branches")
        branches = [_read_branch_description(branch) for branch in branches_described]

        hashes = _expect(described, "parts", dict)
        needed = {_HEADS} | {_graph_part(i) for i in range(len(branches))}
        needed |= {
            _weights_part(i) for i, branch in enumerate(branches) if weight_shapes(branch[0])
        }
        # Only names made here are ever opened: a description cannot lead out of its folder.
        if unknown := sorted(set(hashes) - needed - {_CALIBRATION, _PHOTOS}):
            raise _invalid(f"{root} lists unknown parts: {unknown}")
        if missing := sorted(needed - set(hashes)):
            raise _invalid(f"{root} does not list the parts {missing}")
        parts = {
            name: _read_part(root, name, expected)
            for name, expected in hashes.items()
            if name != _PHOTOS
        }

        def photos() -> Mapping[str, NDArray[Any]]:
            return _from_safetensors(_read_part(root, _PHOTOS, hashes[_PHOTOS]), _PHOTOS)

        heads: list[dict[str, NDArray[Any]]] = [{} for _ in branches]
        for name, values in _from_safetensors(parts[_HEADS], _HEADS).items():
            index, _, tensor = name.partition(".")
            if not re.fullmatch(r"0|[1-9][0-9]{0,3}", index) or int(index) >= len(branches):
                raise _invalid(f"{_HEADS} holds {name!r}, which is of no branch")
            heads[int(index)][tensor] = values
        calibration = None
        if _CALIBRATION in parts:
            calibration = _from_safetensors(parts[_CALIBRATION], _CALIBRATION)
        return cls(
            config=_expect(described, "config", dict),
            branches=tuple(
                Branch(
                    residual=residual,
                    residual_weights=(
                        _from_safetensors(parts[_weights_part(i)], _weights_part(i))
                        if weight_shapes(residual)
                        else {}
                    ),
                    onnx=parts[_graph_part(i)],
                    tensors=heads[i],
                    **rest,
                )
                for i, (residual, rest) in enumerate(branches)
            ),
            calibration=calibration,
            provenance=_expect(described, "provenance", dict),
            format_version=described["format_version"],
            sha256=described["digest"],
            photos=photos if _PHOTOS in hashes else None,
            parts=dict(hashes),
        )


def population_arrays(k: int) -> tuple[str, str, str]:
    """Names of a population's similarities, traits and sources in `DetectorFile.calibration`.

    0 are the photos of the training, from 1 on those of ``config["populations"]`` in their order.
    """
    prefix = "real" if k == 0 else f"photos_{k}"
    return f"{prefix}_similarities", f"{prefix}_traits", f"{prefix}_sources"


RANKED_ARRAY = "real_ranked"
"""Name in `DetectorFile.calibration` of which photos of the training images are ranked among.

uint8 (n,): 0 for those that are not, `AS_FOUND` and `COPY` for those that are."""

AS_FOUND, COPY = 1, 2

OWN_RANKED_ARRAY = "own_ranked"
"""The same of the generators' own images: which of them are compared with those photos."""


def _graph_part(index: int) -> str:
    return f"residual-{index}.onnx"


def _weights_part(index: int) -> str:
    return f"residual-{index}.safetensors"


def _to_safetensors(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    # The order of memory is forced: safetensors writes the buffer as it lies.
    ordered = {name: np.asarray(values, order="C") for name, values in tensors.items()}
    return bytes(safetensors.numpy.save(ordered))


def _from_safetensors(data: bytes, name: str) -> dict[str, NDArray[Any]]:
    try:
        return dict(safetensors.numpy.load(data))
    except Exception as error:  # SafetensorError, or whatever an unsupported type causes
        raise _invalid(f"{name} is not a safetensors file: {error}") from error


def _digest(described: Mapping[str, Any]) -> str:
    """SHA-256 of the description without its digest, independent of layout and order."""
    content = {key: value for key, value in described.items() if key != "digest"}
    text = json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a folder that a detector cannot be written to, before minutes of work.

    Raises
    ------
    UsageError
        It is there and must not be replaced, or its place cannot be written.
    """
    place = target.absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UsageError(f"cannot write the detector {target}: {place} is no folder to write in")
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir() or target.is_symlink():
        raise UsageError(f"{target} is there and is not a folder")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{target} is there; --overwrite replaces it")
    if not (target / _DESCRIPTION).is_file():
        raise UsageError(f"{target} is not a detector: it is not overwritten")


def _write_folder(target: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder beside the target, then put it in the target's place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unique = f".{target.name}.{secrets.token_hex(6)}"
    fresh, former = target.parent / f"{unique}.new", target.parent / f"{unique}.old"
    try:
        fresh.mkdir()
        for name, data in contents.items():
            with open(fresh / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if target.exists():
            target.rename(former)
        try:
            fresh.rename(target)
        except OSError:
            if former.exists():
                former.rename(target)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


def _expect(values: Mapping[str, Any], key: str, kind: type[Any]) -> Any:
    value = values.get(key)
    if type(value) is not kind:
        found = "nothing" if value is None else type(value).__name__
        raise _invalid(f"{_DESCRIPTION}: {key} must be a {kind.__name__}, found {found}")
    return value


def _expect_keys(values: Mapping[str, Any], keys: Iterable[str], what: str) -> None:
    if unknown := sorted(set(values) - set(keys)):
        raise _invalid(f"{_DESCRIPTION}: unknown keys in {what}: {unknown}")
    if missing := sorted(set(keys) - set(values)):
        raise _invalid(f"{_DESCRIPTION}: missing keys in {what}: {missing}")


def _read_description(root: Path) -> dict[str, Any]:
    path = root / _DESCRIPTION
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_DESCRIPTION_BYTES + 1)
    except OSError as error:
        raise ModelError(
            f"{root} is not a detector: cannot read {_DESCRIPTION}: {error.strerror}",
            code="model_not_found",
        ) from error
    if len(data) > _MAX_DESCRIPTION_BYTES:
        raise _invalid(f"{path} has more than {_MAX_DESCRIPTION_BYTES} bytes")
    try:
        described = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{path} is not JSON: {error}") from error
    if type(described) is not dict or described.get("format") != FORMAT:
        raise _invalid(f"{path} does not describe a detector")
    version = described.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise _invalid(
            f"{path} has the format version {version!r}; this program reads {FORMAT_VERSION}"
        )
    try:
        digest = _digest(described)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{path} is not valid: {error}") from error
    if described.get("digest") != digest:
        raise ModelError(
            f"{path} has been changed: its SHA-256 is {digest}, not {described.get('digest')!r}",
            code="model_hash",
        )
    keys = ("format", "format_version", "config", "branches", "provenance", "parts", "digest")
    _expect_keys(described, keys, "the description")
    return described


def _read_branch_description(branch: Any) -> tuple[ResidualConfig, dict[str, Any]]:
    """Read the residual of a branch, and the arguments of `Branch` of its description."""
    if type(branch) is not dict:
        raise _invalid(f"{_DESCRIPTION}: a branch must be a dict, found {type(branch).__name__}")
    keys = ("residual", "preprocess", "spectrum", "head", "head_config", "generators")
    _expect_keys(branch, keys, "a branch")
    try:
        residual = ResidualConfig.from_dict(_expect(branch, "residual", dict))
    except UsageError as error:
        raise _invalid(f"{_DESCRIPTION}: {error}") from error
    rest: dict[str, Any] = {
        key: _expect(branch, key, dict) for key in ("preprocess", "spectrum", "head_config")
    }
    rest["head"] = _expect(branch, "head", str)
    generators = _expect(branch, "generators", list)
    if not all(type(name) is str for name in generators):
        raise _invalid(f"{_DESCRIPTION}: generators must be strings, found {generators}")
    rest["generators"] = tuple(generators)
    return residual, rest


def _read_part(root: Path, name: str, expected: Any) -> bytes:
    try:
        data = (root / name).read_bytes()
    except OSError as error:
        raise _invalid(f"{root} lacks the part {name}: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ModelError(
            f"{root / name} is not the part that was saved: its SHA-256 is {found}, "
            f"not {expected!r}",
            code="model_hash",
        )
    return data
