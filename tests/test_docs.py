"""The examples of docs/*.md are Python, and call what tiepoint has as it can be called."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md") if "```python\n" in path.read_text())


def examples(text, name="page"):
    """The blocks of a page as one program: later ones use names of earlier ones."""
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    program = "\n".join(blocks)
    compile(program, name, "exec")
    return ast.parse(program)


def imported(tree):
    """What the names stand for that are imported from tiepoint."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("tiepoint"):
            module = importlib.import_module(node.module)
            found |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.asname: importlib.import_module(a.name) for a in node.names if a.name.startswith("tiepoint")}
    return found


def meant(node, names):
    """The object of tiepoint that a node names, as `fit` or `tp.fit`; None for any other."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and inspect.ismodule(module := meant(node.value, names)):
        return getattr(module, node.attr)
    return None


def check(tree):
    """Raises AttributeError for a name that tiepoint lacks, TypeError for a call that does not fit."""
    names = imported(tree)
    for node in ast.walk(tree):
        meant(node, names)
        if isinstance(node, ast.Call) and (function := meant(node.func, names)) is not None:
            inspect.signature(function).bind(*node.args, **{word.arg: word.value for word in node.keywords})


@pytest.mark.parametrize("page", PAGES)
def test_examples_fit_the_package(page):
    pytest.importorskip("torch")
    check(examples((DOCS / page).read_text(), page))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import tiepoint as tp\ntp.no_such_name", AttributeError),
        ("from tiepoint.geometry import no_such_name", AttributeError),
        ("import tiepoint as tp\ntp.matcher('sift', weight='x')", TypeError),
        ("1 +", SyntaxError),
    ],
)
def test_examples_that_do_not_fit_are_found(code, error):
    with pytest.raises(error):
        check(examples(f"```python\n{code}\n```"))
