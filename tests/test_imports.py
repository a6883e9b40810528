"""The arrows between modules: who may import whom, and who may know torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import masksim

PACKAGE = Path(masksim.__file__).parent

# Three layers: what leads from an image to its verdict, the wings, the commands. In the first each
# imports only from those that stand before it.
ROUTE = (
    *("errors", "files", "config", "arrays", "metrics"),
    *("containers", "tiff", "jpeg", "decoders", "pixels", "image"),
    *("augment", "preprocess", "bank", "residual", "spectrum", "traits", "features", "model"),
    *("intervals", "strata", "usual", "calibration", "likelihood", "attribution", "verdict"),
    *("checkpoint", "populations", "limits", "stability"),
    *("provenance", "results", "show", "branches", "analysis"),
    *("detector", "load"),
)
WINGS = ("data", "training", "original", "evaluation", "dossier", "batch", "serve", "export")
COMMANDS = ("cli",)
LAYERS = (ROUTE, WINGS, COMMANDS, ("__init__", "__main__"))
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}

# A wing knows no other, but for these.
ARROWS: Mapping[str, frozenset[str]] = {
    "training": frozenset({"data"}),
    "original": frozenset({"data", "training"}),
    "evaluation": frozenset({"data"}),
    "batch": frozenset({"data"}),
}

# Of no use without torch.
TORCH_FREELY = {
    *("original.network", "original.windows", "original.train", "original.denoiser"),
    *("original.residual_file", "original.residual_network"),
    *("training.loop", "training.processes", "training.learned_residual"),
}
TORCH_IN_FUNCTIONS = {"original.importer"}  # works without it, too
TORCH = {"torch", "torchvision", "torchmetrics", "torchaudio", "lightning"}


def name_of(path: Path) -> str:
    """Tell the dotted name of a module inside the package: ``data.manifest``; a wing is its own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(tree: ast.AST, module: str) -> Iterator[tuple[str, ast.AST]]:
    """Every module that a file imports anywhere, by its full name, and where."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            parts = f"masksim.{module}".split(".")[: -node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield base, node
            for alias in node.names:  # `from masksim import image`
                yield f"{base}.{alias.name}", node
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called.split(".")[-1] in ("import_module", "__import__"):
                yield str(node.args[0].value), node


def own_imports(source: str, module: str) -> set[tuple[str, int]]:
    """Every module of the package that a file imports, as ``MODULES`` names it, and the line."""
    found = set()
    for name, node in imported(ast.parse(source), module):
        parts = name.split(".")
        # The version is a plain constant, for which `from masksim import __version__` is allowed.
        if parts[0] != "masksim" or len(parts) == 1 or parts[1] == "__version__":
            continue
        inner = ".".join(parts[1:])
        while "." in inner and inner not in MODULES:  # a name that stands in a module
            inner = inner.rpartition(".")[0]
        found.add((inner, getattr(node, "lineno", 0)))
    return found


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


def may_import(module: str, other: str) -> bool:
    """Tell whether the layers, the route's order and the list of arrows allow an import."""
    mine, its = module.split(".")[0], other.split(".")[0]
    if its not in LAYER:
        return False
    if mine == its:  # inside a folder; that there is no circle is tested below
        return module != other
    # A result shows itself in notebooks.
    if module == "results" and other in ("show.card", "show.figures", "show.maps"):
        return True
    if LAYER[its] != LAYER[mine]:
        return LAYER[its] < LAYER[mine]
    if mine in ROUTE:
        return ROUTE.index(its) < ROUTE.index(mine)
    return its in ARROWS.get(mine, ())


def wrong_arrows(source: str, module: str) -> list[str]:
    """What a module of this name imports and may not."""
    return [
        f"{module}:{line} imports {other}"
        for other, line in sorted(own_imports(source, module))
        if not may_import(module, other)
    ]


def wrong_torch(source: str, module: str) -> list[str]:
    """Where a module of this name imports torch and may not."""
    if module in TORCH_FREELY:
        return []
    tree = ast.parse(source)
    inside = in_function(tree)
    found = []
    for other, node in imported(tree, module):
        family = other.split(".")[0] in TORCH or other.startswith("array_api_compat.torch")
        if family and not (module in TORCH_IN_FUNCTIONS and node in inside):
            found.append(f"{module}:{getattr(node, 'lineno', 0)} imports {other}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_place(module: str) -> None:
    assert module.split(".")[0] in LAYER, (
        f"{module} has no layer: place it in {Path(__file__).name} and in docs/architecture.md"
    )


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__"])
def test_imports_point_down(module: str) -> None:
    assert wrong_arrows(MODULES[module].read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize("wing", ["provenance", "show", *WINGS, *COMMANDS])
def test_there_is_no_circle_in_a_wing(wing: str) -> None:
    left = {
        name: {
            other
            for other, _ in own_imports(path.read_text(encoding="utf-8"), name)
            if other.startswith(f"{wing}.") and other != name
        }
        for name, path in MODULES.items()
        if name.startswith(f"{wing}.")
    }
    assert left
    while left:
        free = {name for name, others in left.items() if not others & left.keys()}
        assert free, f"a circle: {left}"
        left = {name: others for name, others in left.items() if name not in free}


@pytest.mark.parametrize("module", MODULES)
def test_only_training_modules_know_torch(module: str) -> None:
    assert wrong_torch(MODULES[module].read_text(encoding="utf-8"), module) == []


def test_no_module_of_the_route_imports_torch_nor_in_a_function() -> None:
    exempt = TORCH_FREELY | TORCH_IN_FUNCTIONS
    assert exempt <= MODULES.keys()
    assert {name.split(".")[0] for name in exempt}.isdisjoint({*ROUTE, *COMMANDS})


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("image", "from masksim.image import load_image"),  # itself
        ("image", "import masksim.spectrum"),
        ("spectrum", "def f():\n    from masksim import model"),
        ("model", "if TYPE_CHECKING:\n    from masksim.detector import Detector"),
        ("preprocess", "from .detector import Detector"),
        ("preprocess", "from . import detector"),
        ("show.text", "from importlib import import_module\nimport_module('masksim.cli.main')"),
        ("show.text", "from masksim.detector import Detection"),
        ("batch.run", "from masksim.serve.app import app"),
        ("batch.run", "from masksim import serve"),
        ("batch.run", "from .. import serve"),
        ("data.views", "from masksim.training.feature_table import FeatureTable"),
        ("batch.run", "import masksim.unheard_of"),
    ],
)
def test_a_wrong_arrow_is_seen(module: str, source: str) -> None:
    assert len(wrong_arrows(source, module)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli.main", "def detect():\n    from masksim.load import load_detector"),
        ("image", "from masksim.errors import ImageError"),
        ("checkpoint", "from masksim import __version__"),
        ("model", "import numpy as np\nfrom masksim import spectrum"),
        ("batch.run", "from masksim.data import inputs"),
        ("batch.run", "from masksim.batch.rows import Row"),
        ("show.text", "from masksim.provenance.origin import Origin"),
    ],
)
def test_a_right_arrow_is_allowed(module: str, source: str) -> None:
    assert wrong_arrows(source, module) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("detector", "import torch", True),
        ("cli.main", "def f():\n    import torch.nn", True),
        ("spectrum", "import array_api_compat.torch", True),
        ("residual", "try:\n    import torch\nexcept ImportError:\n    torch = None", True),
        ("residual", "def f():\n    from torch import nn", True),
        ("original.importer", "if TYPE_CHECKING:\n    import torch", False),
        ("checkpoint", "if TYPE_CHECKING:\n    import torch", True),
        ("original.network", "import torch", False),
        ("training.shared", "import torch", True),
    ],
)
def test_torch_is_seen(module: str, source: str, wrong: bool) -> None:
    assert bool(wrong_torch(source, module)) is wrong


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


def test_all_but_training_is_entered_without_torch() -> None:
    names = [name for name in MODULES if name not in TORCH_FREELY and name != "__main__"]
    names = ["masksim" if name == "__init__" else f"masksim.{name}" for name in names]
    code = (
        "from importlib import import_module\n"
        f"for name in {names}:\n"
        "    try:\n"
        "        import_module(name)\n"
        # The service is an extra: its own libraries may be missing, torch never is the reason.
        "    except ModuleNotFoundError as error:\n"
        "        if error.name.split('.')[0] not in ('fastapi', 'pydantic', 'prometheus_client'):\n"
        "            raise\n"
        "    assert 'torch' not in sys.modules, name\n"
        "print('entered')"
    )
    assert run(code) == "entered"


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
