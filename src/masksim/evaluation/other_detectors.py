"""Second opinions: other detectors, asked about the same images.

A `Peer` scores 8-bit sRGB pixels; larger means more likely synthetic, on any scale. It is a Python
function, or a program of its own, which may live in another environment and under another licence:

* ``NAME=module:callable`` or ``NAME=path/to/file.py:callable``: called with a list of arrays uint8
  ``(H, W, 3)``, returns one number for each.
* ``NAME=command with arguments``: a program that runs as long as it is needed. It reads the
  absolute path of a PNG file from each line of its standard input and answers each at once by a
  line on its standard output: a number, ``{"path": ..., "score": 0.93}`` or ``{"path": ...,
  "error": "why"}``. It ends when its input ends. Messages belong on its standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from PIL import Image

from masksim.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

__all__ = ["CallablePeer", "CommandPeer", "Peer", "PeerError", "open_peer"]

P = TypeVar("P", bound="Peer")

_LONGEST_LINE = 65536  # bytes: a program that answers without end must not fill the memory
_LAST_WORDS = 20  # lines of a program's standard error that a message repeats


class PeerError(DataError):
    """A second opinion cannot be had.

    ==================  =================================================================
    code                meaning
    ==================  =================================================================
    ``peer_image``      this image could not be scored; the next one can be asked about
    ``peer_failed``     the peer cannot be used any more: not there, crashed, too slow, or
                        it does not keep to the protocol
    ==================  =================================================================
    """

    code = "peer_failed"
    codes: ClassVar[frozenset[str]] = frozenset({"peer_failed", "peer_image"})


class Peer(ABC):
    """Something that scores images; a context manager that lets go of what it holds.

    Attributes
    ----------
    name
        Column of its scores in tables.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def score(self, images: Sequence[Pixels]) -> list[float]:
        """Score images.

        Parameters
        ----------
        images
            8-bit sRGB, ``(H, W, 3)`` each, of any sizes.

        Returns
        -------
        list of float
            One finite number an image, in their order; larger means more likely synthetic. The
            scale is the peer's own.

        Raises
        ------
        PeerError
            ``peer_image``: one of the images could not be scored, and no scores are returned. Ask
            with one image at a time where that must not cost the others. ``peer_failed``: the peer
            is of no use any more; asked again, it raises the same.
        UsageError
            Something is not 8-bit pixels ``(H, W, 3)``.
        """

    def close(self) -> None:  # noqa: B027 - nothing to let go of is the common case
        """Let go of everything; more than once does no harm."""

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _checked(images: Sequence[Pixels]) -> None:
    for i, image in enumerate(images):
        shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
        if dtype != np.uint8 or shape is None or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise UsageError(
                f"peers score arrays uint8 (H, W, 3); image {i} is {type(image).__name__} "
                f"{dtype} {shape}"
            )


class CallablePeer(Peer):
    """A Python function as a peer.

    Parameters
    ----------
    name
        See `Peer`.
    function
        ``list of uint8 (H, W, 3) -> one number for each``. It is given copies.
    """

    def __init__(self, name: str, function: Callable[[list[Pixels]], Any]) -> None:
        super().__init__(name)
        self.function = function

    def score(self, images: Sequence[Pixels]) -> list[float]:
        """Score images; see `Peer.score`. Whatever the function raises is a ``peer_image``."""
        _checked(images)
        if not images:
            return []
        try:
            scores = [float(score) for score in self.function([np.array(i) for i in images])]
        except Exception as error:
            raise PeerError(
                f"peer {self.name} could not score {len(images)} image(s): "
                f"{type(error).__name__}: {error}",
                code="peer_image",
            ) from error
        if len(scores) != len(images):
            raise PeerError(
                f"peer {self.name} was given {len(images)} images and returned {len(scores)} scores"
            )
        for i, score in enumerate(scores):
            if not math.isfinite(score):
                raise PeerError(
                    f"peer {self.name} gave {score} for image {i}, not a finite number",
                    code="peer_image",
                )
        return scores


class CommandPeer(Peer):
    """A program as a peer: started once, asked about one image after the other.

    Parameters
    ----------
    name
        See `Peer`.
    command
        The program and its arguments; no shell. It is started at once, in this folder, with
        ``PYTHONUNBUFFERED`` set.
    limit
        Seconds within which an image must be answered; of the first one the start is part.

    Raises
    ------
    PeerError
        It cannot be started.
    """

    def __init__(self, name: str, command: Sequence[str], *, limit: float = 300.0) -> None:
        super().__init__(name)
        self.command = list(command)
        self.limit = limit
        self._asked = 0
        self._dead: PeerError | None = None
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        self._said: deque[str] = deque(maxlen=_LAST_WORDS)
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="masksim-peer-")
        except OSError as error:
            raise PeerError(f"peer {name}: no folder for its images: {error}") from error
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # so that what it starts itself can be ended with it
            )
        except (OSError, ValueError) as error:
            self._folder.cleanup()
            raise PeerError(
                f"peer {name} cannot be started: {shlex.join(self.command)}: {error}"
            ) from error
        self._threads = [
            threading.Thread(target=work, args=(stream,), daemon=True)
            for work, stream in (
                (self._hear, self._process.stdout),
                (self._hear_errors, self._process.stderr),
            )
        ]
        for thread in self._threads:
            thread.start()

    # Two threads read: only so can an answer be waited for with a limit on every system, and only
    # so is a program that writes much to its standard error not stopped by a full pipe.

    def _hear(self, stream: IO[bytes]) -> None:
        while line := stream.readline(_LONGEST_LINE):
            self._answers.put(line)
        self._answers.put(None)

    def _hear_errors(self, stream: IO[bytes]) -> None:
        while line := stream.readline(_LONGEST_LINE):
            self._said.append(line.decode(errors="replace").rstrip()[:500])

    def score(self, images: Sequence[Pixels]) -> list[float]:
        """Score images; see `Peer.score`. The files it is shown are removed after each answer."""
        _checked(images)
        return [self._ask(image) for image in images]

    def _ask(self, image: Pixels) -> float:
        if self._dead is not None:
            raise PeerError(self._dead.message)
        if not self._answers.empty():
            early = self._answers.get()
            if early is None:
                raise self._fail("ended before it was asked", grace=1.0)
            raise self._fail(f"wrote {_shown(early)} before it was asked")
        self._asked += 1
        path = Path(self._folder.name).resolve() / f"{self._asked:06d}.png"
        try:
            try:
                Image.fromarray(image).save(path, compress_level=1)
            except OSError as error:
                raise PeerError(
                    f"the image for peer {self.name} cannot be written: {error}", code="peer_image"
                ) from error
            stdin = self._process.stdin
            assert stdin is not None
            try:
                stdin.write(os.fsencode(path) + b"\n")
                stdin.flush()
                line = self._answers.get(timeout=self.limit)
            except OSError:  # it reads no more
                line = None
            except queue.Empty:
                raise self._fail(f"gave no answer within {self.limit:g} s") from None
            if line is None:
                raise self._fail("ended before it answered", grace=1.0)
            return self._understood(line, path)
        finally:
            path.unlink(missing_ok=True)

    def _understood(self, line: bytes, path: Path) -> float:
        """Read one answer."""
        if len(line) >= _LONGEST_LINE:
            raise self._fail(f"answered {_shown(line)}, a line without end")
        try:
            text = line.decode().strip()
            answer: dict[str, Any] = (
                json.loads(text) if text.startswith("{") else {"score": float(text)}
            )
            if "path" in answer and Path(answer["path"]).resolve() != path:
                raise self._fail(f"answered for {answer['path']} when asked about {path}")
            if "error" in answer:
                raise PeerError(
                    f"peer {self.name} could not score the image: {answer['error']}",
                    code="peer_image",
                )
            score = answer["score"]
            if not isinstance(score, int | float) or isinstance(score, bool):
                raise ValueError
            score = float(score)
        except (ValueError, KeyError, TypeError, OverflowError):
            raise self._fail(
                f"answered {_shown(line)}: neither a number nor an object with `score` or `error`"
            ) from None
        if not math.isfinite(score):
            raise PeerError(
                f"peer {self.name} gave {score}, not a finite number", code="peer_image"
            )
        return score

    def _fail(self, what: str, *, grace: float = 0.0) -> PeerError:
        """End the program; return the error, which from now on is the answer to everything."""
        ended = f" (exit code {self._process.returncode})" if self._stop(grace) else ""
        said = "\n".join(self._said)
        self._dead = PeerError(
            f"peer {self.name} {what}{ended}; command: {shlex.join(self.command)}; on its standard "
            + (f"error:\n{said}" if said else "error: nothing")
        )
        return self._dead

    def _stop(self, grace: float) -> bool:
        """End the program; return whether it ended by itself."""
        process = self._process
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # what could not be written is of no use any more
            process.stdin.close()
        willing = True
        try:
            process.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            willing = False
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
        for thread, stream in zip(self._threads, (process.stdout, process.stderr), strict=True):
            thread.join(timeout=5.0)
            # Something it started may still hold the other end; then closing would wait for it.
            if stream is not None and not thread.is_alive():
                stream.close()
        self._folder.cleanup()
        return willing

    def close(self) -> None:
        """End the program: its input ends, and after 5 seconds it is killed."""
        if self._dead is None:
            self._stop(5.0)
            self._dead = PeerError(f"peer {self.name} has been closed")


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= 200 else text[:200] + "...")


# --- from the command line ---------------------------------------------------------------------


def open_peer(spec: str, *, limit: float = 300.0) -> Peer:
    """Make a peer from its description.

    Parameters
    ----------
    spec
        ``NAME=module:callable``, ``NAME=path/to/file.py:callable`` or ``NAME=command ...``, see the
        module. The name is of letters, digits, ``.``, ``_`` and ``-``.
    limit
        Of a command: seconds an image, see `CommandPeer`.

    Returns
    -------
    Peer
        Close it, or use it as a context manager.

    Raises
    ------
    UsageError
        The description is none of the three, or names no callable.
    PeerError
        The module or file raises when it is imported, or the command cannot be started.
    """
    name, equals, what = (part.strip() for part in spec.partition("="))
    if not equals or not what or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise UsageError(
            f"a peer is NAME=module:callable, NAME=file.py:callable or NAME=command ..., got {spec}"
        )
    if limit <= 0:
        raise UsageError(f"a peer's time limit must be above 0 s, got {limit:g}")
    found = re.fullmatch(r"(.+\.py|\w+(?:\.\w+)*):([A-Za-z_]\w*)", what)
    # `python run.py:main` is a command, `my folder/run.py:main` a file.
    if found and (not re.search(r"\s", what) or Path(found[1]).is_file()):
        return CallablePeer(name, _callable(name, found[1], found[2]))
    try:
        command = shlex.split(what, posix=os.name != "nt")
    except ValueError as error:
        raise UsageError(f"the command of peer {name} cannot be read: {error}: {what}") from error
    return CommandPeer(name, command, limit=limit)


def _callable(name: str, where: str, attribute: str) -> Callable[[list[Pixels]], Any]:
    try:
        if where.endswith(".py"):
            if not Path(where).is_file():
                raise UsageError(f"peer {name}: there is no file {where}")
            # Under a name of its own, so that it hides no module.
            own = "masksim_peer_" + re.sub(r"\W", "_", name)
            spec = importlib.util.spec_from_file_location(own, where)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[own] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except UsageError:
        raise
    except Exception as error:
        raise PeerError(
            f"peer {name}: {where} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UsageError(f"peer {name}: {where} has no callable {attribute}")
    return function  # type: ignore[no-any-return]
