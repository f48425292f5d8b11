"""Writes the exercise as a notebook, `exercise.ipynb`, from the same files: run it after one of them has changed."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).parent
BEGIN = """# The exercise

Each part is a cell with holes, between `# ---- YOUR CODE STARTS HERE ----` and `# ---- YOUR CODE ENDS HERE ----`.
Running it writes the part's file, over what is in it: write either here or in the files, not in both. The cell below
grades it, and shows your picture. On Colab, clone the repository first, `!git clone` and the address it is at, and go
into it with `%cd`. `000` to `004` are exercise E4, slides, lecture notes and questions: see `README.md` beside this."""
SETUP = """import os

if not os.path.exists("examples/exercise"):
    %cd ../..
%pip install -q -e '.[examples]'"""
SHOW = """from pathlib import Path

from IPython.display import Image, display

picture = Path("outputs/exercise/{part}.png")
picture.unlink(missing_ok=True)  # an older grading's
!python examples/exercise/check.py {number}
if picture.exists():
    display(Image(str(picture)))"""


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
