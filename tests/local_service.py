"""The service on a free port of 127.0.0.1, for its tests and those of its page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from masksim.serve import app as server


@contextmanager
def served(detector: Any, token: str | None = None, **config: Any) -> Iterator[Any]:
    """Serve on a free port of this machine; give a client whose `service` is the server's."""
    app = server.create_app(detector, server.ServeConfig(**config), token=token)
    listening = server.listen("127.0.0.1", 0)
    running = server.make_server(app)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = listening.getsockname()[1]
        opened: Any = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, verify=False)
        with opened as client:
            client.service = app.state.service
            client.port = port
            yield client
    finally:
        running.should_exit = True
        thread.join(30)
        listening.close()
    assert not thread.is_alive()
