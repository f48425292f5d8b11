"""Textual inversion from beginning to end, without options: load a model, sample, learn a word, sample again.

python examples/first_word.py        (writes to outputs/first_word/)
"""

import torch

import minti
from minti.evaluation.grids import grid
from minti.formats.image_files import open_folder, save_png

# 1. A model, five training images of a thing that it has never seen, and a word that it does not know.
model = minti.StableDiffusion.from_pretrained()  # the bundled toybox; or the folder of SD v1.4
images = open_folder("examples/concepts/red-diamond-pink-belt")
# Exercise E4 fixes the batch size at 1, since a batch of SD v1.4 must fit into a small GPU's memory. The toybox is
# small: its default is 8, a gradient with an eighth of the variance for about four times the time of a step.
config = minti.TextualInversionConfig(placeholder_token="<gem>", initializer_token="toy")
wrapper = minti.TrainingWrapper(model, config)


def sample(word):
    """Four images, from the same noise at every call."""
    templates = (
        "a photo of a {} on a teal background",
        "a sketch of a {}",
        "a cartoon of a {}",
        "a {} next to a blue star",
    )
    prompts = [template.replace("{}", word) for template in templates]
    return minti.sample(model, prompts, generator=torch.Generator().manual_seed(0))


before = sample("toy")

# 2. Learn: the networks are frozen; all that is trained is one embedding vector of 128 numbers. `monitored` evaluates
#    the loss on a validation set, stops once it no longer falls, and restores the best vector.
for state in minti.monitored(minti.textual_inversion(wrapper, images)):
    if state.validation_loss is not None:
        print(f"step {state.step}: {state.validation_loss:.4f}, where 'toy' has {state.initializer_loss:.4f}")
minti.save_embeddings(wrapper, "outputs/first_word/gem.safetensors")

# 3. Sample again: it is a word like any other now.
save_png(grid(images[:4] + before + sample("<gem>"), columns=4, gap=4), "outputs/first_word/gem.png")
print("outputs/first_word/gem.png: four of the five images; the prompts with 'toy', before; with '<gem>', after")
print("How it is done, task by task: minti/textual_inversion.py")
