"""Parts 8, 12 and 13: what they ask for works with diffusers and transformers, and gives what minti gives."""

from support.rows import plan
from support.subjects import Subject

from types import SimpleNamespace

import torch
from helpers import pictures, seeded

import minti
from exercise.grader.lessons import tokens, training_step
from exercise.grader.lessons.evaluation_prompts import BOTH, SINGLE, eight_prompts


def networks(pipeline):
    return pipeline.unet, pipeline.vae, pipeline.text_encoder


def test_part_12_prepares_a_pipeline_as_minti_prepares_its_model(tiny, pipeline):
    """The same ids, the same matrix, and the same parameter trained."""
    ids = tokens.add_placeholders(pipeline.tokenizer, "<cat>", 2)
    tokens.add_rows(pipeline.text_encoder, pipeline.tokenizer, ids, "toy")
    tokens.freeze_all_but_embeddings(*networks(pipeline))
    tokens.check_trainable(*networks(pipeline))
    config = minti.TextualInversionConfig(
        placeholder_token="<cat>", initializer_token="toy", num_vectors=2, row_update="restore"
    )
    wrapper = minti.TrainingWrapper(tiny, config)
    minti.prepare_for_textual_inversion(wrapper)
    assert ids == tiny.words["<cat>"]
    ours, theirs = (model.text_encoder.get_input_embeddings().weight for model in (tiny, pipeline))
    assert torch.equal(ours, theirs)
    trained = [
        [name for part in parts for name, value in part.named_parameters() if value.requires_grad]
        for parts in ((tiny.unet, tiny.vae, tiny.text_encoder), networks(pipeline))
    ]
    assert trained[0] == trained[1] != []


def test_part_13_makes_of_images_and_prompts_what_minti_makes(tiny, pipeline):
    images, prompts = pictures(), ["a photo of a red cat", "the dog", "a toy " * 20]
    latents = training_step.image_latents(pipeline.vae, images, seeded())
    with torch.no_grad():
        assert torch.equal(latents, tiny.scale(tiny.encode(images).sample(seeded())))
    ids = training_step.token_ids(pipeline.tokenizer, prompts)
    assert torch.equal(ids, torch.cat([tiny.tokenize(prompt) for prompt in prompts]))

    def loss(wrapper, latents, timesteps, embeddings, generator):
        return minti.diffusion_loss(wrapper, latents, timesteps, embeddings, generator=generator)

    unet = lambda *inputs: pipeline.unet(*inputs).sample  # noqa: E731
    wrapper = SimpleNamespace(unet=unet, vae=pipeline.vae, tokenizer=pipeline.tokenizer)
    wrapper.text_encoder, wrapper.scheduler = pipeline.text_encoder, tiny.scheduler
    found = training_step.training_loss(wrapper, images, ["a {}"], "toy", loss, seeded())
    generator = seeded()
    latents = tiny.scale(tiny.encode(images).sample(generator)).detach()
    torch.randint(1, (len(images),), generator=generator)
    timesteps = torch.randint(1000, (len(images),), generator=generator)
    context = tiny.encode_prompt(["a toy"] * len(images))
    assert torch.equal(found, minti.diffusion_loss(tiny, latents, timesteps, context, generator=generator))


def test_part_8_asks_for_the_prompts_of_the_evaluation(tmp_path):
    subjects = [Subject(word, "toy", tmp_path, []) for word in ("<cat>", "<mug>")]
    planned = [row.prompt for row in plan([*SINGLE, *BOTH], subjects)]
    assert eight_prompts(SINGLE, BOTH, "<cat>", "<mug>") == planned and len(planned) == 8
