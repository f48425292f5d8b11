"""The promises of the codebase itself."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "minti").glob("*.py"))
PACKAGES = {"torch", "transformers", "safetensors", "numpy", "PIL", "einops", "huggingface_hub"}


def imports(path: Path) -> set[str]:
    """Top-level names of everything that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_minti_imports_its_own_packages_only(path):
    foreign = {name.split(".")[0] for name in imports(path)} - PACKAGES - {"minti"} - set(sys.stdlib_module_names)
    assert not foreign


def test_no_import_cycles():
    """A room imports only from below it."""
    below = {
        path.stem: {name.split(".")[1] for name in imports(path) if re.match(r"minti\.\w+", name)}
        & {other.stem for other in MODULES}
        for path in MODULES
        if path.stem != "__init__"
    }
    for path in MODULES:  # `from minti import text`
        if path.stem in below:
            below[path.stem] |= {m.stem for m in MODULES if f"minti.{m.stem}" in imports(path)} - {path.stem}
    while ground := [name for name, needs in below.items() if not needs]:
        for name in ground:
            del below[name]
        below = {name: needs - set(ground) for name, needs in below.items()}
    assert not below


def test_minti_stays_small():
    lines = {path.name: len(path.read_text().splitlines()) for path in MODULES}
    assert max(lines.values()) <= 250, lines
    assert sum(lines.values()) <= 3300


def test_the_reading_order_in_the_readme_has_the_right_line_counts():
    readme = (ROOT / "README.md").read_text()
    listed = dict(re.findall(r"\[`minti/(\w+\.py)`\]\([^)]*\) \| (\d+) \|", readme))
    actual = {path.name: str(len(path.read_text().splitlines())) for path in MODULES if path.name != "__init__.py"}
    assert listed == actual
