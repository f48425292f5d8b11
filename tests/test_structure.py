"""The promises of the codebase itself."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "minti").rglob("*.py"))
}
WINGS = sorted(path.parent.name for path in (ROOT / "minti").glob("*/__init__.py"))
PACKAGES = {"torch", "transformers", "safetensors", "numpy", "PIL", "einops", "huggingface_hub"}


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def rooms(wing: str) -> list[Path]:
    return sorted((ROOT / "minti" / wing).glob("*.py"))


def ground_up(below: dict[str, set[str]]) -> list[str]:
    """Names with the lower ones first; those that stand in a circle are left out."""
    order: list[str] = []
    while ground := [name for name, needs in below.items() if name not in order and needs <= set(order)]:
        order += ground
    return order


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_minti_imports_its_own_packages_only(path):
    foreign = {name.split(".")[0] for name in imports(path)} - PACKAGES - {"minti"} - set(sys.stdlib_module_names)
    assert not foreign


def test_no_import_cycles():
    """A room imports only from below it, and never through the front door."""
    below = {name: imports(path) & set(MODULES) for name, path in MODULES.items() if name != "minti"}
    assert not [name for name, needs in below.items() if "minti" in needs]
    assert sorted(ground_up(below)) == sorted(below)


def test_arrows_run_one_way_between_wings():
    """Seen as one room each, the wings have no circle either; the mathematics of diffusion knows no network."""
    home = lambda name: name.split(".")[1]  # noqa: E731
    below: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if name != "minti":
            needs = {home(other) for other in imports(path) & set(MODULES) if other != "minti"}
            below.setdefault(home(name), set()).update(needs - {home(name)})
    assert sorted(ground_up(below)) == sorted(below)
    assert not below["diffusion"] & {"networks", "model", "checkpoints"}


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_is_introduced(wing):
    """Its `__init__` is a docstring that names every room, and holds no code."""
    tree = ast.parse((ROOT / "minti" / wing / "__init__.py").read_text())
    assert len(tree.body) == 1
    introduction = ast.get_docstring(tree)
    assert not [path.stem for path in rooms(wing) if path.stem != "__init__" and f"`{path.stem}`" not in introduction]


def test_rooms_stay_small():
    assert {name: lines(path) for name, path in MODULES.items() if lines(path) > 250} == {}


READING_PATHS = {
    "learning": (
        400,
        ("learning.textual_inversion", "learning.loop", "learning.pictures", "parts.part", "parts.word"),
    ),
    "drawing": (
        550,
        ("text_to_image", "diffusion.guidance", "diffusion.samplers", "diffusion.scheduler"),
    ),
}


@pytest.mark.parametrize("path", READING_PATHS)
def test_the_reading_paths(path):
    """What a learner reads from one end of a journey to the other, in so many lines at most."""
    most, names = READING_PATHS[path]
    assert sum(lines(MODULES[f"minti.{name}"]) for name in names) <= most


SIBLINGS = ("learning.dreambooth", "parts.lora", "parts.network", "parts.together")


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_sibling_of_textual_inversion_is_one_short_file(name):
    assert lines(MODULES[f"minti.{name}"]) <= 150


def test_functions_stay_short():
    """One function, one idea: at most 60 lines, docstring included."""
    long = {}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 60:
                long[f"{name}.{node.name}"] = node.end_lineno - node.lineno + 1
    assert long == {}
