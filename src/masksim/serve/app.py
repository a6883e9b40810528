"""Answer over HTTP: one detector, an API, and a page to drop images on.

`create_app` makes the application of a loaded detector, `run` serves it. Uploads stay in memory and
are forgotten with the answer; nothing is fetched, nothing is written to disk, and neither the logs
nor the metrics know an image's name or content.

How many requests, and how many bytes of uploads, are inside at once is limited
(`masksim.serve.admission`); any further request gets 429 at once, before its upload is read.
"""

from __future__ import annotations

import math
import signal
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastapi
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from masksim import __version__
from masksim.errors import MasksimError, UsageError
from masksim.serve import schemas
from masksim.serve.admission import GUARDED, MB, ServeConfig, ServiceError, check_site
from masksim.serve.logs import log, write_to_stderr
from masksim.serve.service import Service, problem_of
from masksim.serve.uploads import LONGEST_NAME

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from masksim.detector import Detector

__all__ = ["MB", "ServeConfig", "Service", "create_app", "listen", "make_server", "run"]

# Known paths: nothing else becomes a label of a metric or a word in the log.
_ROUTES = frozenset(
    {"/", "/v1/detect", "/v1/detect/batch", "/v1/model", "/healthz", "/readyz", "/metrics"}
    | {"/openapi.json"}
)

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


_BINARY = {"type": "string", "format": "binary"}
_ONE = {"type": "object", "required": ["file"], "properties": {"file": _BINARY}}
_SEVERAL = {
    "type": "object",
    "required": ["files"],
    "properties": {"files": {"type": "array", "items": _BINARY, "minItems": 1}},
}
_FORM_OR_BYTES = {
    "multipart/form-data": {"schema": _ONE},
    "application/octet-stream": {"schema": _BINARY},
    "image/*": {"schema": _BINARY},
}
_POSTED = (400, 403, 408, 413, 415, 429, 500, 503)


def _add_routes(app: Any, service: Service, *, guarded: bool) -> None:
    def add(
        path: str,
        handler: Callable[..., Awaitable[Response]],
        summary: str,
        answer: dict[str, Any],
        *statuses: int,
        tag: str = "operation",
        body: Mapping[str, Any] | None = None,
        form: type[Response] = JSONResponse,
    ) -> None:
        """Add a route with the description of what it answers."""
        may_be = (*statuses, 401) if guarded and path.startswith(GUARDED) else statuses
        errors = {
            status: {"model": schemas.ErrorAnswer, "description": _MEANINGS[status]}
            for status in sorted(may_be)
        }
        asked = {"requestBody": {"required": True, "content": body}}
        app.add_api_route(
            path, handler, methods=["GET" if body is None else "POST"], tags=[tag],
            operation_id=handler.__name__, summary=summary, response_class=form,
            responses={200: answer, **errors}, openapi_extra=None if body is None else asked,
        )  # fmt: skip

    def shape(model: type, description: str) -> dict[str, Any]:
        return {"model": model, "description": description}

    add(
        "/v1/detect", service.detect, "Analyse one image",
        shape(schemas.DetectionAnswer, "The answer."), *_POSTED, 422, 504,
        tag="detect", body=_FORM_OR_BYTES,
    )  # fmt: skip
    add(
        "/v1/detect/batch", service.detect_batch, "Analyse several images",
        shape(schemas.BatchAnswer, "A row for each file."), *_POSTED,
        tag="detect", body={"multipart/form-data": {"schema": _SEVERAL}},
    )  # fmt: skip
    add(
        "/v1/model", service.model, "The detector and the limits",
        shape(schemas.ModelAnswer, "The detector."), 400, tag="model",
    )  # fmt: skip
    it_does, they_can = shape(schemas.Status, "It does."), shape(schemas.Status, "They can.")
    add("/healthz", service.health, "Whether the process runs", it_does)
    add("/readyz", service.ready, "Whether images can be sent", they_can, 503)
    text = {"text/plain": {"schema": {"type": "string"}}}
    told = {"description": "Text format of Prometheus.", "content": text}
    add("/metrics", service.metrics, "Counts and times for Prometheus", told, form=Response)
    # Clients that send no token learn from here how to.
    app.openapi = lambda: _openapi(app, guarded)

    web = Path(__file__).with_name("web")

    async def page() -> Any:
        return FileResponse(web / "index.html", headers={"Cache-Control": "no-cache"})

    app.add_api_route("/", page, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/static", StaticFiles(directory=web))


def _check_parameters(request: Request) -> None:
    """Refuse query parameters that the route does not have; FastAPI would ignore them.

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
                f"unknown parameter {name[:LONGEST_NAME]!r}; known here: "
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
        schemas.describe_fields(made["components"]["schemas"])
        # Put in afterwards: FastAPI drops what is null.
        for path, example in schemas.EXAMPLES.items():
            answer = made["paths"][path]["post"]["responses"]["200"]
            answer["content"]["application/json"]["example"] = example
        if guarded:
            made.setdefault("components", {})["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer"}
            }
            for path, methods in made["paths"].items():
                if path.startswith(GUARDED):
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


async def _refuse(request: Any, error: Any) -> Response:
    problem = problem_of(error)
    request.scope["masksim.code"] = problem["code"]
    return JSONResponse(
        {"error": problem},
        status_code=getattr(error, "http_status", 500),
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


class _Shell:
    """Wraps the application: checks who may ask, adds headers, logs, and answers faults."""

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
                if path.startswith(GUARDED):
                    added["Cache-Control"] = "no-store"
                message["headers"] = [
                    *message["headers"],
                    *((k.lower().encode(), v.encode()) for k, v in added.items()),
                ]
            await send(message)

        try:
            try:
                headers = dict(scope["headers"])
                check_site(method, headers)
                self.service.token.check(path, headers)
            except ServiceError as error:
                await (await _refuse(Request(scope), error))(scope, counted, dressed)
            else:
                await self.app(scope, counted, dressed)
        except ClientDisconnect:
            status = 499  # as nginx counts them; nobody is there to be told
        except Exception as error:
            log.error("fault", exc_info=error, extra={"fields": {"id": answer_id}})
            if status == 0:
                await (await _refuse(Request(scope), error))(scope, counted, dressed)
        finally:
            route = path if path in _ROUTES else "/static" if path.startswith("/static/") else "-"
            known = method if method in ("GET", "HEAD", "POST") else "-"
            self.service.meters.requests.labels(route, known, str(status)).inc()
            code = scope.get("masksim.code")
            if code is not None:
                self.service.meters.refused.labels(code).inc()
            fields = {
                "id": answer_id, "method": known, "route": route, "status": status, "code": code,
                "bytes": n_bytes, "seconds": round(time.perf_counter() - start, 4),
            }  # fmt: skip
            log.info("request", extra={"fields": fields})


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
    write_to_stderr()
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("listening", extra={"fields": {"url": f"http://{shown}:{port}/"}})
    server = make_server(app)
    # uvicorn raises the signal once more at the end, which must not look like a failure.
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
