"""The command ``masksim serve``."""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path
from typing import Annotated

from masksim.cli.console import (
    LikelihoodRatio,
    Model,
    Population,
    Quick,
    errors,
    need,
    option,
    say,
)
from masksim.errors import UsageError

TOKEN = "MASKSIM_TOKEN"
"""Name of the environment variable that may hold the token."""

_PACKAGES = ("fastapi", "multipart", "prometheus_client", "starlette", "uvicorn")


def serve(
    host: Annotated[
        str, option("Address to listen on; by default this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[
        int, option("Port to listen on; 0: any that is free.", min=0, max=65535)
    ] = 8000,
    model: Model = None,
    workers: Annotated[int, option("Images analysed at a time; 0: one a core.", min=0)] = 0,
    queue: Annotated[int, option("Requests that may wait; more get 429.", min=0)] = 64,
    max_mb: Annotated[int, option("Largest file of an image, in MB.", min=1)] = 64,
    max_megapixels: Annotated[int, option("Largest image, in megapixels.", min=1)] = 100,
    max_files: Annotated[int, option("Most images in a batch.", min=1)] = 32,
    max_batch_mb: Annotated[int, option("Largest batch, in MB.", min=1)] = 256,
    max_seconds: Annotated[
        float, option("Longest time for one request, in seconds.", min=0.1)
    ] = 60.0,
    max_held_mb: Annotated[
        int, option("Most memory for all uploads together, in MB.", min=1)
    ] = 512,
    token_file: Annotated[
        Path | None,
        option(
            f"Its first line is the token that clients must send; else ${TOKEN}, if set.",
            metavar="FILE",
        ),
    ] = None,
    quick: Quick = False,
    population: Population = "auto",
    likelihood_ratio: LikelihoodRatio = False,
) -> None:
    """Serve a page to drop images on, and an HTTP API, on this machine."""
    with errors():
        need("serve", "`masksim serve`", *_PACKAGES)
        from masksim.load import load_detector
        from masksim.serve import app as server

        config = server.ServeConfig(
            workers=workers,
            queue=queue,
            max_bytes=max_mb * server.MB,
            max_pixels=max_megapixels * 1_000_000,
            max_files=max_files,
            max_batch_bytes=max_batch_mb * server.MB,
            max_seconds=max_seconds,
            max_held_bytes=max_held_mb * server.MB,
        )
        token = _token(token_file)
        if token is None and not _local(host):
            say(
                f"warning: {host} can be reached by others, and there is no token: whoever reaches "
                "it can use the service"
            )
        detector = load_detector(
            model,
            threads=None if workers == 1 else 1,
            stability=not quick,
            population=population,
            likelihood_ratio=likelihood_ratio,
        )
        app = server.create_app(detector, config, token=token)
        listening = server.listen(host, port)
        if sys.stderr.isatty():
            name, number = listening.getsockname()[:2]
            shown = f"[{name}]" if ":" in name else name
            say(f"{detector.name} at http://{shown}:{number}/ - Ctrl-C ends it")
        server.run(app, listening)


def _token(file: Path | None) -> str | None:
    """Read the token; None where there is to be none."""
    if file is None:
        token, origin = os.environ.get(TOKEN, ""), f"${TOKEN}"
        if TOKEN not in os.environ:
            return None
    else:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--token-file {file} cannot be read: {error}") from error
        token, origin = (lines[0] if lines else ""), f"--token-file {file}"
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{origin} holds no token: one word of plain ASCII letters was expected")
    return token


def _local(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
