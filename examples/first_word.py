"""Textual inversion from beginning to end, without options: set up, draw, learn, draw again.

python examples/first_word.py        (writes to outputs/first_word/)
"""

import torch

import minti
from minti.evaluation.grids import grid
from minti.formats.image_files import open_folder, save_png

# 1. Set up: a model, five pictures of a thing that it has never seen, and a word that it does not know.
model = minti.StableDiffusion.from_pretrained()  # the bundled toybox; or the folder of SD v1.4
pictures = open_folder("examples/concepts/red-diamond-pink-belt")
config = minti.TextualInversionConfig(placeholder_token="<gem>", initializer_token="toy")
wrapper = minti.TrainingWrapper(model, config)


def draw(word):
    """Four pictures, from the same noise at every call."""
    prompts = [
        "a photo of a {} on a teal background",
        "a sketch of a {}",
        "a cartoon of a {}",
        "a {} next to a blue star",
    ]
    return minti.sample(
        model, [prompt.replace("{}", word) for prompt in prompts], generator=torch.Generator().manual_seed(0)
    )


before = draw("toy")

# 2. Learn: the networks stay as they are; all that is trained is one embedding vector of 128 numbers.
#    The loss on fixed pictures, timesteps and noise falls while the word gets better, and when it no longer falls,
#    training stops.
for state in minti.textual_inversion(wrapper, pictures):
    if state.validation_loss is not None:
        print(f"step {state.step}: {state.validation_loss:.4f}, where 'toy' has {state.initializer_loss:.4f}")
minti.save_embeddings(wrapper, "outputs/first_word/gem.safetensors")

# 3. Draw again: it is a word like any other now.
save_png(grid(pictures[:4] + before + draw("<gem>"), columns=4, gap=4), "outputs/first_word/gem.png")
print("outputs/first_word/gem.png: four of the five pictures; the prompts with 'toy', before; with '<gem>', after")
print("How it is done, task by task: minti/learning/textual_inversion.py")
