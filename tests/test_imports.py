"""The arrows between the rooms: who may import whom, and who may know torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import masksim

PACKAGE = Path(masksim.__file__).parent

# A module imports only from strictly lower layers. A new module must be placed here, with thought,
# and in docs/architecture.md.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "containers", "generators", "jumbf", "plain", "tiff"),
    (
        *("image", "augment", "preprocess", "residual", "spectrum", "traits"),
        *("answers", "manifest", "metrics", "sources", "tables"),
        *("credentials", "exif", "pngtext", "xmp"),
    ),
    ("calibration", "metadata", "watermark"),
    (
        "features",
        "inputs",
        "model",
        "verdict",
        "degrade",
        "protocols",
        "peers",
        "photos",
        "origin",
        "views",
    ),
    ("checkpoint", "dataset", "label", "network", "prepare", "report", "verify"),
    ("detector", "dossier_html", "plots", "runs", "train"),
    (
        "console",
        "evaluate",
        "batch",
        "server",
        "export",
        "dossier",
        "train_bands",
        "train_original",
        "train_residual",
    ),
    (
        *("audit", "cli_batch", "cli_data", "cli_evaluate", "cli_report", "cli_serve"),
        *("enroll", "exported"),
    ),
    ("cli_audit", "cli_export", "cli_train"),
    ("cli",),
    ("__init__", "__main__"),
)
LAYER = {name: level for level, names in enumerate(LAYERS, start=1) for name in names}

TORCH_FREELY = {"network", "runs", "train_original", "train_residual"}  # of no use without torch
TORCH_IN_FUNCTIONS = {"residual", "checkpoint", "evaluate"}  # work without it, too
TORCH = {"torch", "torchvision", "torchmetrics", "torchaudio", "lightning"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(tree: ast.AST, module: str = "masksim.x") -> Iterator[tuple[str, ast.AST]]:
    """Every module that a file imports anywhere, by its full name, and where."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield base, node
            for alias in node.names:  # `from masksim import image`
                yield f"{base}.{alias.name}", node
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called.split(".")[-1] in ("import_module", "__import__"):
                yield str(node.args[0].value), node


def rooms(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module of the package that a file imports, and the line."""
    for name, node in imported(tree):
        parts = name.split(".")
        # The version is a plain constant, for which `from masksim import __version__` is allowed.
        if parts[0] == "masksim" and len(parts) > 1 and parts[1] != "__version__":
            yield parts[1], getattr(node, "lineno", 0)


def in_function(tree: ast.AST) -> set[ast.AST]:
    """Every node inside a function, or under ``if TYPE_CHECKING``: not run at import."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.update(ast.walk(node))
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                found.update(ast.walk(child))
    return found


def wrong_arrows(source: str, name: str) -> list[str]:
    """What a module of this name imports from its own layer or a higher one."""
    mine = LAYER[name]
    return [
        f"{name}:{line} (layer {mine}) imports {other} (layer {LAYER.get(other, 'unknown')})"
        for other, line in sorted(set(rooms(ast.parse(source))))
        if LAYER.get(other, 99) >= mine
    ]


def wrong_torch(source: str, name: str) -> list[str]:
    """Where a module of this name imports torch and may not."""
    if name in TORCH_FREELY:
        return []
    tree = ast.parse(source)
    inside = in_function(tree)
    found = []
    for other, node in imported(tree):
        family = other.split(".")[0] in TORCH or other.startswith("array_api_compat.torch")
        if family and not (name in TORCH_IN_FUNCTIONS and node in inside):
            found.append(f"{name}:{getattr(node, 'lineno', 0)} imports {other}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_module_has_a_place(path: Path) -> None:
    assert path.parent == PACKAGE, f"{path.relative_to(PACKAGE)}: the package is flat"
    assert path.stem in LAYER, (
        f"{path.name} has no layer: place it in LAYERS in {Path(__file__).name} "
        "and in docs/architecture.md"
    )


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.stem in LAYER and p.stem != "__init__"], ids=lambda p: p.stem
)
def test_imports_point_down(path: Path) -> None:
    assert wrong_arrows(path.read_text(encoding="utf-8"), path.stem) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_only_training_rooms_know_torch(path: Path) -> None:
    assert wrong_torch(path.read_text(encoding="utf-8"), path.stem) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("image", "from masksim.image import load_image"),  # itself counts as a sibling
        ("image", "import masksim.spectrum"),
        ("spectrum", "def f():\n    from masksim import model"),
        ("model", "if TYPE_CHECKING:\n    from masksim.detector import Detector"),
        ("preprocess", "from .detector import Detector"),
        ("preprocess", "from . import detector"),
        ("report", "from importlib import import_module\nimport_module('masksim.cli')"),
        ("batch", "from masksim.server import app"),
        ("batch", "import masksim.unheard_of"),
    ],
)
def test_a_wrong_arrow_is_seen(name: str, source: str) -> None:
    assert len(wrong_arrows(source, name)) >= 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("cli", "def detect():\n    from masksim.detector import load_detector"),
        ("image", "from masksim.errors import ImageError"),
        ("checkpoint", "from masksim import __version__"),
        ("model", "import numpy as np\nfrom masksim import spectrum"),
    ],
)
def test_a_right_arrow_is_allowed(name: str, source: str) -> None:
    assert wrong_arrows(source, name) == []


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("detector", "import torch", True),
        ("cli", "def f():\n    import torch.nn", True),
        ("spectrum", "import array_api_compat.torch", True),
        ("residual", "try:\n    import torch\nexcept ImportError:\n    torch = None", True),
        ("residual", "def f():\n    from torch import nn", False),
        ("checkpoint", "if TYPE_CHECKING:\n    import torch", False),
        ("network", "import torch", False),
        ("train", "import torch", True),
    ],
)
def test_torch_is_seen(name: str, source: str, wrong: bool) -> None:
    assert bool(wrong_torch(source, name)) is wrong


def run(code: str) -> str:
    """Run in a fresh interpreter in which torch cannot be imported; return what it prints."""
    block = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0].startswith('torch'):\n"
        "            raise ModuleNotFoundError('torch is not here', name=name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block + code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_alone_is_light() -> None:
    heavy = ["PIL", "numpy", "onnxruntime", "pillow_heif", "rich", "safetensors", "torch", "typer"]
    code = f"import masksim\nprint([name for name in {heavy} if name in sys.modules])"
    assert run(code) == "[]"


def test_images_are_read_without_torch() -> None:
    code = (
        "import masksim, masksim.image\n"
        "import numpy as np\n"
        "loaded = masksim.load_image(np.zeros((3, 4), np.uint8))\n"
        "print(loaded.pixels.shape, 'torch' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    assert run(code) == "(3, 4, 3) False False"


@pytest.mark.parametrize(
    "name",
    [
        p.stem
        for p in MODULES
        if p.stem in LAYER and p.stem not in TORCH_FREELY and p.stem != "__main__"
    ],
)
def test_each_room_of_detection_is_entered_without_torch(name: str) -> None:
    # The service is an extra: its own libraries may be missing, torch never is the reason.
    module = "masksim" if name == "__init__" else f"masksim.{name}"
    code = (
        f"try:\n    import {module}\n"
        "except ModuleNotFoundError as error:\n"
        "    if error.name.split('.')[0] not in ('fastapi', 'pydantic', 'prometheus_client'):\n"
        "        raise\n"
        "print('torch' in sys.modules)"
    )
    assert run(code) == "False"


def test_public_names() -> None:
    assert masksim.__version__.count(".") == 2
    assert set(masksim.__all__) <= set(dir(masksim))
    from masksim.errors import MasksimError
    from masksim.image import load_image

    assert masksim.load_image is load_image
    assert masksim.MasksimError is MasksimError
    with pytest.raises(AttributeError, match="nothing"):
        _ = masksim.nothing


@pytest.mark.parametrize("name", masksim.__all__)
def test_each_public_name_can_be_had(name: str) -> None:
    assert getattr(masksim, name) is not None
