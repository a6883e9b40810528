"""Uploads: the bytes of one file, or a form; read into memory, and no further than the limits."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from masksim.errors import ImageError, MasksimError, UsageError
from masksim.serve.admission import MB, Place, ServiceError

LONGEST_NAME = 255
"""Characters of a client's words that an answer repeats at most."""

_UPLOAD = "<upload>"
_FORM = "multipart/form-data"
# The last is what curl calls the bytes of `--data-binary` unless it is told otherwise.
_RAW = ("", "image/", "application/octet-stream", "application/x-www-form-urlencoded")


def _kind(request: Request) -> str:
    """Read the type of the body from its header; empty if there is none."""
    kind = str(request.headers.get("content-type", ""))
    return kind.partition(";")[0].strip().lower()


def is_form(request: Request) -> bool:
    """Tell whether the body is said to be a form."""
    return _kind(request) == _FORM


def check_type(request: Request, *, form_only: bool = False) -> None:
    """Refuse a body of another type before any of it is read.

    Raises
    ------
    ServiceError
        Code ``unsupported_type``.
    """
    kind = _kind(request)
    allowed = (_FORM,) if form_only else (_FORM, *_RAW)
    if kind not in allowed and not (kind.startswith("image/") and "image/" in allowed):
        wanted = f"a form ({_FORM})" + (" or the bytes of an image" if not form_only else "")
        said = f"not {kind[:LONGEST_NAME]!r}" if kind else "and this one says nothing of its type"
        raise ServiceError(f"the body must be {wanted}, {said}", code="unsupported_type")


async def read_bytes(request: Request, place: Place, limit: int) -> list[tuple[str, bytes]]:
    """Read a body that is one file: (name, bytes).

    Raises
    ------
    ImageError
        Code ``too_many_bytes``: there are more than `limit`.
    ServiceError
        Code ``overloaded``: the memory for uploads is full.
    """
    return [(_UPLOAD, b"".join([chunk async for chunk in _chunks(request, place, limit)]))]


async def read_form(
    request: Request, place: Place, limit: int, most: int
) -> list[tuple[str, bytes]]:
    """Read the files of a form, at most so many: (name, bytes).

    Raises
    ------
    ImageError, ServiceError
        As `read_bytes`; code ``too_many_files``.
    UsageError
        It cannot be read, or has fields that are no files.
    """
    parser = FormParser(
        request.headers, _chunks(request, place, limit), max_files=most + 1, max_fields=100
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise _too_many_files(most) from error
        raise UsageError(f"the form cannot be read: {error.message}") from error
    except (MasksimError, ClientDisconnect):
        raise
    except Exception as error:  # whatever the parser fails on came from the client
        raise UsageError("the form cannot be read") from error
    files, fields = [], []
    for field, part in form.multi_items():
        if not isinstance(part, str):
            files.append(((part.filename or _UPLOAD)[:LONGEST_NAME], part.file.read()))
            part.file.close()
        elif part:  # a file field that nobody has filled comes as an empty text
            fields.append(field)
    if fields:
        raise UsageError(
            f"the form's field {fields[0][:LONGEST_NAME]!r} is no file: options are parameters "
            "of the address"
        )
    if len(files) > most:
        raise _too_many_files(most)
    return files


async def _chunks(request: Request, place: Place, limit: int) -> AsyncGenerator[bytes, None]:
    """Give the body piece by piece; stop as soon as it is known to be too large."""
    too_many = ImageError(f"the upload has more than {limit / MB:.4g} MB", code="too_many_bytes")
    announced = request.headers.get("content-length", "")
    counted = int(announced) if announced.isascii() and announced.isdigit() else 0
    if counted > limit:
        raise too_many
    place.hold(counted)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_many
        if size > counted:
            place.hold(size - counted)
            counted = size
        yield chunk


def _too_many_files(most: int) -> MasksimError:
    if most == 1:
        return UsageError("the form holds several files: send one, or all to /v1/detect/batch")
    return ServiceError(f"a batch has at most {most} files", code="too_many_files")


class FormParser(MultiPartParser):
    """Starlette's, but keeps files of any size in memory: the stream limits them."""

    spool_max_size = 0
