"""One tree of exceptions, with the codes of the command line and of the HTTP service.

Every error that a user can cause is a `MasksimError`. It carries

* ``code``: a short, stable word for programs (``"too_small"``), one of the class's ``codes``,
* ``exit_code``: what the command line exits with (0 means that everything was analysed),
* ``http_status``: what the service answers with,

and its message, for people, says what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

__all__ = [
    "DataError",
    "ImageError",
    "MasksimError",
    "ModelError",
    "UsageError",
    "counted",
    "extra_missing",
    "install",
]


class MasksimError(Exception):
    """Base of every error that masksim raises on purpose.

    Parameters
    ----------
    message
        For people: what was expected and what was found.
    code
        For programs; the class's own `code` when left out.
    """

    code: str = "error"
    exit_code: int = 1
    http_status: int = 500
    codes: ClassVar[frozenset[str]] = frozenset({"error"})

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    @property
    def message(self) -> str:
        """The text given to the constructor."""
        return str(self.args[0]) if self.args else ""


class UsageError(MasksimError):
    """The caller asked for something that makes no sense: an unknown option, a bad value.

    Code ``extra_missing``: for something that needs a package of an extra, which is not installed.
    """

    code = "usage"
    exit_code = 2
    http_status = 400
    codes = frozenset({"usage", "extra_missing"})


class ImageError(MasksimError):
    """The given image cannot be analysed.

    ========================  ===========================================================
    code                      meaning
    ========================  ===========================================================
    ``not_found``             no file at this path
    ``not_a_file``            a folder, pipe or device where a file was expected
    ``empty_file``            a file of zero bytes
    ``not_an_image``          the bytes start like no image format known here
    ``truncated``             an image file that ends too early
    ``unreadable``            a damaged image file, or one that may not be read
    ``unsupported``           a format, pixel mode or array that has no defined treatment
    ``too_many_bytes``        more bytes than the limit (HTTP 413)
    ``too_many_pixels``       more pixels than the limit (HTTP 413)
    ``too_small``             fewer pixels than can be analysed
    ``crashed``               the process that analysed it died, twice (`masksim.batch`)
    ``timed_out``             its analysis took longer than the limit (`masksim.batch`)
    ========================  ===========================================================
    """

    code = "unreadable"
    exit_code = 3
    http_status = 422
    codes = frozenset(
        {
            "not_found",
            "not_a_file",
            "empty_file",
            "not_an_image",
            "truncated",
            "unreadable",
            "unsupported",
            "too_many_bytes",
            "too_many_pixels",
            "too_small",
            "crashed",
            "timed_out",
        }
    )

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message, code=code)
        if self.code in ("too_many_bytes", "too_many_pixels"):
            self.http_status = 413


class ModelError(MasksimError):
    """A detector file cannot be used: missing, damaged, unsafe, or torch is needed and absent."""

    code = "model_invalid"
    exit_code = 4
    http_status = 500
    codes = frozenset(
        {
            "model_not_found",
            "model_invalid",
            "model_hash",
            "model_unsafe",
            "torch_missing",
            "onnx_missing",
            "openvino_missing",
        }
    )


class DataError(MasksimError):
    """Data for making or measuring a detector cannot be used: manifests, sources, downloads.

    ``codes`` names the common ones; a module may add its own.
    """

    code = "data_invalid"
    exit_code = 5
    http_status = 400
    codes = frozenset({"data_invalid", "manifest_invalid", "source_unknown", "download_failed"})


def install(extra: str) -> str:
    """Say how an extra is installed: the one spelling of every message.

    The package is on no index, so an extra is installed from the source like masksim itself.
    """
    return f'python -m pip install ".[{extra}]" (in the folder of masksim\'s source)'


def extra_missing(what: str, package: str, extra: str) -> UsageError:
    """Make the error of something that needs a package which is not installed.

    Parameters
    ----------
    what
        What needs it, at the start of a sentence: ``"the leak probe"``.
    package
        By the name that it is installed by.
    extra
        The extra that brings it.
    """
    return UsageError(f"{what} needs the package {package}: {install(extra)}", code="extra_missing")


def counted(counts: Mapping[str, int]) -> str:
    """Write counts as a person would: ``"3 truncated, 1 too_small"``.

    Parameters
    ----------
    counts
        Of each name, or of each code of an error.
    """
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"
