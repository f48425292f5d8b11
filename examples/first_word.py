"""Textual inversion from beginning to end, without options: set up, learn, draw.

python examples/first_word.py        (writes to outputs/first_word/)
"""

import torch

import minti
from minti.images import grid, open_folder, save_png

# 1. Set up: a model, five pictures of a thing that it has never seen, and a word that it does not know.
model = minti.StableDiffusion.from_pretrained()  # the bundled toybox; or the folder of SD v1.4
pictures = open_folder("examples/concepts/red-diamond-pink-belt")
config = minti.TextualInversionConfig(placeholder_token="<gem>", initializer_token="toy")
wrapper = minti.TrainingWrapper(model, config)

# 2. Learn: the networks stay as they are; what is trained is one row of the text encoder's embedding, 128 numbers.
#    The loss on fixed pictures, timesteps and noise falls while the word gets better, and when it no longer falls,
#    training stops.
for state in minti.textual_inversion(wrapper, pictures):
    if state.fixed_loss is not None:
        print(f"step {state.step}: {state.fixed_loss:.4f}, where 'toy' has {state.initializer_loss:.4f}")
minti.save_embeddings(wrapper, "outputs/first_word/gem.safetensors")

# 3. Draw: it is a word like any other now.
prompts = ["a photo of a <gem> on a teal background", "a sketch of a <gem>", "a <gem> next to a blue star"]
drawn = minti.sample(model, prompts, guidance_scale=5.0, generator=torch.Generator().manual_seed(0))
save_png(grid(drawn, columns=3), "outputs/first_word/gem.png")
