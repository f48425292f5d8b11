"""What the READMEs say: their links lead somewhere, their commands name scripts, and the reading order holds."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
JOURNEYS = (ROOT / "examples/journeys.md").read_text()
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)|<img src=\"([^\"]+)\"")
ANCHOR = re.compile(r"\]\(([^)\s#:]*)#([^)\s]+)\)")


def documents() -> list[Path]:
    """Every Markdown file of the repository; outside git, those of its own folders."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.split()]
    return [*ROOT.glob("*.md"), *(path for folder in ("examples", "tests") for path in (ROOT / folder).rglob("*.md"))]


DOCUMENTS = pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))


@DOCUMENTS
def test_links_lead_somewhere(path):
    links = [link or picture for link, picture in LINK.findall(path.read_text()) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page: in lower case, without punctuation, with hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@DOCUMENTS
def test_links_lead_to_headings(path):
    found = [(path.parent / page if page else path, anchor) for page, anchor in ANCHOR.findall(path.read_text())]
    assert not [anchor for page, anchor in found if page.suffix == ".md" and anchor not in anchors(page)]


@DOCUMENTS
def test_commands_name_scripts(path):
    """`python examples/x.py` and `torchrun ... examples/x.py`, whatever stands between."""
    scripts = re.findall(r"(?:python|torchrun)[^`\n]*?(examples/[\w/]+\.py)", path.read_text())
    assert not [script for script in scripts if not (ROOT / script).is_file()]


def test_the_diagrams_name_files():
    """Every `wing/file.py` or `file.py` in a box of the two journeys is a file of minti."""
    diagrams = re.findall(r"```mermaid\n(.*?)```", JOURNEYS, re.DOTALL)
    assert len(diagrams) == 2
    for diagram in diagrams:
        names = re.findall(r"[\w/]+\.py", diagram)
        assert len(names) >= 5
        assert not [name for name in names if not (ROOT / "minti" / name).is_file()]


def test_the_reading_order_goes_down():
    """In the table of files, what a file imports stands below it."""
    files = re.findall(r"\]\(\.\./minti/([\w/]+)\.py\)", JOURNEYS)
    order = ["minti." + file.replace("/", ".") for file in files]
    assert len(order) > 10
    for i, name in enumerate(order):
        source = (ROOT / (name.replace(".", "/") + ".py")).read_text()
        imported = set(re.findall(r"^from (minti[\w.]+) import", source, re.MULTILINE))
        assert not imported & set(order[:i]), f"{name} imports from above it"
