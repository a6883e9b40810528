"""Answer over HTTP: one detector, an API, and a page to drop images on.

`create_app` makes the application of a loaded detector, `run` serves it. Uploads stay in memory and
are forgotten with the answer; nothing is fetched, nothing is written to disk, and neither the logs
nor the metrics know an image's name or content.

Analysis runs in a few threads of one process, each with one processor thread for one image at a
time: NumPy and ONNX Runtime let the interpreter go while they compute, so the cores are busy, and
the detector is in memory once. Images are not stacked into batches: their windows are computed in
the processor's cache one by one, so a stack would gain nothing and make the first of it wait.

What is inside at once is bounded, in requests and in bytes (`Admission`); who comes on top is
refused at once with 429, before the upload is read.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import math
import signal
import socket
import time
import traceback
import uuid
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import fastapi
import numpy as np
import prometheus_client as prometheus
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from masksim import __version__
from masksim.config import cores
from masksim.errors import ImageError, MasksimError, UsageError
from masksim.image import Limits, load_image
from masksim.serve import schemas as answers
from masksim.show.text import channel_words

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from starlette.types import Message, Receive, Scope, Send

    from masksim.detector import Detector
    from masksim.results import SimilarityMap


__all__ = [
    "Admission",
    "ServeConfig",
    "Service",
    "ServiceError",
    "create_app",
    "listen",
    "make_server",
    "pack_maps",
    "run",
]

log = logging.getLogger("masksim.serve")

MB = 1_000_000
_FORM_BYTES = 64 * 1024
"""What the wrapping of one file in a form may take besides the file."""

_NAME_LENGTH = 255
_UPLOAD = "<upload>"
_LONGEST_WAIT = 60  # seconds that Retry-After asks for at most

# Known paths: nothing else becomes a label of a metric or a word in the log.
_ROUTES = frozenset(
    {"/", "/v1/detect", "/v1/detect/batch", "/v1/model", "/healthz", "/readyz", "/metrics"}
    | {"/openapi.json"}
)
_GUARDED = ("/v1/", "/metrics")

SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Sent with every answer: the page may load from its own server alone."""


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
        least = max(self.max_bytes, self.max_batch_bytes) + (1 + self.max_files) * _FORM_BYTES
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


# ------------------------------------------------------------------------------- what is inside


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
        """Say when to try again: when about a place's share of the work is done."""
        wait = math.ceil(self._seconds * self.inside / self.workers)
        return ServiceError(
            f"the service is busy ({why}): try again later",
            code="overloaded",
            headers={"Retry-After": str(min(max(wait, 1), _LONGEST_WAIT))},
        )


class Place:
    """One request inside, from its headers to its answer or, if later, its last analysis."""

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


class _Meters:
    """What /metrics tells, in a registry of its own: several services fit in one process."""

    def __init__(self, admission: Admission, detector: Detector) -> None:
        self.registry = prometheus.CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = prometheus.Counter(
            "masksim_requests", "Requests, by what became of them.", ["route", "method", "status"],
            **own,
        )  # fmt: skip
        self.refused = prometheus.Counter(
            "masksim_errors", "Requests and files of batches refused.", ["code"], **own
        )
        self.images = prometheus.Counter(
            "masksim_images", "Images analysed, by verdict.", ["level"], **own
        )
        self.seconds = prometheus.Histogram(
            "masksim_analysis_seconds", "Decoding and analysis of one image.", **own,
            buckets=(0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8),
        )  # fmt: skip
        self.waited = prometheus.Histogram(
            "masksim_wait_seconds", "Wait of an image for a worker.", **own,
            buckets=(0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
        )  # fmt: skip
        self.running = prometheus.Gauge("masksim_running", "Images being analysed.", **own)
        prometheus.Gauge("masksim_inside", "Requests inside.", **own).set_function(
            lambda: admission.inside
        )
        prometheus.Gauge("masksim_places", "Requests that fit inside.", **own).set(admission.places)
        prometheus.Gauge("masksim_held_bytes", "Bytes of uploads in memory.", **own).set_function(
            lambda: admission.held_bytes
        )
        prometheus.Info("masksim_detector", "The detector.", **own).info(
            {"name": detector.name, "sha256": detector.sha256, "version": __version__}
        )
        prometheus.ProcessCollector(**own)


class _FormParser(MultiPartParser):
    """Starlette's, but files stay in memory however large: the stream bounds them."""

    spool_max_size = 0


# ------------------------------------------------------------------------------------- the work


class Service:
    """One detector, its workers and its counts; the handlers of the API.

    Parameters
    ----------
    detector
        Loaded with ``threads=1`` where there are several workers.
    config
        Limits.
    token
        If given, what clients must send as bearer token.
    """

    def __init__(
        self, detector: Detector, config: ServeConfig | None = None, token: str | None = None
    ) -> None:
        self.detector = detector
        self.config = config or ServeConfig()
        self.workers = self.config.workers or cores()
        self.limits = Limits(self.config.max_bytes, self.config.max_pixels)
        self.admission = Admission(self.workers, self.config.queue, self.config.max_held_bytes)
        self.meters = _Meters(self.admission, detector)
        self.ready = False
        self._token = None if token is None else _digest(token.encode())
        self._pool: ThreadPoolExecutor | None = None
        self._model = _describe(detector, self.config)

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """Start the workers, analyse noise once so that the first image need not wait, and stop."""
        with ThreadPoolExecutor(self.workers, thread_name_prefix="masksim") as pool:
            self._pool = pool
            noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
            await asyncio.wrap_future(pool.submit(self.detector.detect, noise))
            self.ready = True
            log.info("ready", extra={"fields": {"workers": self.workers}})
            try:
                yield
            finally:
                self.ready = False
                self._pool = None

    # --- handlers

    async def detect(
        self,
        request: Request,
        maps: bool = fastapi.Query(
            False, description="Also give the similarity maps of all generators."
        ),
        metadata: bool = fastapi.Query(
            True, description="Also give what the file says of its own origin."
        ),
    ) -> Response:
        """Analyse one image: the bytes of a file, or a form with one file."""
        _check_type(request, _FORM, *_RAW)
        async with self._inside() as (place, deadline):
            limit = self.config.max_bytes
            if _kind(request) == _FORM:
                files = await self._form(request, place, limit + _FORM_BYTES, 1, deadline)
                if len(files) != 1:
                    raise UsageError("the form holds no file: send one, as `file`")
                ((name, data),) = files
            else:
                chunks = await self._in_time(
                    _collect(self._chunks(request, place, limit)), deadline
                )
                name, data = _UPLOAD, chunks
            gone = asyncio.create_task(_disconnected(request))
            try:
                answer = await self._analyse(place, gone, data, name, maps, metadata, deadline)
            finally:
                gone.cancel()
        return _json(answer)

    async def detect_batch(
        self,
        request: Request,
        metadata: bool = fastapi.Query(
            True, description="Also give what the files say of their own origin."
        ),
    ) -> Response:
        """Analyse the files of a form: a row for each, in order; errors are rows, too."""
        config = self.config
        _check_type(request, _FORM)
        async with self._inside() as (place, deadline):
            limit = config.max_batch_bytes + config.max_files * _FORM_BYTES
            files = await self._form(request, place, limit, config.max_files, deadline)
            if not files:
                raise UsageError("the form holds no file")
            gone = asyncio.create_task(_disconnected(request))
            turn = asyncio.Semaphore(self.workers)  # leaves the queue of the workers to others, too

            async def row(name: str, data: bytes) -> bytes:
                async with turn:
                    by = time.monotonic() + config.max_seconds
                    try:
                        return await self._analyse(place, gone, data, name, False, metadata, by)
                    except MasksimError as error:
                        problem = _problem(error)
                        self.meters.refused.labels(problem["code"]).inc()
                        return _dump({"image": {"name": name}, "error": problem})
                    except Exception as error:  # one image's fault is not the others'
                        log.error("fault", exc_info=error)
                        self.meters.refused.labels("internal").inc()
                        fault = {"code": "internal", "message": "the service has a fault"}
                        return _dump({"image": {"name": name}, "error": fault})

            tasks = [asyncio.create_task(row(name, data)) for name, data in files]
            del files
            try:
                rows = await asyncio.gather(*tasks)
            finally:
                gone.cancel()
                for task in tasks:
                    task.cancel()
        return _json(b'{"results":[' + b",".join(rows) + b"]}")

    async def model(self) -> Response:
        """Describe the detector, its calibration and the service's limits."""
        return _json(self._model)

    async def health(self) -> Response:
        """Say that the process runs."""
        return _json(_dump({"status": "ok"}))

    async def readiness(self) -> Response:
        """Say whether images can be sent."""
        if not self.ready:
            raise ServiceError("the service is starting or stopping", code="not_ready")
        return _json(_dump({"status": "ready"}))

    async def metrics(self) -> Response:
        """Tell counts and times, in the text format of Prometheus."""
        text = prometheus.generate_latest(self.meters.registry)
        return Response(text, media_type=prometheus.CONTENT_TYPE_LATEST)

    # --- what they share

    @asynccontextmanager
    async def _inside(self) -> AsyncIterator[tuple[Place, float]]:
        """Take a place for one request, and set its deadline."""
        if not self.ready:
            raise ServiceError("the service is starting or stopping", code="not_ready")
        place = self.admission.enter()
        try:
            yield place, time.monotonic() + self.config.max_seconds
        finally:
            place.leave()

    async def _chunks(
        self, request: Request, place: Place, limit: int
    ) -> AsyncGenerator[bytes, None]:
        """Give the body piece by piece; stop as soon as it is known to be too large."""
        too_many = ImageError(
            f"the upload has more than {limit / MB:.4g} MB", code="too_many_bytes"
        )
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

    async def _form(
        self, request: Request, place: Place, limit: int, most: int, deadline: float
    ) -> list[tuple[str, bytes]]:
        """Read the files of a form, in memory: (name, bytes)."""
        parser = _FormParser(
            request.headers, self._chunks(request, place, limit), max_files=most + 1, max_fields=100
        )
        try:
            form = await self._in_time(parser.parse(), deadline)
        except MultiPartException as error:
            if error.message.startswith("Too many files"):
                raise _too_many_files(most) from error
            raise UsageError(f"the form cannot be read: {error.message}") from error
        except (MasksimError, ClientDisconnect):
            raise
        except Exception as error:  # whatever the parser trips over has come from the client
            raise UsageError("the form cannot be read") from error
        files, fields = [], []
        for field, part in form.multi_items():
            if not isinstance(part, str):
                files.append(((part.filename or _UPLOAD)[:_NAME_LENGTH], part.file.read()))
                part.file.close()
            elif part:  # a page's field for files that nobody has filled is an empty text
                fields.append(field)
        if fields:
            raise UsageError(
                f"the form's field {fields[0][:_NAME_LENGTH]!r} is no file: options are parameters "
                "of the address"
            )
        if len(files) > most:
            raise _too_many_files(most)
        return files

    async def _in_time(self, reading: Awaitable[Any], deadline: float) -> Any:
        try:
            return await asyncio.wait_for(reading, deadline - time.monotonic())
        except asyncio.TimeoutError as error:
            raise ServiceError(
                f"the upload took more than {self.config.max_seconds:g} s", code="upload_timeout"
            ) from error

    async def _analyse(
        self,
        place: Place,
        gone: asyncio.Task[None],
        data: bytes,
        name: str,
        maps: bool,
        metadata: bool,
        deadline: float,
    ) -> bytes:
        """Hand an image to the workers; give its answer, or give it up."""
        if self._pool is None:
            raise ServiceError("the service is stopping", code="not_ready")
        loop = asyncio.get_running_loop()
        place.use()

        def left(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(place.leave)

        work = self._pool.submit(self._answer, data, name, maps, metadata, time.monotonic())
        work.add_done_callback(left)
        job = asyncio.wrap_future(work)
        try:
            either: set[asyncio.Future[Any]] = {job, gone}
            await asyncio.wait(
                either,
                timeout=max(deadline - time.monotonic(), 0),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if job.done():
                answer, seconds = job.result()
                self.admission.learn(seconds)
                return answer
        finally:
            job.cancel()  # and the work, if it still waits
        if gone.done():
            raise ClientDisconnect
        raise ServiceError(
            f"the analysis was not done in {self.config.max_seconds:g} s", code="timeout"
        )

    def _answer(
        self, data: bytes, name: str, maps: bool, metadata: bool, since: float
    ) -> tuple[bytes, float]:
        """Analyse, in a worker; return the JSON and the seconds it took."""
        start = time.monotonic()
        self.meters.waited.observe(start - since)
        with self.meters.running.track_inprogress(), self.meters.seconds.time():
            loaded = load_image(
                data, limits=self.limits, name=name, part=self.detector.part, keep=metadata
            )
            if maps:
                detection, found = self.detector.explain(loaded)
                order = [score.generator for score in detection.scores]
                answer = {**detection.to_dict(), "maps": pack_maps([found[g] for g in order])}
            else:
                detection = self.detector.detect(loaded)
                answer = detection.to_dict()
            self.meters.images.labels(detection.verdict.level).inc()
            return _dump(answer), time.monotonic() - start

    # --- who may ask

    def check(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Refuse requests without the token, and those that pages of other sites send.

        Raises
        ------
        ServiceError
            Code ``unauthorised`` or ``cross_site``.
        """
        if method == "POST" and headers.get(b"sec-fetch-site", b"none") not in (
            b"none",
            b"same-origin",
        ):
            raise ServiceError("pages of other sites may not send images", code="cross_site")
        if self._token is None or not path.startswith(_GUARDED):
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Digests have one length, so that the comparison tells nothing of the token's.
        if scheme.lower() != b"bearer" or not hmac.compare_digest(
            _digest(given.strip()), self._token
        ):
            raise ServiceError(
                "a token is needed: send it as `Authorization: Bearer TOKEN`",
                code="unauthorised",
                headers={"WWW-Authenticate": 'Bearer realm="masksim"'},
            )


def pack_maps(maps: Sequence[SimilarityMap]) -> dict[str, Any]:
    """Write similarity maps compactly, as a browser can read them.

    Contributions and spectra are rounded to 127 steps of their largest absolute value: enough to
    draw and to point at. `masksim.Detector.similarity_maps` gives the numbers themselves.

    Parameters
    ----------
    maps
        In the order to give them.

    Returns
    -------
    dict
        See `masksim.serve.schemas.Maps`. A spectrum that several maps share is there once.
    """
    spectra: list[dict[str, Any]] = []
    known: dict[tuple[Any, ...], int] = {}
    packed = []
    for item in maps:
        planes = []
        for plane in item.planes:
            shared = plane.spectrum.__array_interface__
            key = (shared["data"][0], plane.spectrum.shape, plane.spectrum.strides)
            if key not in known:
                known[key] = len(spectra)
                spectra.append(_pack(plane.spectrum, float(np.median(plane.spectrum))))
            planes.append(
                {
                    "name": channel_words(plane.name),
                    "fy": [float(plane.fy[0]), float(plane.fy[-1])],
                    "fx": [float(plane.fx[0]), float(plane.fx[-1])],
                    "sum": float(plane.values.sum(dtype=np.float64)),
                    "values": _pack(plane.values, 0.0),
                    "spectrum": known[key],
                }
            )
        packed.append(
            {"generator": item.generator, "similarity": float(item.similarity), "planes": planes}
        )
    return {"generators": packed, "spectra": spectra}


def _pack(values: NDArray[Any], zero: float) -> dict[str, Any]:
    shifted = values - np.float32(zero)
    scale = float(np.abs(shifted).max()) / 127 or 1.0
    steps = np.rint(shifted / np.float32(scale)).clip(-127, 127).astype(np.int8)
    return {
        "height": values.shape[0],
        "width": values.shape[1],
        "scale": scale,
        "zero": zero,
        "data": base64.b64encode(zlib.compress(steps.tobytes(), 1)).decode("ascii"),
    }


# ------------------------------------------------------------------------------ the application


def create_app(
    detector: Detector, config: ServeConfig | None = None, *, token: str | None = None
) -> Any:
    """Make the ASGI application of a detector.

    Parameters
    ----------
    detector
        From `masksim.load_detector`, with ``threads=1`` where several workers share the cores.
    config
        Limits; ``ServeConfig()`` when left out.
    token
        If given, /v1 and /metrics want it as bearer token.

    Returns
    -------
    fastapi.FastAPI
        For an ASGI server that runs its lifespan. Its `state.service` is the `Service`.
    """
    service = Service(detector, config, token)
    app = fastapi.FastAPI(
        title="masksim",
        version=__version__,
        description="Says whether an image carries the spectral pattern of a known AI image "
        "generator, and how rare that is among real photos. Uploads are kept in memory for the "
        "time of the analysis, and nowhere else.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        lifespan=service.lifespan,
        dependencies=[fastapi.Depends(_check_parameters)],
    )
    app.state.service = service
    _add_routes(app, service, guarded=token is not None)
    app.add_exception_handler(MasksimError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_values)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_middleware(_Shell, service=service)
    return app


def _add_routes(app: Any, service: Service, *, guarded: bool) -> None:
    def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
        all_statuses = (*statuses, *((401,) if guarded else ()))
        return {
            status: {"model": answers.ErrorAnswer, "description": _MEANINGS[status]}
            for status in sorted(all_statuses)
        }

    binary = {"type": "string", "format": "binary"}
    one = {"type": "object", "required": ["file"], "properties": {"file": binary}}
    several = {
        "type": "object",
        "required": ["files"],
        "properties": {"files": {"type": "array", "items": binary, "minItems": 1}},
    }
    post = (400, 403, 408, 413, 415, 429, 500, 503)
    app.add_api_route(
        "/v1/detect", service.detect, methods=["POST"], tags=["detect"],
        operation_id="detect", summary="Analyse one image",
        responses={
            200: {"model": answers.DetectionAnswer, "description": "The answer."},
            **errors(*post, 422, 504),
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {"schema": one},
                    "application/octet-stream": {"schema": binary},
                    "image/*": {"schema": binary},
                },
            }
        },
    )  # fmt: skip
    app.add_api_route(
        "/v1/detect/batch", service.detect_batch, methods=["POST"], tags=["detect"],
        operation_id="detect_batch", summary="Analyse several images",
        responses={
            200: {"model": answers.BatchAnswer, "description": "A row for each file."},
            **errors(*post),
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"multipart/form-data": {"schema": several}},
            }
        },
    )  # fmt: skip
    app.add_api_route(
        "/v1/model", service.model, methods=["GET"], tags=["model"],
        operation_id="model", summary="The detector and the limits",
        responses={
            200: {"model": answers.ModelAnswer, "description": "The detector."}, **errors(400)
        },
    )  # fmt: skip
    app.add_api_route(
        "/healthz", service.health, methods=["GET"], tags=["operation"], operation_id="health",
        summary="Whether the process runs",
        responses={200: {"model": answers.Status, "description": "It does."}},
    )  # fmt: skip
    app.add_api_route(
        "/readyz", service.readiness, methods=["GET"], tags=["operation"], operation_id="ready",
        summary="Whether images can be sent",
        responses={200: {"model": answers.Status, "description": "They can."}, **errors(503)},
    )  # fmt: skip
    app.add_api_route(
        "/metrics", service.metrics, methods=["GET"], tags=["operation"], operation_id="metrics",
        summary="Counts and times for Prometheus",
        response_class=Response,
        responses={
            200: {
                "description": "Text format of Prometheus.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **errors(),
        },
    )  # fmt: skip
    # Clients that send no token learn from here how to.
    app.openapi = lambda: _openapi(app, guarded)

    web = Path(__file__).with_name("web")

    async def page() -> Any:
        return FileResponse(web / "index.html", headers={"Cache-Control": "no-cache"})

    app.add_api_route("/", page, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/static", StaticFiles(directory=web))


def _check_parameters(request: Request) -> None:
    """Refuse parameters that the description does not know: they would be ignored in silence.

    Raises
    ------
    UsageError
        One is unknown, or given twice.
    """
    path = request.scope["path"]
    if not path.startswith("/v1/"):
        return  # probes and the page may be asked with whatever makes an address new
    operation = request.app.openapi()["paths"][path][request.method.lower()]
    known = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            raise UsageError(
                f"unknown parameter {name[:_NAME_LENGTH]!r}; known here: "
                f"{', '.join(known) or 'none'}"
            )
        if given.count(name) > 1:
            raise UsageError(f"the parameter {name!r} is given twice")


def _openapi(app: Any, guarded: bool) -> dict[str, Any]:
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        # A value that makes no sense is a 400 here, as all other misuse.
        made["paths"]["/v1/detect/batch"]["post"]["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            made["components"]["schemas"].pop(unused, None)
        # Put in afterwards: FastAPI drops what is null.
        for path, example in answers.EXAMPLES.items():
            answer = made["paths"][path]["post"]["responses"]["200"]
            answer["content"]["application/json"]["example"] = example
        if guarded:
            made.setdefault("components", {})["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer"}
            }
            for path, methods in made["paths"].items():
                if path.startswith(_GUARDED):
                    for operation in methods.values():
                        operation["security"] = [{"token": []}]
        app.openapi_schema = made
    return dict(app.openapi_schema)


_MEANINGS = {
    400: "The request makes no sense (`usage`).",
    401: "A token is needed (`unauthorised`).",
    403: "A page of another site has sent the request (`cross_site`).",
    408: "The upload took too long (`upload_timeout`).",
    413: "Too large: `too_many_bytes`, `too_many_pixels`, `too_many_files`.",
    415: "The body is neither an image nor a form (`unsupported_type`).",
    422: "The image cannot be analysed: `empty_file`, `not_an_image`, `truncated`, `unreadable`, "
    "`unsupported`, `too_small`.",
    429: "Busy (`overloaded`): try again after the seconds in Retry-After.",
    500: "A fault of the service (`internal`).",
    503: "The service starts or stops (`not_ready`).",
    504: "The analysis took too long (`timeout`).",
}


# --------------------------------------------------------------------------------------- errors


def _problem(error: MasksimError) -> dict[str, str]:
    if error.http_status >= 500 and not isinstance(error, ServiceError):
        # Its message may tell of files of this machine.
        return {"code": "internal", "message": "the service has a fault"}
    return {"code": error.code, "message": error.message}


async def _refuse(request: Any, error: Any) -> Response:
    problem = _problem(error)
    request.scope["masksim.code"] = problem["code"]
    return JSONResponse(
        {"error": problem},
        status_code=error.http_status,
        headers=getattr(error, "headers", None),
    )


async def _refuse_values(request: Any, error: Any) -> Response:
    found = "; ".join(
        f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()
    )
    return await _refuse(request, UsageError(found))


async def _refuse_http(request: Any, error: Any) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == 404:
        told: MasksimError = ServiceError("nothing is there", code="no_such_path", headers=headers)
    elif error.status_code == 405:
        told = ServiceError(
            "this path takes another method", code="no_such_method", headers=headers
        )
    else:
        told = UsageError(str(error.detail))
    return await _refuse(request, told)


def _too_many_files(most: int) -> MasksimError:
    if most == 1:
        return UsageError("the form holds several files: send one, or all to /v1/detect/batch")
    return ServiceError(f"a batch has at most {most} files", code="too_many_files")


class _Shell:
    """Around all of it: who may ask, security headers, one line in the log, and the last resort."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        answer_id = uuid.uuid4().hex[:16]
        status, n_bytes = 0, 0
        path, method = str(scope["path"]), str(scope["method"])

        async def counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            return message

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                added = {**SECURITY_HEADERS, "X-Request-ID": answer_id}
                if path.startswith(_GUARDED):
                    added["Cache-Control"] = "no-store"
                message["headers"] = [
                    *message["headers"],
                    *((k.lower().encode(), v.encode()) for k, v in added.items()),
                ]
            await send(message)

        try:
            try:
                self.service.check(method, path, dict(scope["headers"]))
            except ServiceError as error:
                await (await _refuse(Request(scope), error))(scope, counted, dressed)
            else:
                await self.app(scope, counted, dressed)
        except ClientDisconnect:
            status = 499  # as nginx counts them; nobody is there to be told
        except Exception as error:
            log.error("fault", exc_info=error, extra={"fields": {"id": answer_id}})
            if status == 0:
                fault = ServiceError("the service has a fault", code="internal")
                await (await _refuse(Request(scope), fault))(scope, counted, dressed)
        finally:
            route = path if path in _ROUTES else "/static" if path.startswith("/static/") else "-"
            known = method if method in ("GET", "HEAD", "POST") else "-"
            self.service.meters.requests.labels(route, known, str(status)).inc()
            code = scope.get("masksim.code")
            if code is not None:
                self.service.meters.refused.labels(code).inc()
            log.info(
                "request",
                extra={
                    "fields": {
                        "id": answer_id,
                        "method": known,
                        "route": route,
                        "status": status,
                        "code": code,
                        "bytes": n_bytes,
                        "seconds": round(time.perf_counter() - start, 4),
                    }
                },
            )


# -------------------------------------------------------------------------------------- helpers


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


_FORM = "multipart/form-data"
# The last is what curl calls the bytes of `--data-binary` unless it is told otherwise.
_RAW = ("", "image/", "application/octet-stream", "application/x-www-form-urlencoded")


def _kind(request: Request) -> str:
    """Tell what the body is said to be; empty where nothing is said."""
    kind = str(request.headers.get("content-type", ""))
    return kind.partition(";")[0].strip().lower()


def _check_type(request: Request, *allowed: str) -> None:
    """Refuse a body that is said to be something else, before any of it is read.

    Raises
    ------
    ServiceError
        Code ``unsupported_type``.
    """
    kind = _kind(request)
    if kind not in allowed and not (kind.startswith("image/") and "image/" in allowed):
        wanted = f"a form ({_FORM})" + (" or the bytes of an image" if len(allowed) > 1 else "")
        said = f"not {kind[:_NAME_LENGTH]!r}" if kind else "and this one says nothing of its type"
        raise ServiceError(f"the body must be {wanted}, {said}", code="unsupported_type")


async def _collect(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _describe(detector: Detector, config: ServeConfig) -> bytes:
    return _dump(
        {
            "name": detector.name,
            "sha256": detector.sha256,
            "format_version": detector.file.format_version,
            "masksim": __version__,
            "generators": list(detector.generators),
            "sample_size": detector.sample_size,
            "calibration": [
                {
                    "name": name,
                    "strata": [
                        {"stratum": words, "photos": photos, "sources": sources}
                        for words, photos, sources in calibration.table()
                    ],
                }
                for name, calibration in detector.calibrations.items()
            ],
            "limits": {
                "max_bytes": config.max_bytes,
                "max_pixels": config.max_pixels,
                "max_files": config.max_files,
                "max_batch_bytes": config.max_batch_bytes,
                "max_seconds": config.max_seconds,
                "queue": config.queue,
            },
        }
    )


# -------------------------------------------------------------------------------------- running


class JsonLines(logging.Formatter):
    """One JSON object a line. Of errors the place is told, not the message: it may name a file."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = type(error).__name__
            line["at"] = [
                f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(error.__traceback__)
            ]
        return json.dumps(line)


def listen(host: str, port: int) -> socket.socket:
    """Open the socket to serve on.

    Parameters
    ----------
    host
        Name or address of this machine.
    port
        0 for any that is free.

    Returns
    -------
    socket

    Raises
    ------
    UsageError
        The address is not to be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error}") from error


def make_server(app: Any) -> Any:
    """Make the uvicorn server of an application; its ``run(sockets=[...])`` serves.

    Returns
    -------
    uvicorn.Server
    """
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",  # reads on, and forgets, what comes after an early answer
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=1024,
            timeout_graceful_shutdown=math.ceil(app.state.service.config.max_seconds) + 5,
        )
    )


def run(app: Any, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; finish the answers that are under way.

    Logs go to stderr, a JSON object a line.

    Parameters
    ----------
    app
        From `create_app`.
    listening
        From `listen`; closed at the end.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name, level in (("masksim.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("listening", extra={"fields": {"url": f"http://{shown}:{port}/"}})
    server = make_server(app)
    # uvicorn raises the signal once more when all is done: that is to end in peace.
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        server.run(sockets=[listening])
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        listening.close()
    log.info("stopped")
