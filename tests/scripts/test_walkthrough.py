"""The notebook: as it is stored, and from top to bottom."""

import json
import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from test_questions import same

import minti
from minti.formats.image_files import open_folder

NOTEBOOK = Path(__file__).parents[2] / "examples/walkthrough.ipynb"
CHECKS = """
best = min(state.validation_loss for state in states if state.validation_loss is not None)
assert best < 0.95 * states[0].initializer_loss, (best, states[0])
assert sum(len(images) for images in sampled.values()) == 32
inside, outside = maps.of("<gem>")[:, 6:10, 6:10].mean(), maps.of("<gem>")[:, 0].mean()
assert inside > 2 * outside, (inside, outside)
"""


def text(output):
    return "".join(output.get("text", ()))


def pictures(cells):
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", ()))


def test_the_stored_notebook_is_whole():
    """Run once from top to bottom, without an error, with its pictures, and small enough to be read in a browser."""
    stored = NOTEBOOK.read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(stored)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert any(text(output).startswith("AssertionError") for output in outputs)  # the bug of task 2, caught
    assert pictures(cells) >= 12
    assert len(stored) < 1_500_000
    assert "site-packages" not in stored


@pytest.mark.fast
def test_the_stored_run_is_of_this_code():
    """The validation loss before training, as it is stored, by today's loss on today's validation set."""
    stored = NOTEBOOK.read_text(encoding="utf-8")
    model = minti.StableDiffusion.from_pretrained()
    wrapper = minti.TrainingWrapper(model, minti.TextualInversionConfig(placeholder_token="<gem>"))
    images = open_folder(NOTEBOOK.parent / "concepts/red-diamond-pink-belt")
    state = next(iter(minti.monitored(minti.textual_inversion(wrapper, images))))
    assert same(f"{state.initializer_loss:.4f}", re.search(r"validation loss: “toy” ([\d.]+),", stored)[1])


def test_the_notebook_runs_from_top_to_bottom():
    """Every cell as it stands; what it prints is what is stored, and its pictures are as many."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = [text(output) for cell in notebook.cells for output in cell.get("outputs", ())]
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS))
    before = pictures(notebook.cells)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    client = nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where)
    client.execute(env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert pictures(notebook.cells) == before
    printed = [text(output) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert len(printed) == len(stored)
    assert [(got, expected) for got, expected in zip(printed, stored) if not same(got, expected)] == []
    assert any(line.startswith("AssertionError") and "other rows moved" in line for line in printed)
