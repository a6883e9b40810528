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
    """What came of a command: ``shown`` on the terminal, with its own line ends made plain."""

    code: int
    stdout: bytes
    stderr: bytes
    shown: bytes


def on_terminal(
    *arguments: Any,
    before: str = FAKE,
    stdout: bool = False,
    stderr: bool = True,
    env: dict[str, str] | None = None,
) -> Run:
    """Run the command with a pseudo-terminal as stderr, as stdout, or as both."""
    import pty

    reader, writer = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # how a pseudo-terminal says that its writers are gone
            while chunk := os.read(reader, 65536):
                shown.append(chunk)

    thread = Thread(target=read)
    thread.start()
    try:
        done = subprocess.run(
            command(*arguments, before=before),
            stdin=subprocess.DEVNULL,
            stdout=writer if stdout else subprocess.PIPE,
            stderr=writer if stderr else subprocess.PIPE,
            timeout=300,
            check=False,
            env={**os.environ, "TERM": "xterm", **(env or {})},
        )
    finally:
        os.close(writer)
        thread.join(30)
        os.close(reader)
    seen = b"".join(shown).replace(b"\r\n", b"\n")
    return Run(done.returncode, done.stdout or b"", done.stderr or b"", seen)
