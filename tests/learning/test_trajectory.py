"""Training, step by step beside a loop put together from the parts of diffusers and transformers.

The loop does what exercise E4 and diffusers' textual-inversion example do: encode the image at every step, AdamW on
the whole embedding matrix, restore its old rows. It draws the same random numbers in the same order.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import own_tokenizer, pictures

import minti

STEPS = [5, pytest.param(100, marks=pytest.mark.slow)]
TEMPLATES = ("a photo of a {}", "the {}")
OPTIONS = [
    {},
    {"num_vectors": 3},
    {"gradient_accumulation": 2},
    {"weight_decay": 0.5},
]


def reference(pipe, steps, num_vectors=1, gradient_accumulation=1, weight_decay=1e-2):
    """Yields the new embedding vectors and their gradient after each step."""
    g, images = torch.Generator().manual_seed(0), pictures()
    tokens = ["<concept>", "<concept>_1", "<concept>_2"][:num_vectors]
    pipe.tokenizer.add_tokens(tokens)
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
    weight = pipe.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        weight[-num_vectors:] = weight[pipe.tokenizer.convert_tokens_to_ids("toy</w>")]
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    weight.requires_grad_(True)
    original = weight.detach().clone()
    optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=weight_decay)

    for _ in range(steps):
        for _ in range(gradient_accumulation):
            index = torch.randint(len(images), (1,), generator=g)
            latents = pipe.vae.encode(images[index]).latent_dist.sample(g) * pipe.vae.config.scaling_factor
            template = TEMPLATES[torch.randint(len(TEMPLATES), (1,), generator=g)]
            t = torch.randint(1000, (1,), generator=g)
            noise = torch.randn(latents.shape, generator=g)
            prompt = template.replace("{}", " ".join(tokens))
            ids = pipe.tokenizer(prompt, padding="max_length", max_length=16, return_tensors="pt").input_ids
            context = pipe.text_encoder(ids)[0]
            prediction = pipe.unet(pipe.scheduler.add_noise(latents, noise, t), t, context).sample
            (F.mse_loss(prediction, noise) / gradient_accumulation).backward()
        gradient = weight.grad[-num_vectors:].clone()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            weight[:-num_vectors] = original[:-num_vectors]
        yield weight[-num_vectors:].detach().clone(), gradient


@pytest.fixture(scope="module", params=STEPS)
def steps(request):
    return request.param


@pytest.fixture(scope="module", params=OPTIONS, ids=lambda options: "".join(options) or "plain")
def recipe(request, steps, opened_by_diffusers, tiny_folder):
    """Options, and what the loop of diffusers does with them."""
    pipe = copy.deepcopy(opened_by_diffusers)
    pipe.tokenizer = own_tokenizer(tiny_folder)
    return request.param, list(reference(pipe, steps, **request.param))


@pytest.mark.parametrize("form", ["restore", "new_rows"])
def test_a_hundred_steps_equal_the_loop_of_diffusers(tiny, steps, recipe, form):
    """Or five, among the fast tests.

    E4's recipe: bit for bit. The other form adds a vector's gradients in another order: to 1e-4 of the vectors' size.
    """
    options, expected = recipe
    w = minti.TrainingWrapper(
        tiny,
        minti.TextualInversionConfig(
            initializer_token="toy",
            row_update=form,
            steps=steps,
            templates=TEMPLATES,
            learning_rate=0.01,
            batch_size=1,
            max_gradient_norm=None,
            **options,
        ),
    )
    optimizer = minti.prepare_for_textual_inversion(w)
    gradients = []
    optimizer.register_step_pre_hook(lambda *_: gradients.append(w.embedding.gradients()[0].clone()))
    first = None
    for state, (rows, gradient) in zip(minti.textual_inversion(w, pictures(), optimizer), expected, strict=True):
        first = rows if first is None else first
        if form == "restore":
            assert torch.equal(gradients[-1], gradient), state.step
            assert torch.equal(w.embedding.values, rows), (state.step, (w.embedding.values - rows).abs().max())
        else:
            size = rows.abs().max().item()
            torch.testing.assert_close(w.embedding.values.detach(), rows, rtol=0, atol=1e-4 * size)
    assert (rows - first).abs().max() > 0.001 * steps
