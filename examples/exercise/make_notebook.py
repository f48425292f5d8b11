"""Writes the exercise as a notebook, `exercise.ipynb`, from the same files: run it after one of them has changed."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).parent
BEGIN = """# The exercise

Each part is a cell with gaps, between `# ---- YOUR CODE STARTS HERE ----` and `# ---- YOUR CODE ENDS HERE ----`.
Running the cell overwrites the part's file: work either here or in the files, not in both. The cell below it grades the
part and shows your image. On Colab, first clone the repository, with `!git clone` and its address, and go into it with
`%cd`. Of the notes that the parts cite, `000` is exercise E4, `001` and `004` are slides, `002` the lecture notes, and
`003` fifty exam questions; see the `README.md` in this folder."""
SETUP = """import os

if not os.path.exists("examples/exercise"):
    %cd ../..
%pip install -q -e '.[examples]'"""
END = """## Afterwards

Two open challenges: right toys in one, two and four evaluations, and seconds to a word that the judge
knows. Both are in [`examples/challenge.md`](../challenge.md)."""
SHOW = """from pathlib import Path

from IPython.display import Image, display

image = Path("outputs/exercise/{part}.png")
image.unlink(missing_ok=True)  # of an earlier grading
!python examples/exercise/check.py {number}
if image.exists():
    display(Image(str(image)))"""


def notebook() -> nbformat.NotebookNode:
    """A heading, a cell of code and one that grades it, for each part; the text stands in the code cell only."""
    cells = [new_markdown_cell(BEGIN), new_code_cell(SETUP)]
    for file in sorted(HERE.glob("[0-9][0-9]_*.py")):
        source = file.read_text(encoding="utf-8")
        title = ast.get_docstring(ast.parse(source)).split("\n")[0]
        number, part = file.stem.split("_", 1)
        cells.append(new_markdown_cell(f"## {title}"))
        cells.append(new_code_cell(f"%%writefile examples/exercise/{file.name}\n{source.rstrip()}"))
        cells.append(new_code_cell(SHOW.format(number=int(number), part=part)))
    cells.append(new_markdown_cell(END))
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    return new_notebook(cells=cells)


if __name__ == "__main__":
    nbformat.write(notebook(), HERE / "exercise.ipynb")
