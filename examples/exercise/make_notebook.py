"""Writes the exercise as a notebook, `exercise.ipynb`, from the same files: run it after one of them has changed."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).parent
BEGIN = """# The exercise

Each part is a cell with holes, between `# ---- YOUR CODE STARTS HERE ----` and `# ---- YOUR CODE ENDS HERE ----`.
Running it writes the part's file; the cell below grades it, and shows your picture. On Colab, clone the repository
first, `!git clone ADDRESS`, and open the notebook's folder with `%cd`."""
SETUP = """import os

if not os.path.exists("examples/exercise"):
    %cd ../..
%pip install -q -e '.[examples]'"""
SHOW = """import os

from IPython.display import Image, display

!python examples/exercise/check.py {number}
if os.path.exists("outputs/exercise/{part}.png"):
    display(Image("outputs/exercise/{part}.png"))"""


def notebook() -> nbformat.NotebookNode:
    """A cell of text, one of code and one that grades it, for each part."""
    cells = [new_markdown_cell(BEGIN), new_code_cell(SETUP)]
    for file in sorted(HERE.glob("[0-9][0-9]_*.py")):
        source = file.read_text(encoding="utf-8")
        text = ast.get_docstring(ast.parse(source))
        number, part = file.stem.split("_", 1)
        cells.append(new_markdown_cell(text.replace("Part", "## Part", 1)))
        cells.append(new_code_cell(f"%%writefile examples/exercise/{file.name}\n{source.rstrip()}"))
        cells.append(new_code_cell(SHOW.format(number=int(number), part=part)))
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    return new_notebook(cells=cells)


if __name__ == "__main__":
    nbformat.write(notebook(), HERE / "exercise.ipynb")
