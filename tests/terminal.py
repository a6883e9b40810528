"""Run the command in a process of its own, some of its streams a pseudo-terminal.

`run` is the plain case; `on_terminal` tells also what a person would see.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

TESTS = Path(__file__).parent

# What a fresh interpreter does before `main`, in the place of the console script.
FAKE = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import fake_detector as f; f.install()\n"
MAIN = "from masksim.cli.main import main; main()"


def without(*packages: str) -> str:
    """Code for a fresh interpreter, in which these packages are not installed."""
    return (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {packages!r}:\n"
        "            raise ModuleNotFoundError(name + ' is not here', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )


def command(*arguments: Any, before: str = FAKE) -> list[str]:
    """Name the command in a fresh interpreter whose warnings are errors."""
    return [sys.executable, "-W", "error", "-c", before + MAIN, *map(str, arguments)]


def process(
    *arguments: Any, before: str = FAKE, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the command without any terminal."""
    return subprocess.run(
        command(*arguments, before=before), capture_output=True, timeout=300, check=False, **options
    )


@dataclass(frozen=True)
class Run:
    """What came of a command: a stream that was a terminal, with its own line ends made plain.

    ``shown`` is what all terminals showed: that of stdout first.
    """

    code: int
    stdout: bytes
    stderr: bytes
    shown: bytes


class Terminal:
    """A pseudo-terminal, read to its end beside the command that writes on it."""

    def __init__(self) -> None:
        import pty

        self._reader, self.writer = pty.openpty()
        self._shown: list[bytes] = []
        self._thread = Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError):  # how a pseudo-terminal says that its writers are gone
            while chunk := os.read(self._reader, 65536):
                self._shown.append(chunk)

    def close(self) -> bytes:
        """Give what was written."""
        os.close(self.writer)
        self._thread.join(30)
        os.close(self._reader)
        return b"".join(self._shown).replace(b"\r\n", b"\n")


def on_terminal(
    *arguments: Any,
    before: str = FAKE,
    stdout: bool = False,
    stderr: bool = True,
    apart: bool = False,
    env: dict[str, str] | None = None,
) -> Run:
    """Run the command with a pseudo-terminal as stderr, as stdout, or as both.

    With `apart` both are terminals, each one of its own, so that it shows what came on which.
    """
    terminals = [Terminal() for _ in range(2 if apart else 1)]
    outs = terminals[0].writer if apart or stdout else subprocess.PIPE
    errors = terminals[-1].writer if apart or stderr else subprocess.PIPE
    try:
        done = subprocess.run(
            command(*arguments, before=before),
            stdin=subprocess.DEVNULL,
            stdout=outs,
            stderr=errors,
            timeout=300,
            check=False,
            env={**os.environ, "TERM": "xterm", **(env or {})},
        )
    finally:
        seen = [terminal.close() for terminal in terminals]
    if apart:
        return Run(done.returncode, seen[0], seen[1], b"".join(seen))
    return Run(done.returncode, done.stdout or b"", done.stderr or b"", seen[0])
