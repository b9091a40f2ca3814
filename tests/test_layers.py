"""Folders are layers, and imports only point down the list of docs/design.md."""

import ast
from pathlib import Path

import tiepoint

PACKAGE = Path(tiepoint.__file__).parent
LAYERS = (
    "images", "geometry", "estimation", "networks", "weights", "matchers", "registration", "sets", "training",
    "evaluation", "plot", "cli",
)  # fmt: skip
FORBIDDEN = {"torchvision", "timm", "xformers", "kornia", "romatch", "e2cnn", "escnn"}
LEARNED = {"torch", "safetensors"}


def height(layer):
    return LAYERS.index(layer)


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(PACKAGE).parts[0], ast.parse(path.read_text())


def test_imports_only_point_down():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, layer, tree in files()
        if layer in LAYERS
        for name in imported(tree)
        if name.startswith("tiepoint.") and name.split(".")[1] in LAYERS and height(name.split(".")[1]) > height(layer)
    ]
    assert wrong == []


def test_nothing_needs_what_does_not_install_beside_a_cpu_torch():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, _, tree in files()
        for name in imported(tree)
        if name.split(".")[0] in FORBIDDEN
    ]
    assert wrong == []


def test_the_lowest_layers_know_no_torch():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, layer, tree in files()
        if layer in ("images", "geometry", "estimation", "registration")
        for name in imported(tree)
        if name.split(".")[0] in LEARNED
    ]
    assert wrong == []
