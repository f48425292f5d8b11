"""Many steps on the toybox: prints the memory and the time of each tenth, and whether the old rows are as they were.

python tests/safety/long_haul.py STEPS
"""

import json
import resource
import sys
import tempfile
import time

import torch

import minti


def resident():
    """The process's memory, in mebibytes."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def main(steps):
    torch.set_num_threads(1)
    model = minti.StableDiffusion.from_pretrained()
    before = model.text_encoder.get_input_embeddings().weight.detach().clone()
    images = torch.rand(5, 3, model.resolution, model.resolution, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wrapper = minti.TrainingWrapper(model, minti.TextualInversionConfig(steps=steps, batch_size=1))
    memory, seconds, began = [], [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for state in minti.monitored(minti.textual_inversion(wrapper, images)):
            if state.validation_loss is not None:
                minti.save_checkpoint(wrapper, folder)
            if state.step % (steps // 10) == 0:
                memory.append(round(resident(), 1))
                seconds.append(round(time.perf_counter() - began, 1))
                print(f"step {state.step}: {memory[-1]} MiB, {seconds[-1]} s", file=sys.stderr)
    weight = model.text_encoder.get_input_embeddings().weight
    unchanged = torch.equal(weight[: len(before)], before)
    print(json.dumps({"steps": state.step, "memory": memory, "seconds": seconds, "unchanged": unchanged}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
