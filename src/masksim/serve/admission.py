"""Who may come in: limits, places, the token; and how requests are refused."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from masksim.errors import MasksimError, UsageError

MB = 1_000_000
FORM_BYTES = 64 * 1024
"""What the wrapping of one file in a form may take besides the file."""

_LONGEST_WAIT = 60  # seconds that Retry-After asks for at most
GUARDED = ("/v1/", "/metrics")
"""Paths that begin like this need the token, if there is one."""


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What the service does at once, and what one request may cost.

    Attributes
    ----------
    workers
        Images that are analysed at a time; 0 for one a core.
    queue
        Requests that may wait, or send their upload, besides those that are analysed.
    max_bytes, max_pixels
        Of one image.
    max_files, max_batch_bytes
        Of one batch.
    max_seconds
        From the arrival of a request to its answer, upload and waiting included; a batch has as
        long again for each of its files.
    max_held_bytes
        Of all uploads in memory at a time.
    """

    workers: int = 0
    queue: int = 64
    max_bytes: int = 64 * MB
    max_pixels: int = 100_000_000
    max_files: int = 32
    max_batch_bytes: int = 256 * MB
    max_seconds: float = 60.0
    max_held_bytes: int = 512 * MB

    def __post_init__(self) -> None:
        """Refuse limits that nothing could pass.

        Raises
        ------
        UsageError
            A number is too small, or the memory does not hold one request.
        """
        if self.workers < 0 or self.queue < 0:
            raise UsageError("workers and queue must not be negative")
        for field in ("max_bytes", "max_pixels", "max_files", "max_batch_bytes"):
            if (value := getattr(self, field)) < 1:
                raise UsageError(f"{field} must be at least 1, not {value}")
        if not (math.isfinite(self.max_seconds) and self.max_seconds > 0):
            raise UsageError(f"max_seconds must be positive, not {self.max_seconds}")
        least = max(self.max_bytes, self.max_batch_bytes) + (1 + self.max_files) * FORM_BYTES
        if self.max_held_bytes < least:
            raise UsageError(
                f"max_held_bytes must be at least {least}, so that the largest request fits, not "
                f"{self.max_held_bytes}"
            )


class ServiceError(MasksimError):
    """A request that is refused for what it is, not for the image in it.

    =====================  ====================================================================
    code                   meaning
    =====================  ====================================================================
    ``unauthorised``       the service wants a token (HTTP 401)
    ``cross_site``         a page of another site has sent the request (403)
    ``no_such_path``       nothing is there (404)
    ``no_such_method``     the path takes another method (405)
    ``upload_timeout``     the upload took too long (408)
    ``too_many_files``     more files than the limit in a batch (413)
    ``unsupported_type``   the body is said to be something else than an image or a form (415)
    ``overloaded``         as much as is allowed is inside already: try again later (429)
    ``internal``           a fault of the service (500)
    ``not_ready``          the service starts or stops (503)
    ``timeout``            the analysis took too long (504)
    =====================  ====================================================================
    """

    code = "internal"
    statuses: ClassVar[Mapping[str, int]] = {
        "unauthorised": 401,
        "cross_site": 403,
        "no_such_path": 404,
        "no_such_method": 405,
        "upload_timeout": 408,
        "too_many_files": 413,
        "unsupported_type": 415,
        "overloaded": 429,
        "internal": 500,
        "not_ready": 503,
        "timeout": 504,
    }
    codes = frozenset(statuses)

    def __init__(
        self, message: str, *, code: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.http_status = self.statuses[code]
        self.headers = dict(headers or {})


class Admission:
    """Counts the requests inside and the bytes of their uploads; belongs to one event loop.

    Parameters
    ----------
    workers
        Requests that are analysed at a time.
    queue
        Requests that may be inside besides.
    max_held_bytes
        Of all uploads together.
    """

    def __init__(self, workers: int, queue: int, max_held_bytes: int) -> None:
        self.workers = workers
        self.places = workers + queue
        self.max_held_bytes = max_held_bytes
        self.inside = 0
        self.held_bytes = 0
        self._seconds = 0.2  # of one image; learned from those that are analysed

    def enter(self) -> Place:
        """Take a place.

        Raises
        ------
        ServiceError
            Code ``overloaded``: there is none.
        """
        if self.inside >= self.places:
            raise self.overloaded("all places are taken")
        self.inside += 1
        return Place(self)

    def learn(self, seconds: float) -> None:
        """Take note of how long an image took."""
        self._seconds += 0.1 * (seconds - self._seconds)

    def overloaded(self, why: str) -> ServiceError:
        """Refuse a request, and say after how many seconds a place is likely to be free."""
        wait = math.ceil(self._seconds * self.inside / self.workers)
        return ServiceError(
            f"the service is busy ({why}): try again later",
            code="overloaded",
            headers={"Retry-After": str(min(max(wait, 1), _LONGEST_WAIT))},
        )


class Place:
    """One request inside: from its headers to its answer, or to its last analysis if later."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._uses = 1
        self._bytes = 0

    def hold(self, n_bytes: int) -> None:
        """Count bytes of the upload.

        Raises
        ------
        ServiceError
            Code ``overloaded``: the memory for uploads is full.
        """
        if self._admission.held_bytes + n_bytes > self._admission.max_held_bytes:
            raise self._admission.overloaded("its memory for uploads is full")
        self._admission.held_bytes += n_bytes
        self._bytes += n_bytes

    def use(self) -> None:
        """Keep the place until one more `leave`."""
        self._uses += 1

    def leave(self) -> None:
        """Give the place back if this was the last use of it."""
        self._uses -= 1
        if self._uses == 0:
            self._admission.inside -= 1
            self._admission.held_bytes -= self._bytes


class Token:
    """The bearer token that clients must send for the paths of `GUARDED`; None: no token."""

    def __init__(self, token: str | None) -> None:
        self._digest = None if token is None else _digest(token.encode())

    @property
    def wanted(self) -> bool:
        """Whether there is one."""
        return self._digest is not None

    def check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a request that lacks it.

        Raises
        ------
        ServiceError
            Code ``unauthorised``.
        """
        if self._digest is None or not path.startswith(GUARDED):
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Digests have one length, so that the time of comparing tells nothing of the token's.
        if scheme.lower() != b"bearer" or not hmac.compare_digest(
            _digest(given.strip()), self._digest
        ):
            raise ServiceError(
                "a token is needed: send it as `Authorization: Bearer TOKEN`",
                code="unauthorised",
                headers={"WWW-Authenticate": 'Bearer realm="masksim"'},
            )


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def check_site(method: str, headers: Mapping[bytes, bytes]) -> None:
    """Refuse what pages of other sites send.

    Raises
    ------
    ServiceError
        Code ``cross_site``.
    """
    site = headers.get(b"sec-fetch-site", b"none")
    if method == "POST" and site not in (b"none", b"same-origin"):
        raise ServiceError("pages of other sites may not send images", code="cross_site")


def not_ready() -> ServiceError:
    """Say that the service is not there yet, or not any more."""
    return ServiceError("the service is starting or stopping", code="not_ready")
