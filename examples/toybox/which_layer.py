"""Which cross-attention, and which timesteps, say the shape of a toy, and which its colour?

    python examples/toybox/which_layer.py

One layer reads another prompt than all others (as in XTI, arXiv 2303.09522), or one range of timesteps does (as in
ProSpect, arXiv 2305.16225): the table of contexts that words learn with `--by-layer` and `--timestep-ranges`, here with
two known toys. Prints in per cent of images how often the judge sees the shape, the pattern and the colours of the toy
which that one entry names, and of the other toy; writes the images.
"""

from study import Row, Study, mean_and_error, of, options, report
from support.command_line import run, whole

from collections.abc import Iterator

import numpy as np
import torch

import world
from measure import TOY, verdicts
from minti.personalization.vector_table import VectorTable, in_order

PROMPT = "a photo of a {}"


def pairs(count: int) -> list[tuple[world.Toy, world.Toy]]:
    """Two toys that share neither shape, pattern nor colour."""
    rng, found = np.random.default_rng(2303), []
    while len(found) < count:
        a, b = world.random_toy(rng), world.random_toy(rng)
        if a.shape != b.shape and a.pattern != b.pattern and not {a.main, a.second} & {b.main, b.second}:
            found.append((a, b))
    return found


def entries(layers: int, ranges: int) -> dict[str, torch.Tensor]:
    """Which entries of the table, (layers, ranges), read the first toy's prompt; all others read the second's."""
    none = torch.zeros(layers, ranges, dtype=torch.bool)
    found = {"none": none, "all": ~none}
    for name, size, axis in (("layer", layers, 0), ("range", ranges, 1)):
        for i in range(size):
            one = none.clone()
            one.select(axis, i)[:] = True
            found[f"{name} {i + 1} alone"], found[f"all but {name} {i + 1}"] = one, ~one
    return found


def rows(study: Study) -> Iterator[list[Row]]:
    """For every way the images of all pairs; their noise is the same for every way."""
    args, model = study.args, study.model
    layers, toys = len(in_order(model)), pairs(study.args.count)
    first, second = (model.encode_prompt([PROMPT.format(pair[i].looks) for pair in toys]) for i in (0, 1))
    empty = torch.zeros(layers, args.ranges, 1, first.shape[-1])
    table = VectorTable(model, empty, first=len(model.tokenizer))  # no word of its own: contexts are given
    for name, chosen in study.bar(entries(layers, args.ranges).items(), "ways"):
        parts = torch.stack([first if own else second for own in chosen.flatten()], dim=1)  # b (l r) m d
        with table.attached(model):
            pixels = study.sample(parts.flatten(1, 2), negative_prompt="")
        if "all but" not in name:
            study.show("which_layer", name, pixels[:8])
        found = []
        for verdict, pair in zip(verdicts(study.judge, pixels), toys):
            seen = {head: [verdict[f"{head}_0"] == getattr(toy, head) for toy in pair] for head in TOY}
            found.append({"way": name} | {f"{head} {i + 1}": seen[head][i] for head in TOY for i in (0, 1)})
        yield found


@torch.no_grad()
def main() -> None:
    """The table, the CSV file and the page."""
    parser = options(__doc__, "outputs/which-layer", count=(48, 1, "pairs of toys"), steps=15, batch_size=16)
    parser.add_argument("--ranges", type=whole(1), default=4, help="of timesteps, from little noise to much")
    parser.set_defaults(sampler="dpm-solver++")
    study = Study(parser)
    columns = {f"{head} {i}": (".0%", of(f"{head} {i}", mean_and_error)) for head in TOY for i in (1, 2)}
    print(report(study.table("which_layer", rows(study)), "way", columns))


if __name__ == "__main__":
    run(main)
