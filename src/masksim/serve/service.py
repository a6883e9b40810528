"""What the service does with a request: have the upload read and analysed, and answer.

Analysis runs in a few threads of one process, each with one processor thread for one image at a
time: NumPy and ONNX Runtime let the interpreter go while they compute, so the cores are busy, and
the detector is in memory once. Images are not stacked into batches: their windows are computed in
the processor's cache one by one, so a stack would gain nothing and make the first of it wait.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import fastapi
import numpy as np
import prometheus_client as prometheus
from fastapi.responses import Response
from starlette.requests import ClientDisconnect, Request

from masksim import __version__
from masksim.config import cores
from masksim.errors import MasksimError, UsageError
from masksim.image import Limits, load_image
from masksim.load import describe
from masksim.serve.admission import (
    FORM_BYTES,
    Admission,
    Place,
    ServeConfig,
    ServiceError,
    Token,
    not_ready,
)
from masksim.serve.logs import log
from masksim.serve.maps import pack_maps
from masksim.serve.uploads import check_type, is_form, read_bytes, read_form
from masksim.verdict import telling

if TYPE_CHECKING:
    from masksim.detector import Detector


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


@dataclass(frozen=True, slots=True)
class _Upload:
    """One image, and what is wanted of it."""

    name: str
    data: bytes
    maps: bool
    metadata: bool


@dataclass(frozen=True, slots=True)
class _Client:
    """Who waits for an answer."""

    place: Place
    gone: asyncio.Task[None]  # ends when the client hangs up


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
        self.token = Token(token)
        self.workers = self.config.workers or cores()
        self.limits = Limits(self.config.max_bytes, self.config.max_pixels)
        self.admission = Admission(self.workers, self.config.queue, self.config.max_held_bytes)
        self.meters = _Meters(self.admission, detector)
        self.running = False
        self._pool: ThreadPoolExecutor | None = None
        self._model = _dump(_described(detector, self.config))

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """Start the workers, analyse noise once so that the first image need not wait, and stop."""
        with ThreadPoolExecutor(self.workers, thread_name_prefix="masksim") as pool:
            self._pool = pool
            noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
            await asyncio.wrap_future(pool.submit(self.detector.detect, noise))
            self.running = True
            log.info("ready", extra={"fields": {"workers": self.workers}})
            try:
                yield
            finally:
                self.running = False
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
        check_type(request)
        async with self._inside() as (place, deadline):
            limit = self.config.max_bytes
            reading = (
                read_form(request, place, limit + FORM_BYTES, 1)
                if is_form(request)
                else read_bytes(request, place, limit)
            )
            files = await self._in_time(reading, deadline)
            if len(files) != 1:
                raise UsageError("the form holds no file: send one, as `file`")
            ((name, data),) = files
            async with _waiting(request, place) as client:
                upload = _Upload(name, data, maps, metadata)
                return _json(await self._analyse(client, upload, deadline))

    async def detect_batch(
        self,
        request: Request,
        metadata: bool = fastapi.Query(
            True, description="Also give what the files say of their own origin."
        ),
    ) -> Response:
        """Analyse the files of a form: a row for each, in order; errors are rows, too."""
        config = self.config
        check_type(request, form_only=True)
        async with self._inside() as (place, deadline):
            limit = config.max_batch_bytes + config.max_files * FORM_BYTES
            reading = read_form(request, place, limit, config.max_files)
            files = await self._in_time(reading, deadline)
            if not files:
                raise UsageError("the form holds no file")
            turn = asyncio.Semaphore(self.workers)  # so that other requests get their turn, too
            async with _waiting(request, place) as client:
                tasks = [
                    asyncio.create_task(
                        self._row(client, _Upload(name, data, False, metadata), turn)
                    )
                    for name, data in files
                ]
                del files
                try:
                    rows = await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
        return _json(b'{"results":[' + b",".join(rows) + b"]}")

    async def model(self) -> Response:
        """Describe the detector, its calibration and the service's limits."""
        return _json(self._model)

    async def health(self) -> Response:
        """Say that the process runs."""
        return _json(_dump({"status": "ok"}))

    async def ready(self) -> Response:
        """Say whether images can be sent."""
        if not self.running:
            raise not_ready()
        return _json(_dump({"status": "ready"}))

    async def metrics(self) -> Response:
        """Tell counts and times, in the text format of Prometheus."""
        text = prometheus.generate_latest(self.meters.registry)
        return Response(text, media_type=prometheus.CONTENT_TYPE_LATEST)

    # --- reading an upload

    @asynccontextmanager
    async def _inside(self) -> AsyncIterator[tuple[Place, float]]:
        """Take a place for one request, and set its deadline."""
        if not self.running:
            raise not_ready()
        place = self.admission.enter()
        try:
            yield place, time.monotonic() + self.config.max_seconds
        finally:
            place.leave()

    async def _in_time(self, reading: Awaitable[Any], deadline: float) -> Any:
        try:
            return await asyncio.wait_for(reading, deadline - time.monotonic())
        except asyncio.TimeoutError as error:
            raise ServiceError(
                f"the upload took more than {self.config.max_seconds:g} s", code="upload_timeout"
            ) from error

    # --- analysing it

    async def _row(self, client: _Client, upload: _Upload, turn: asyncio.Semaphore) -> bytes:
        """Make the row of one file of a batch, whatever happens."""
        async with turn:
            deadline = time.monotonic() + self.config.max_seconds
            try:
                return await self._analyse(client, upload, deadline)
            except ClientDisconnect:
                raise
            except Exception as error:  # one image's fault is not the others'
                if not isinstance(error, MasksimError):
                    log.error("fault", exc_info=error)
                problem = problem_of(error)
                self.meters.refused.labels(problem["code"]).inc()
                return _dump({"image": {"name": upload.name}, "error": problem})

    async def _analyse(self, client: _Client, upload: _Upload, deadline: float) -> bytes:
        """Hand an image to the workers; give its answer, or give it up."""
        if self._pool is None:
            raise not_ready()
        loop = asyncio.get_running_loop()
        client.place.use()

        def left(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(client.place.leave)

        work = self._pool.submit(self._answer, upload, time.monotonic())
        work.add_done_callback(left)
        job = asyncio.wrap_future(work)
        try:
            either: set[asyncio.Future[Any]] = {job, client.gone}
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
        if client.gone.done():
            raise ClientDisconnect
        raise ServiceError(
            f"the analysis was not done in {self.config.max_seconds:g} s", code="timeout"
        )

    def _answer(self, upload: _Upload, since: float) -> tuple[bytes, float]:
        """Analyse, in a worker; return the JSON and the seconds it took."""
        start = time.monotonic()
        self.meters.waited.observe(start - since)
        with self.meters.running.track_inprogress(), self.meters.seconds.time():
            loaded = load_image(
                upload.data, limits=self.limits, name=upload.name, part=self.detector.analysed_part,
                keep=upload.metadata,
            )  # fmt: skip
            if upload.maps:
                detection, found = self.detector.explain(loaded)
                maps = pack_maps([found[score.generator] for score in detection.scores])
                rates = [score.false_positive_rate for score in detection.scores]
                maps["telling"] = telling(detection.verdict.level, rates)
                answer = {**detection.to_dict(), "maps": maps}
            else:
                detection = self.detector.detect(loaded)
                answer = detection.to_dict()
            self.meters.images.labels(detection.verdict.level).inc()
            return _dump(answer), time.monotonic() - start


def problem_of(error: Exception) -> dict[str, str]:
    """Say what went wrong, as clients may know it: the message of a fault may name our files."""
    if isinstance(error, MasksimError) and (
        isinstance(error, ServiceError) or error.http_status < 500
    ):
        return {"code": error.code, "message": error.message}
    return {"code": "internal", "message": "the service has a fault"}


@asynccontextmanager
async def _waiting(request: Request, place: Place) -> AsyncIterator[_Client]:
    """Watch whether the client hangs up."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.create_task(disconnected())
    try:
        yield _Client(place, gone)
    finally:
        gone.cancel()


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _described(detector: Detector, config: ServeConfig) -> dict[str, Any]:
    facts = describe(detector)
    limits = asdict(config)
    del limits["workers"], limits["max_held_bytes"]
    kept = ("name", "sha256", "format_version", "masksim", "generators")
    return {
        **{name: facts[name] for name in kept},
        "sample_size": facts["calibration"]["sample_size"],
        "photos": facts["calibration"]["photos"],
        "calibration": [
            {"name": name, "strata": strata}
            for name, strata in facts["calibration"]["populations"].items()
        ],
        "limits": limits,
    }
