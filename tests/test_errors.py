"""The tree of errors and its codes."""

from __future__ import annotations

import pickle
import re

import pytest

from masksim.errors import (
    DataError,
    ImageError,
    MasksimError,
    ModelError,
    UsageError,
    counted,
    extra_missing,
)

TREE = [
    (UsageError, "usage", 2, 400),
    (ImageError, "unreadable", 3, 422),
    (ModelError, "model_invalid", 4, 500),
    (DataError, "data_invalid", 5, 400),
]


@pytest.mark.parametrize(("kind", "code", "exit_code", "http_status"), TREE)
def test_each_branch_has_its_codes(
    kind: type[MasksimError], code: str, exit_code: int, http_status: int
) -> None:
    error = kind("expected 1, found 2")
    assert isinstance(error, MasksimError)
    assert (error.code, error.exit_code, error.http_status) == (code, exit_code, http_status)
    assert str(error) == error.message == "expected 1, found 2"


def test_exit_codes_are_distinct_and_not_success() -> None:
    codes = [kind.exit_code for kind, *_ in TREE]
    assert sorted(set(codes)) == codes == [2, 3, 4, 5]


@pytest.mark.parametrize("code", sorted(ImageError.codes))
def test_image_codes_and_status(code: str) -> None:
    error = ImageError("no", code=code)
    assert error.code == code
    assert error.http_status == (413 if code.startswith("too_many") else 422)
    assert ImageError("no").http_status == 422  # one error does not change the class


@pytest.mark.parametrize("code", sorted(ImageError.codes))
def test_every_image_code_is_explained(code: str) -> None:
    assert f"``{code}``" in (ImageError.__doc__ or "")


def test_codes_are_words_for_programs_and_belong_to_one_class() -> None:
    everything = [code for kind, *_ in TREE for code in kind.codes]
    assert len(everything) == len(set(everything))
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", code) for code in everything)
    assert all(kind.code in kind.codes for kind, *_ in TREE)


def test_an_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError("no", code="too_many_bytes")))
    assert type(error) is ImageError
    assert (error.code, error.http_status, str(error)) == ("too_many_bytes", 413, "no")


def test_counts_in_words() -> None:
    assert counted({"truncated": 3, "too_small": 1, "duplicate": 0}) == "3 truncated, 1 too_small"
    assert counted({}) == "none"


def test_a_missing_extra_says_how_to_install_it() -> None:
    error = extra_missing("the leak probe", "scikit-learn", "data")
    assert (error.code, error.exit_code) == ("extra_missing", 2)
    assert 'scikit-learn: python -m pip install ".[data]"' in error.message
