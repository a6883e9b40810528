"""What is said of installing: one spelling, extras that are there, a Dockerfile that can build."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = set(PROJECT["optional-dependencies"])
TEXTS = [
    *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py"),
    *(ROOT / "src").rglob("*.js"), *(ROOT / "benchmarks").glob("*.py"),
    *(ROOT / "examples").rglob("*.py"),
]  # fmt: skip


def named(path: Path) -> set[str]:
    """The extras that a text tells to install; any other spelling fails."""
    text = path.read_text(encoding="utf-8")
    found = set()
    for match in re.finditer(r"pip install", text):
        line = text[text.rfind("\n", 0, match.start()) + 1 : text.find("\n", match.start())]
        good = re.search(r'python -m pip install (?:\.(?![\w\[])|torch`|"\.\[([\w,{}]+)\]")', line)
        assert good is not None, f"{path.name}: {line}"
        found |= set((good[1] or "").split(",")) - {"", "{extra}"}
    if path.suffix == ".py":  # by the functions that write that line
        found |= set(re.findall(r"\binstall\(['\"](\w+)['\"]\)", text))
        found |= set(re.findall(r"\bneed\(\s*\"(\w+)\"", text))
        found |= set(re.findall(r'extra_missing\("[^"]*", "[^"]*", "(\w+)"\)', text))
    return found


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_extras_are_spelt_alike_and_there(path: Path) -> None:
    assert named(path) <= EXTRAS


def test_the_messages_name_extras() -> None:
    used = set().union(*(named(path) for path in TEXTS if path.suffix == ".py"))
    asked = ("train", "enroll", "evaluate", "data", "serve", "plot", "export", "parquet", "ray")
    assert used >= {*asked, "remote", "tensorboard"}


def test_all_is_all() -> None:
    (everything,) = PROJECT["optional-dependencies"]["all"]
    name, _, listed = everything.rstrip("]").partition("[")
    assert name == PROJECT["name"]
    assert set(listed.split(",")) == EXTRAS - {"all", "dev"}


def test_the_core_stays_small() -> None:
    core = {re.match(r"[\w-]+", one)[0] for one in PROJECT["dependencies"]}  # type: ignore[index]
    assert core == {
        "array-api-compat", "numpy", "onnxruntime", "pillow", "pillow-heif", "platformdirs",
        "rich", "safetensors", "tomli", "typer",
    }  # fmt: skip


def test_the_dockerfile_copies_what_is_there() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert ignored[0] == "*"
    copied = [
        name
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    ]
    assert {"pyproject.toml", "src"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored
    for name in (PROJECT["readme"], *PROJECT["license-files"]):  # else the build fails
        assert name in copied
    assert "(../Dockerfile)" in (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
