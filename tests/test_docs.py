"""What the documentation says: links lead somewhere, commands and names are there."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command

import masksim
from masksim.checkpoint import RANKED_ARRAY, DetectorFile
from masksim.cli.main import app
from masksim.load import bundled_path
from masksim.training.stored_features import unpack

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]
)
BY_NAME = {path.relative_to(ROOT).as_posix(): path for path in PAGES}
# What stands for a word of the reader's own in a command.
STANDS_FOR = {"...": "x", "CONFIG": "config.toml"}


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(path: Path) -> frozenset[str]:
    return frozenset(
        slug(line) for line in re.findall(r"^#+ (.*)", without_code(text_of(path)), re.MULTILINE)
    )


@pytest.mark.parametrize("name", BY_NAME)
def test_links_lead_somewhere(name: str) -> None:
    page = BY_NAME[name]
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            wrong.append(target)
    assert wrong == []


def test_every_page_can_be_reached() -> None:
    """From README, by links."""
    found, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in found or page.suffix != ".md":
            continue
        found.add(page)
        for target in re.findall(r"\]\(([^)#\s]+)", text_of(page)):
            there = (page.parent / target).resolve()
            if there.is_file():
                waiting.append(there)
    assert [
        str(p.relative_to(ROOT)) for p in PAGES if p not in found and p.parts[-2] == "docs"
    ] == []


# ------------------------------------------------------------------------------------- commands


def shell_lines(text: str) -> Iterator[str]:
    """Commands of the shell blocks, continued lines put together."""
    for block in re.findall(r"^```(?:sh|bash|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()


def commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """The words behind `masksim`, and whether they are a whole command that could be run."""
    blocks = list(shell_lines(text))
    quoted = re.findall(r"`([^`\n]+)`", without_code(text))
    for line, whole in [*((x, True) for x in blocks), *((x, False) for x in quoted)]:
        line = line.replace("\\|", "|")
        for match in re.finditer(r"(?:^|[|&] |-m )masksim (?=\S)([^|&>#]*)", line.strip()):
            words = shlex.split(match[1])
            if words and re.match(r"[a-z-]", words[0]):
                yield words, whole


def find(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and what is left of them."""
    # Any: typer's commands are click's, or a copy of it, by version.
    command: Any = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def faults(words: list[str], whole: bool) -> list[str]:
    """What is wrong with a command of the documentation."""
    command, rest = find(words)
    if hasattr(command, "commands") and command.name != "report":
        unknown = [word for word in rest if re.match(r"[a-z-]", word)]
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
        return [f"no {word}" for word in unknown if word not in known]
    options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    if command.name == "report":
        options |= {o for p in command.commands["make"].params for o in p.opts}
    named = {word.partition("=")[0] for word in rest if re.match(r"--?[A-Za-z]", word)}
    if named - options:
        return [f"no {option}" for option in sorted(named - options)]
    if not whole or "--help" in named or hasattr(command, "commands"):
        return []
    try:
        command.make_context(command.name, [STANDS_FOR.get(word, word) for word in rest])
    except Exception as error:
        return [str(getattr(error, "message", error)) or type(error).__name__]
    return []


@pytest.mark.parametrize("name", BY_NAME)
def test_commands_and_options_are_there(name: str) -> None:
    found = {
        " ".join(words): faults(words, whole) for words, whole in commands(text_of(BY_NAME[name]))
    }
    assert {command: wrong for command, wrong in found.items() if wrong} == {}


def test_a_wrong_command_is_seen() -> None:
    text = "```sh\nmasksim detect --no-such photo.jpg | head\n```\n`masksim evaluate --out X`\n"
    assert list(commands(text)) == [
        (["detect", "--no-such", "photo.jpg"], True),
        (["evaluate", "--out", "X"], False),
    ]
    assert faults(["detect", "--no-such", "photo.jpg"], True) == ["no --no-such"]
    assert faults(["detekt", "photo.jpg"], True)
    assert faults(["enroll", "NAME", "FOLDER"], True)  # --out is missing
    assert faults(["enroll", "NAME", "FOLDER"], False) == []
    assert faults(["data", "list"], True) == []


def scripts(text: str) -> set[str]:
    """Programs of the repository that a text runs or names."""
    return set(
        re.findall(r"\b((?:benchmarks|scripts|configs|examples|\.ci|src|tests)/[\w./-]*\w)", text)
    )


@pytest.mark.parametrize("name", BY_NAME)
def test_files_that_are_named_are_there(name: str) -> None:
    assert [
        path for path in sorted(scripts(text_of(BY_NAME[name]))) if not (ROOT / path).exists()
    ] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "tables").glob("*.md")), ids=lambda p: p.stem
)
def test_tables_are_made_by_a_command_that_writes_them(path: Path) -> None:
    made = re.search(r"python (benchmarks/\w+\.py)", text_of(path))
    assert made is not None
    script = text_of(ROOT / made[1])
    assert re.search(rf'"(?:docs/tables/)?{re.escape(path.name)}"', script)
    for name in re.findall(r"<!-- (\S.*?):begin -->", text_of(path)):
        assert f"<!-- {name}:end -->" in text_of(path)


# --------------------------------------------------------------------------------- Python, names


def load(name: str) -> ModuleType | None:
    """A module; None where it needs a package that is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "masksim":
            raise
        return None
    except masksim.MasksimError as error:
        if not error.code.endswith("missing"):  # of an extra
            raise
        return None


@pytest.mark.parametrize("name", BY_NAME)
def test_python_of_the_pages(name: str) -> None:
    """It can be compiled, and what it imports from masksim is there."""
    for block in re.findall(
        r"^```python\n(.*?)^```", text_of(BY_NAME[name]), re.MULTILINE | re.DOTALL
    ):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "masksim":
                module = load(node.module or "")
                for alias in node.names:
                    assert (
                        module is None
                        or hasattr(module, alias.name)
                        or load(f"{node.module}.{alias.name}")
                    )


def is_there(name: str) -> bool:
    """Whether the package has a name, given from there: ``model.whiten``."""
    parts = name.split(".")
    found: Any = None
    for count in range(len(parts), 0, -1):
        try:
            found = load(".".join(["masksim", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        if found is None:
            return True
        break
    else:
        return False
    for part in parts[count:]:
        if part in getattr(found, "__dataclass_fields__", ()):  # of instances alone
            return True
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem
)
def test_benchmarks_import_what_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "masksim":
            names = [f"{node.module}.{alias.name}".removeprefix("masksim.") for alias in node.names]
            assert [name for name in names if not is_there(name)] == []


@cache
def defined() -> frozenset[str]:
    """Every name that is defined in the package: functions, classes, constants, fields, keys."""
    names: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
        names |= set(path.relative_to(ROOT / "src" / "masksim").with_suffix("").parts)
    return frozenset(names)


@pytest.mark.parametrize("name", ["docs/method.md", "docs/architecture.md", "CONTRIBUTING.md"])
def test_names_of_the_code_are_there(name: str) -> None:
    """Names alone, wherever they are defined; what is taken apart at dots has each of its parts."""
    named = re.findall(r"`([A-Za-z_]+(?:\.[A-Za-z_]+)*)`", text_of(BY_NAME[name]))
    outside = {"ruff", "mypy", "main", "pyproject", "toml", "py"}
    parts = {part for each in named for part in each.split(".") if "_" in part or part.isalpha()}
    wrong = {part for part in parts if part not in defined() and part not in outside}
    assert sorted(wrong) == []


def test_architecture_names_every_module_and_wing() -> None:
    page = text_of(ROOT / "docs" / "architecture.md")
    package = ROOT / "src" / "masksim"
    wings = {path.parent.name for path in package.glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/`", page, re.MULTILINE)) == wings
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    assert sorted(one for one in modules if f"`{one}`" not in page) == []


@pytest.mark.parametrize("name", BY_NAME)
def test_full_names_of_the_code_are_there(name: str) -> None:
    names = set(re.findall(r"`masksim\.([a-z_]+(?:\.\w+)+)", text_of(BY_NAME[name])))
    assert sorted(each for each in names if not is_there(each)) == []


def test_a_wrong_name_is_seen() -> None:
    assert is_there("model.whiten")
    assert is_there("detector.Detector.detect")
    assert not is_there("model.whitened")
    assert not is_there("modell.whiten")
    assert {"whiten", "SURVIVING", "Detection", "real_similarities"} <= defined()
    assert not {"whitened_twice", "masks_or_references"} & defined()


# ---------------------------------------------------------------------------------- configurations


def test_the_configuration_of_the_page_is_the_default() -> None:
    pytest.importorskip("sklearn")
    from masksim.training.bands import BandsConfig
    from masksim.training.learned_config import LearnedConfig
    from masksim.training.shared import SharedConfig

    page = text_of(ROOT / "docs" / "train.md")
    (block,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    values = tomllib.loads(block)
    assert values.pop("recipe") == "shared"
    assert SharedConfig.from_dict(values) == SharedConfig()
    fields = set(SharedConfig.__dataclass_fields__) - {"views", "features", "heads"}
    shared, bands = page.split("## The recipe `bands`")
    assert [name for name in sorted(fields) if f"`{name}`" not in shared] == []
    fields = set(BandsConfig.__dataclass_fields__) - {"views", "features", "heads"}
    assert [name for name in sorted(fields) if f"`{name}`" not in page] == []
    learned = LearnedConfig()
    of_learned = bands.split("key of `[learned]`")[1]
    for name, value in vars(learned).items():
        row = next(line for line in of_learned.splitlines() if f"`{name}`" in line)
        shown = row.split("|")[2]
        assert name == "windows" or f"`{value}`" in shown, name
    assert "4 of 256" in bands
    assert (learned.windows.windows, learned.windows.window) == (4, 256)
    default = BandsConfig()
    for name in ("smallest_class", "smallest_sources", "folds", "components", "borrowed", "photos"):
        row = next(
            line for line in bands.splitlines() if line.startswith("|") and f"`{name}`" in line
        )
        assert f"`{getattr(default, name)}`" in row, name


def test_the_page_on_enrolling_knows_how_many_photos_are_kept() -> None:
    file = DetectorFile.load(bundled_path())
    assert file.photos is not None
    assert file.calibration is not None
    ranked = file.calibration[RANKED_ARRAY][unpack(file.photos())[0].rows] != 0
    page = (ROOT / "docs/enroll.md").read_text(encoding="utf-8")
    assert f"these are {ranked.sum()}**" in page
    assert f"one in {ranked.sum() + 1}" in page
    assert f"beside {(~ranked).sum()} other views" in page
