"""DreamBooth: step by step beside a loop of diffusers' parts; LoRA and word; class images; resuming; refusals."""

import copy
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import ids_of, learning, pictures, seeded, trainable, wrapper

import minti
from minti.personalization.dreambooth import DreamBooth, DreamBoothConfig, class_pictures, dreambooth, dreambooth_loss

TEMPLATES = ("a photo of a {}", "the {}")
SETTINGS = {"templates": TEMPLATES, "batch_size": 2, "steps": 20, "class_pictures": 3, "initializer_token": "dog"}


def training(model, word=None, **options) -> DreamBooth:
    return DreamBooth(model, DreamBoothConfig(**(SETTINGS | options)), word)


def class_images():
    return pictures(4, seed=7)


def weights(model):
    networks = {"unet": model.unet, "vae": model.vae, "text_encoder": model.text_encoder}
    return {f"{n}.{k}": v.clone() for n, network in networks.items() for k, v in network.state_dict().items()}


def learned_word(model, steps=3):
    word = wrapper(model, steps=steps)
    list(learning(word))
    return word


# --- beside diffusers -------------------------------------------------------------------------------------------------


def reference(pipe, text_encoder, prior_weight, lr=1e-3):
    """diffusers' train_dreambooth.py: one batch of images of the subject and of the class, cut in two for the losses.

    Yields the UNet's conv_in and the text encoder's first layer after each step.
    """
    g, images, others = torch.Generator().manual_seed(0), pictures(), class_images()
    networks = [pipe.unet, *([pipe.text_encoder] if text_encoder else [])]
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(part in networks)
    parameters = [weight for network in networks for weight in network.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2)

    def batch(images, prompts):
        index = torch.randint(len(images), (2,), generator=g)
        with torch.no_grad():
            moments = [pipe.vae.encode(images[i : i + 1]).latent_dist for i in index]
            mean, std = (torch.cat([getattr(m, name) for m in moments]) for name in ("mean", "std"))
            latents = (mean + std * torch.randn(mean.shape, generator=g)) * pipe.vae.config.scaling_factor
        said = [prompts[i] for i in torch.randint(len(prompts), (2,), generator=g)]
        t = torch.randint(1000, (2,), generator=g)
        return latents, torch.randn(latents.shape, generator=g), t, said

    for _ in range(SETTINGS["steps"]):
        parts = [batch(images, [template.replace("{}", "sks dog") for template in TEMPLATES])]
        if prior_weight:
            parts.append(batch(others, ["a photo of a dog"]))
        latents, noise, t = (torch.cat([part[i] for part in parts]) for i in range(3))
        said = [prompt for part in parts for prompt in part[3]]
        ids = pipe.tokenizer(said, padding="max_length", max_length=16, return_tensors="pt").input_ids
        context = pipe.text_encoder(ids)[0]
        prediction = pipe.unet(pipe.scheduler.add_noise(latents, noise, t), t, context).sample
        if prior_weight:
            (prediction, prior_prediction), (noise, prior_noise) = prediction.chunk(2), noise.chunk(2)
            loss = F.mse_loss(prediction, noise) + prior_weight * F.mse_loss(prior_prediction, prior_noise)
        else:
            loss = F.mse_loss(prediction, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item(), pipe.unet.conv_in.weight, pipe.text_encoder.get_input_embeddings().weight


@pytest.mark.slow
@pytest.mark.parametrize(("text_encoder", "prior_weight"), [(True, 0.5), (False, 0.0)])
def test_the_network_learns_as_in_diffusers_script(tiny, pipeline, text_encoder, prior_weight):
    """Two batches instead of one cut in two, and the gradient's length summed in another order: to rounding.

    Adam divides a gradient by its own size, so that where there is hardly any a rounding decides a step's sign. So the
    losses are compared after every step, and the weights by their mean difference beside how far they have moved.
    """
    before = tiny.unet.conv_in.weight.clone()
    run = training(tiny, text_encoder=text_encoder, prior_weight=prior_weight, learning_rate=1e-3)
    states = dreambooth(run, pictures(), class_images() if prior_weight else ())
    for state, (loss, conv_in, rows) in zip(states, reference(pipeline, text_encoder, prior_weight), strict=True):
        assert state.loss == pytest.approx(loss, rel=1e-4), state.step
        moved = (conv_in - before).abs().mean()
        assert (tiny.unet.conv_in.weight - conv_in).abs().mean() < 0.01 * moved, state.step
    assert moved > 1e-3
    difference = (tiny.text_encoder.get_input_embeddings().weight - rows).abs().mean()
    assert difference < 1e-5 if text_encoder else difference == 0


# --- what learns, and what does not -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text_encoder", [False, True])
def test_the_network_alone_learns(tiny, text_encoder):
    before = weights(tiny)
    run = training(tiny, text_encoder=text_encoder, steps=2, learning_rate=1e-3)
    for _ in dreambooth(run, pictures(), class_images()):
        assert not trainable(tiny)  # outside a step
    moved = {key.split(".")[0] for key, value in weights(tiny).items() if not torch.equal(value, before[key])}
    assert moved == ({"unet", "text_encoder"} if text_encoder else {"unet"})
    assert all(weight.grad is None for weight in tiny.unet.parameters())


@pytest.mark.slow
def test_a_lora_and_a_word_learn_together_at_two_rates(tiny):
    word = learned_word(tiny)
    before, rows = weights(tiny), word.embedding.values.detach().clone()
    run = training(tiny, word, learns="lora", steps=3, learning_rate=1e-3, word_learning_rate=1e-4, weight_decay=0.0)
    states = list(dreambooth(run, pictures(), class_images()))
    changed = [key for key, value in weights(tiny).items() if not torch.equal(value, before[key])]
    assert changed == [
        "text_encoder." + name for name, _ in tiny.text_encoder.named_parameters() if "token_emb" in name
    ]
    matrix = tiny.text_encoder.get_input_embeddings().weight
    assert torch.equal(matrix[: ids_of(word)[0]], before[changed[0]][: ids_of(word)[0]])
    assert torch.equal(matrix[ids_of(word)], word.embedding.values)
    # Adam's steps are at most as long as the rate; in the first they are that long.
    assert 1e-4 < (word.embedding.values - rows).abs().max() < 3.1e-4
    ups = torch.cat([pair.up.flatten() for pair in run.lora.pairs.values()])
    assert 1e-3 < ups.abs().max() < 3.1e-3
    assert run.subject == "<concept>"
    assert [state.row_norm for state in states][-1] == pytest.approx(word.embedding.values.norm(dim=1).mean().item())


def test_the_class_pulls_by_its_weight(tiny):
    """d L / d weights = d L_instance + lambda d L_class."""
    run, gradients = training(tiny, learns="lora", steps=1), []
    list(dreambooth(run, pictures(), class_images()))
    pair = run.trainer.draw(seeded())
    for weight, batches in ((2.0, pair), (1.0, pair._replace(prior=None)), (1.0, pair._replace(instance=pair.prior))):
        batches = batches if weight == 2.0 or batches.prior is None else batches._replace(prior=None)
        run.lora.zero_grad()
        with run.adapter.attached(tiny):
            dreambooth_loss(tiny, batches, weight).backward()
        gradients.append(torch.cat([p.up.grad.flatten() for p in run.lora.pairs.values()]))
    together, instance, prior = gradients
    torch.testing.assert_close(together, instance + 2 * prior, rtol=1e-4, atol=1e-7)
    assert prior.abs().max() > 0


# --- class pictures ---------------------------------------------------------------------------------------------------


def test_a_rate_of_zero_is_a_rate(tiny):
    run = training(tiny, learned_word(tiny), learns="lora", word_learning_rate=0.0, learning_rate=1e-3)
    assert [group["lr"] for group in run.optimizer().param_groups] == [1e-3, 0.0]


def test_a_cosine_falls_over_the_steps_that_the_model_suggests(tiny):
    """A config alone does not know them, and says so."""
    config = DreamBoothConfig(lr_schedule="cosine", learns="lora", initializer_token="dog")
    with pytest.raises(ValueError, match="say with `steps`"):
        config.rate(0)
    run = DreamBooth(tiny, config)
    assert [run.config.rate(taken) for taken in (0, tiny.defaults.tuning_steps)] == [1.0, 0.0]


@pytest.mark.slow
def test_class_pictures_are_the_model_s_own_and_drawn_once(tiny, tmp_path):
    config = DreamBoothConfig(**SETTINGS)
    drawn = []
    first = class_pictures(tiny, config, tmp_path, partial(drawn.append, 1))
    noise = [torch.Generator().manual_seed(i) for i in range(3)]
    options = {"num_inference_steps": 20, "sampler": "dpm-solver++", "generator": noise}
    expected = minti.sample(tiny, ["a photo of a dog"] * 3, **options)
    assert [image.tobytes() for image in first] == [image.tobytes() for image in expected]
    more = class_pictures(
        tiny, DreamBoothConfig(**SETTINGS | {"class_pictures": 4}), tmp_path, partial(drawn.append, 1)
    )
    assert len(drawn) == 4  # of which the last is new
    assert [image.tobytes() for image in more[:3]] == [image.tobytes() for image in first]
    other = DreamBoothConfig(**SETTINGS | {"class_prompt": "a red dog"})
    assert class_pictures(tiny, other, tmp_path)[0].tobytes() != first[0].tobytes()
    assert len(list(tmp_path.iterdir())) == 2


# --- interruption -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "with_word"),
    [({"learning_rate": 1e-3}, False), ({"learns": "lora"}, False), ({"learns": "lora"}, True)],
    ids=["network", "lora", "word+lora"],
)
def test_a_run_goes_on_where_it_was(tiny, tmp_path, options, with_word):
    """At step 3 of 6 through a file, in a model that has learned nothing: the same to the bit as without a break."""
    fresh, other = copy.deepcopy(tiny), copy.deepcopy(tiny)

    def begin(model):
        return training(model, learned_word(model) if with_word else None, steps=6, **options)

    whole = begin(tiny)
    for state in dreambooth(whole, pictures(), class_images()):
        if state.step == 3:
            minti.save_checkpoint(whole, tmp_path)
    again, checkpoint = begin(fresh), minti.load_checkpoint(tmp_path)
    states = list(dreambooth(again, pictures(), class_images(), checkpoint))
    assert [state.step for state in states] == [4, 5, 6]
    ours, theirs = again.adapter.state_dict(), whole.adapter.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert again.trainer.monitor.losses == whole.trainer.monitor.losses
    with pytest.raises(ValueError, match=r"class_images was .* and is"):
        list(dreambooth(begin(other), pictures(), pictures(4, seed=8), checkpoint))


def test_an_optimizer_in_8_bits_goes_on_too(tiny, tmp_path):
    """bitsandbytes keeps counts as plain numbers, and its state in other shapes and types than the weights'."""
    eight = pytest.importorskip("bitsandbytes").optim.AdamW8bit
    fresh = copy.deepcopy(tiny)
    whole, again = training(tiny, steps=3), training(fresh, steps=3)
    for state in dreambooth(whole, pictures(), class_images(), optimizer=eight):
        if state.step == 2:
            minti.save_checkpoint(whole, tmp_path)
    saved = minti.load_checkpoint(tmp_path).state["optimizer"].values()
    kinds = {value.dtype for values in saved for value in values.values() if isinstance(value, torch.Tensor)}
    assert torch.uint8 in kinds
    list(dreambooth(again, pictures(), class_images(), minti.load_checkpoint(tmp_path), optimizer=eight))
    theirs = tiny.unet.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in fresh.unet.state_dict().items())


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learns": "everything"}, "unknown learns 'everything'; expected one of network, lora"),
        ({"class_prompt": "a photo of a cat"}, "expected one that names the class, 'dog', without"),
        ({"class_prompt": "a sks dog"}, "without the word for the subject, 'sks'"),
        ({"class_prompt": "a photo of a doghouse"}, "expected one that names the class, 'dog', without"),
        ({"class_prompt": "a photo of sks, a dog"}, "without the word for the subject, 'sks'"),
        ({"initializer_token": " "}, "expected one that names the class"),
        ({"class_pictures": 0}, "set class_pictures, or prior_weight = 0"),
        ({"prior_weight": -1.0}, "prior_weight = -1.0; expected a number from 0"),
        ({"rank": 0, "learns": "lora"}, "rank = 0"),
        ({"layers": ("resnets",), "learns": "lora"}, "layers = "),
        ({"huber": 0.0}, "huber = 0.0"),
    ],
)
def test_settings_that_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        training(tiny, **options)


def test_what_cannot_be_learned_is_refused(tiny_folder, tiny):
    half = minti.StableDiffusion.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"weights are torch\.bfloat16; load the model in float32"):
        training(half)
    with pytest.raises(ValueError, match="a new word learns along with a LoRA only"):
        training(tiny, learned_word(tiny))
    restored = wrapper(tiny, placeholder_token="<other>", steps=1, row_update="restore")
    list(minti.textual_inversion(restored, pictures()))
    with pytest.raises(ValueError, match="and by row_update='new_rows'"):
        training(tiny, restored, learns="lora")
    with pytest.raises(ValueError, match=r"no class images.*class_images=minti\.class_pictures\(.*prior_weight=0"):
        list(dreambooth(training(tiny), pictures(), ()))
    with pytest.raises(ValueError, match="1 captions for 3 images"):
        list(dreambooth(training(tiny, captions=("a sks dog",)), pictures(), class_images()))


@pytest.mark.parametrize(
    ("captions", "named"),
    [(("a cat", "the cat", "sksy"), False), (("a cat", "an SKS dog", "it"), True), (("a {}", "it", "it"), True)],
)
def test_captions_that_never_say_the_word_are_told(tiny, captions, named):
    """They teach something, but not what the word means."""
    lora = training(tiny, learns="lora", prior_weight=0.0, captions=captions)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        dreambooth(lora, pictures())
    said = [str(each.message) for each in told if "longer than" not in str(each.message)]
    assert lora.named == named
    assert len(said) == (not named)
    assert named or said[0].startswith("no caption says sks dog, ")
