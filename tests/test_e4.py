"""examples/e4.md: its program runs diffusers and minti side by side; its table consists of that program's lines."""

import re
from pathlib import Path

import torch
from running import script_inside

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "examples/e4.md").read_text(encoding="utf-8")
PROGRAM, SHORT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TABLE = PAGE.split("## The tasks, call by call")[1].split("\n## ")[0]
CELLS = [line.split("|")[2:4] for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith("| E4 ")]
CODE = re.compile(r"`([^`]+)`")


def test_the_program_and_minti_s_functions_for_the_tasks(tiny_folder, tmp_path):
    """The program asserts that both libraries have the same tokens, latents, losses, rows and images; then the short
    form learns a word, which both libraries read."""
    program = PROGRAM
    concept = ROOT / "examples/concepts/red-diamond-pink-belt"
    for old, new in (('"path/to/stable-diffusion-v1-4"', repr(str(tiny_folder))), ('"my-cat"', repr(str(concept)))):
        assert old in program
        program = program.replace(old, new)
    names = {"path": str(tmp_path / "word.safetensors")}
    exec(program.replace('": 50', '": 3'), names)
    assert torch.equal(names["weight"][:-1], names["original"][:-1])
    assert not torch.equal(names["weight"][-1], names["original"][-1])
    exec(SHORT.replace("steps=2000", "steps=2"), names)
    theirs = names["pipe"].text_encoder.get_input_embeddings().weight[-1]
    assert torch.equal(names["model"].text_encoder.get_input_embeddings().weight[-1], theirs)
    assert torch.equal(names["wrapper"].embedding.values[0], theirs)


def test_the_table_s_lines_are_in_the_program():
    """Every call of both columns; a command names options that the script has."""
    assert len(CELLS) >= 15
    for theirs, ours in CELLS:
        for code in CODE.findall(theirs + ours):
            if code.startswith("python examples/"):
                _, script, *options = code.split()
                told = script_inside(script.removeprefix("examples/"), "--help").stdout
                assert not [option for option in options if option.startswith("--") and option not in told]
            else:
                assert code in PROGRAM + SHORT, code
