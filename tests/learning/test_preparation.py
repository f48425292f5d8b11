"""Exercise E4, task 2: what trains and what does not, and the words that can be learned."""

import pytest
import torch
from helpers import ids_of, pictures, trainable, wrapper, write

import minti
from minti import text
from minti.personalization.augmented_images import AugmentedImages

FORMS = ("new_rows", "restore")


@pytest.mark.parametrize("form", FORMS)
def test_preparation(tiny, form):
    w = wrapper(tiny, row_update=form, num_vectors=2, initializer_token="cat", placeholder_token="<New>")
    optimizer = minti.prepare_for_textual_inversion(w)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert tiny.tokenizer(" <NEW> <new>_1", add_special_tokens=False).input_ids == ids_of(w)
    weight = tiny.text_encoder.get_input_embeddings().weight
    for row in weight[ids_of(w)]:
        assert torch.equal(row, weight[text.single_token_id(tiny.tokenizer, "cat")])
    assert [id(parameter) for parameter in trainable(tiny)] == ([id(weight)] if form == "restore" else [])
    (trained,) = optimizer.param_groups[0]["params"]
    assert trained is (weight if form == "restore" else w.embedding.values)


def test_the_form_of_new_rows_keeps_nothing_for_the_old_ones(tiny):
    w = wrapper(tiny, num_vectors=2)
    optimizer = minti.prepare_for_textual_inversion(w)
    next(minti.textual_inversion(w, pictures(), optimizer))
    (parameter,) = optimizer.param_groups[0]["params"]
    assert parameter.shape == (2, 48)
    assert all(v.numel() <= parameter.numel() for v in optimizer.state[parameter].values())
    assert tiny.text_encoder.get_input_embeddings().weight.grad is None


@pytest.mark.parametrize("form", FORMS)
def test_an_own_loop_with_a_scheduler_of_torch(tiny, form):
    w = wrapper(tiny, row_update=form)
    optimizer = minti.prepare_for_textual_inversion(w)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, 1.0, 4)
    old = tiny.text_encoder.get_input_embeddings().weight.detach().clone()
    for _ in range(4):
        for parameter in w.embedding.trainable():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        schedule.step()
    new = tiny.text_encoder.get_input_embeddings().weight
    first = ids_of(w)[0]
    assert torch.equal(new[:first], old[:first])
    assert not torch.equal(new[first:], old[first:])


@pytest.mark.parametrize("form", FORMS)
def test_clipping_looks_at_the_new_vectors_alone(tiny, form):
    w = wrapper(tiny, row_update=form, max_gradient_norm=None)
    optimizer = minti.prepare_for_textual_inversion(w)
    norms = []
    optimizer.register_step_pre_hook(lambda *_: norms.append(w.embedding.gradients()[0].norm().item()))
    state = next(minti.textual_inversion(w, pictures(), optimizer))
    assert state.gradient_norm == pytest.approx(norms[0])
    if form == "restore":  # the template's words and the padding have gradients of their own
        assert len(norms) == 1


def test_default_learning_rate_is_relative_to_the_vocabulary(tiny):
    rms = tiny.text_encoder.get_input_embeddings().weight.square().mean().sqrt().item()
    assert wrapper(tiny, learning_rate=None).learning_rate == pytest.approx(0.3 * rms)


def test_flipping_adds_mirror_images(tiny):
    data = AugmentedImages(tiny, pictures(), flip=True)
    assert len(data) == 6
    with torch.no_grad():
        mirrored = tiny.encode(pictures()[1:2].flip(-1))
    torch.testing.assert_close(data.mean[4:5], mirrored.mean)
    draws = [data.latents(torch.tensor([4]), torch.Generator().manual_seed(i)) for i in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("pixels", [lambda x: (x * 127.5 + 127.5).byte(), lambda x: x * 127.5 + 127.5])
def test_bytes_are_no_pixels(tiny, pixels):
    given = pixels(pictures())
    kind = str(given.dtype).removeprefix("torch.")
    wrapper = minti.TrainingWrapper(tiny, minti.TextualInversionConfig(steps=1))
    with pytest.raises(ValueError, match=rf"numbers in \[-1, 1\], and these are {kind} from \d.* to 25\d.*from_bytes"):
        minti.textual_inversion(wrapper, given)
    assert "<concept>" not in tiny.words


def test_a_prompt_that_just_holds_the_word(tiny):
    """Of the small model's 16 places the first and the last are the beginning and the end."""
    minti.prepare_for_textual_inversion(wrapper(tiny, templates=("a " * 12 + "{}",), num_vectors=2))
    ids = tiny.tokenizer("a " * 12 + "<concept> <concept>_1").input_ids
    assert len(ids) == tiny.tokenizer.model_max_length == 16


@pytest.mark.parametrize(
    ("placeholder", "prompts", "broken"),
    [
        ("oto", {"templates": ("a photo of a {}", "the {}, a photo")}, "photo (becomes p h oto)"),
        ("ther", {"captions": ("{}'s toy", "other ther. THER toy")}, "other (becomes o ther)"),
        ("<w>", {"templates": ("a photo of <{}>", "{}s")}, None),
        ("oto", {"templates": ("a red {}",)}, None),
        ("oto", {"captions": ("oto's cat", "an (oto)")}, None),
    ],
)
def test_a_placeholder_inside_other_words(tiny_folder, recwarn, placeholder, prompts, broken):
    """Each such word of the training prompts is named, with the pieces that the tokenizer now makes of it."""
    model = minti.StableDiffusion.from_pretrained(tiny_folder)
    if placeholder == "the":  # is a word of the small tokenizer
        placeholder, prompts = (
            "ther",
            {"captions": tuple(text.replace("the.", "ther.") for text in prompts["captions"])},
        )
        broken = "other (becomes o ther)"
    minti.prepare_for_textual_inversion(wrapper(model, placeholder_token=placeholder, **prompts))
    said = [str(each.message) for each in recwarn]
    assert len(said) == (broken is not None)
    if broken:
        assert (
            f"the placeholder {placeholder} stands in other words of the training prompts: {broken}; choose" in said[0]
        )


@pytest.mark.parametrize("form", FORMS)
def test_each_row_is_kept_below_the_limit_by_itself(tiny, form):
    """Three times the limit and half of it, in a step that moves nothing; as torch's, it returns the closure's loss."""
    w = wrapper(tiny, row_update=form, num_vectors=2, max_row_norm=2.0, learning_rate=0.0)
    optimizer = minti.prepare_for_textual_inversion(w)
    rows = torch.nn.functional.normalize(torch.randn(2, 48, generator=torch.Generator().manual_seed(0)), dim=1)
    limit = 2.0 * w.vocabulary_norm
    write(w, rows * limit * torch.tensor([[3.0], [0.5]]))
    assert optimizer.step(lambda: 7.0) == 7.0
    torch.testing.assert_close(w.embedding.values.detach(), rows * limit * torch.tensor([[1.0], [0.5]]))
    weight = tiny.text_encoder.get_input_embeddings().weight
    assert torch.equal(weight[ids_of(w)], w.embedding.values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placeholder_token": "cat"}, "in the vocabulary already"),
        ({"initializer_token": "zebra"}, "is not a single token"),
        ({"templates": ("a " * 14 + "{}",)}, "does not contain all 1 vectors"),
        ({"num_vectors": 14}, "use a shorter template or fewer vectors"),
    ],
)
@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_words_that_cannot_be_learned(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        minti.prepare_for_textual_inversion(wrapper(tiny, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": ("a photo of it",)}, "has no {}"),
        ({"templates": "poem"}, "unknown templates 'poem'"),
        ({"row_update": "all"}, "unknown row_update 'all'"),
        ({"lr_schedule": "step"}, "unknown lr_schedule 'step'"),
        ({"steps": 0}, "steps = 0; expected a whole number from 1"),
    ],
)
def test_bad_configs(options, message):
    with pytest.raises(ValueError, match=message):
        minti.TextualInversionConfig(**options)
