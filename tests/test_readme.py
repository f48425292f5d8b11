"""What the READMEs say: links, commands, lines, and the README's code, which is the core's step bit for bit."""

import re
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest
import torch

import minti
from minti.formats.image_files import open_folder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ALGORITHM, FROM_PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONCEPT = ROOT / "examples/concepts/red-diamond-pink-belt"
JOURNEYS = (ROOT / "examples/journeys.md").read_text(encoding="utf-8")
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
    links = [link or picture for link, picture in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page: in lower case, without punctuation, with hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@DOCUMENTS
def test_links_lead_to_headings(path):
    found = [
        (path.parent / page if page else path, anchor)
        for page, anchor in ANCHOR.findall(path.read_text(encoding="utf-8"))
    ]
    assert not [anchor for page, anchor in found if page.suffix == ".md" and anchor not in anchors(page)]


@DOCUMENTS
def test_commands_name_scripts(path):
    """`python examples/x.py` and `torchrun ... examples/x.py`, whatever stands between."""
    scripts = re.findall(r"(?:python|torchrun)[^`\n]*?(examples/[\w/]+\.py)", path.read_text(encoding="utf-8"))
    assert not [script for script in scripts if not (ROOT / script).is_file()]


# --- the README's code ------------------------------------------------------------------------------------------------


def shortened(code: str, path: Path, *changes: tuple[str, str]) -> str:
    """A block of the README with fewer steps, and with its output in another folder."""
    output = (('.save("', f'.save("{path}/'), (")[0].save", ", num_inference_steps=2)[0].save"))
    for old, new in (*changes, *output, ("examples/concepts", str(CONCEPT.parent))):
        assert old in code
        code = code.replace(old, new)
    return code


@pytest.fixture(scope="module")
def algorithm(tmp_path_factory):
    """The names of the README's algorithm after three steps, and the losses of these steps."""
    record = "    losses.append(loss.item())\n    optimizer.zero_grad()"
    path, changes = (
        tmp_path_factory.mktemp("algorithm"),
        (("range(100)", "range(3)"), ("    optimizer.zero_grad()", record)),
    )
    names = {"losses": []}
    exec(shortened(ALGORITHM, path, *changes), names)
    assert (path / "gem.png").is_file()
    return names


def test_the_algorithm_is_the_core_s_training_step(algorithm):
    """The same losses, and after three steps the same matrix, as `minti.textual_inversion` with the same settings."""
    model = minti.StableDiffusion.from_pretrained()
    config = minti.TextualInversionConfig(
        placeholder_token="<gem>",
        initializer_token="toy",
        row_update="restore",
        templates=algorithm["templates"],
        steps=3,
        batch_size=8,
        learning_rate=0.01,
        max_gradient_norm=None,
    )
    known = model.text_encoder.get_input_embeddings().weight.detach().clone()
    steps = minti.textual_inversion(minti.TrainingWrapper(model, config), open_folder(CONCEPT))
    assert [step.loss for step in steps] == algorithm["losses"]
    assert torch.equal(model.text_encoder.get_input_embeddings().weight, algorithm["matrix"])
    assert torch.equal(algorithm["matrix"][:-1], known)
    assert not torch.equal(algorithm["matrix"][-1:], algorithm["initializer"])


def test_the_algorithm_s_loss_is_the_diffusion_loss(algorithm):
    """Its lines for the loss give, for the last batch, what `minti.diffusion_loss` gives."""
    names = dict(algorithm)
    lines = re.search(r"^    noisy_latents = .*?^    loss = [^\n]*$", ALGORITHM, re.DOTALL | re.MULTILINE)
    exec(dedent(lines[0]), names)
    batch = names["latents"], names["timesteps"], names["model"].encode_prompt(names["prompts"]), names["noise"]
    assert torch.equal(names["loss"], minti.diffusion_loss(names["model"], *batch))


def test_the_loop_from_python_runs(tmp_path, capsys):
    """With two steps in place of as many as it takes."""
    exec(shortened(FROM_PYTHON, tmp_path, ("TextualInversionConfig(", "TextualInversionConfig(steps=2, ")), {})
    assert (tmp_path / "cartoon.png").is_file()
    step, loss, validation_loss = capsys.readouterr().out.splitlines()[-1].split()
    assert step == "2" and float(loss) > 0 and float(validation_loss) > 0


# --- how much there is to read ----------------------------------------------------------------------------------------


def lines(*paths: Path) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def core() -> list[Path]:
    return sorted(path for path in (ROOT / "minti").glob("*.py") if path.name != "__init__.py")


def test_the_promised_lines():
    """The README's numbers of lines are those of the core and of all of minti/."""
    stated = re.findall(r"has ([\d,]+) lines", README)
    assert stated == [f"{lines(*core()):,}", f"{lines(*(ROOT / 'minti').rglob('*.py')):,}"]


def test_the_reading_list_names_the_core():
    """Every file of the core once, and every family."""
    section = README.split("## What to read")[1].split("\n## ")[0]
    listed = re.findall(r"\]\(minti/(\w+\.py)\)", section)
    assert sorted(listed) == [path.name for path in core()]
    families = {path.parent.name for path in (ROOT / "minti").glob("*/__init__.py")}
    assert set(re.findall(r"\]\(minti/(\w+)\)", section)) == families


def test_the_tree_of_the_house():
    """`journeys.md` lists every file of minti/, with its lines, to about a tenth."""
    tree = re.search(r"```text\n(minti/.*?)```", JOURNEYS, re.DOTALL)[1]
    listed, folder = {}, ""
    for line in tree.splitlines()[1:]:
        if found := re.match(r"  (\w+)/ ", line):
            folder = found[1] + "/"
        elif found := re.match(r" +(\w+\.py) +(\d+) ", line):
            listed[folder + found[1]] = int(found[2])
    files = {str(path.relative_to(ROOT / "minti")): lines(path) for path in (ROOT / "minti").rglob("*.py")}
    files = {name: count for name, count in files.items() if not name.endswith("__init__.py")}
    assert listed.keys() == files.keys()
    assert {name: files[name] for name in files if abs(listed[name] - files[name]) > 5 + files[name] / 10} == {}


def test_the_diagrams_name_files():
    """Every `family/file.py` or `file.py` in a box of the two journeys is a file of minti."""
    diagrams = re.findall(r"```mermaid\n(.*?)```", JOURNEYS, re.DOTALL)
    assert len(diagrams) == 2
    for diagram in diagrams:
        names = re.findall(r"[\w/]+\.py", diagram)
        assert len(names) >= 5
        assert not [name for name in names if not (ROOT / "minti" / name).is_file()]
