"""Prompt weights, BREAK and clip_skip in contexts: against compel, diffusers, and by hand from transformers' encoder.

A1111's rule is `modules/sd_emphasis.py` of its web UI: z w, then times the mean before over the mean after."""

import pytest
import torch
from compel import Compel
from helpers import seeded

import minti


@pytest.fixture
def model(tiny):
    """Its contexts have a mean, as those of a trained CLIP do; random ones have none, by the last LayerNorm."""
    encoder = tiny.text_encoder
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    with torch.no_grad():
        norm.bias.normal_(0.5, 0.5, generator=seeded())
    yield tiny.freeze() or tiny


def encoder_of(model):
    return lambda ids, mask=None: model.text_encoder(torch.tensor([ids]), attention_mask=mask).last_hidden_state


@pytest.mark.parametrize(
    ("weights", "prompt"),
    [
        ("a1111", "a (red:1.0) cat"),
        ("a1111-no-norm", "a ([red]) cat"),
        ("compel", "a (red)1.0 cat"),
        ("compel", "a (red cat)"),
        (None, "a red cat"),
    ],
)
def test_weight_one_is_the_plain_prompt_bit_for_bit(model, weights, prompt):
    plain = model.encode_prompt(["a red cat", "the dog"])
    assert torch.equal(model.encode_prompt([prompt, "the dog"], weights=weights, long_prompts=True), plain)
    if weights == "a1111-no-norm":  # 1.1 / 1.1
        assert torch.equal(model.encode_prompt([prompt, "(the dog)"], weights=weights)[0], plain[0])


def test_a1111_multiplies_and_restores_the_mean(model):
    plain, w = model.encode_prompt("a red cat"), torch.ones(16, 1)
    w[2], w[3] = 1.4, 1 / 1.1  # behind the start and "a"
    scaled = plain * w
    assert torch.equal(model.encode_prompt("a (red:1.4) [cat]", weights="a1111-no-norm"), scaled)
    found = model.encode_prompt(["the dog", "a (red:1.4) [cat]"], weights="a1111")
    assert torch.equal(found[0], model.encode_prompt(["the dog", "a red cat"])[0])
    torch.testing.assert_close(found[1:], scaled * (plain.mean() / scaled.mean()))
    torch.testing.assert_close(found[1].mean(), plain.mean())
    assert not torch.allclose(found[1], scaled[0], rtol=1e-3)


def test_a1111_where_there_is_no_mean_to_restore(tiny):
    """Behind a LayerNorm without a bias the mean is but a rounding error, and the quotient of two of them noise."""
    tiny.freeze()
    with pytest.raises(
        ValueError, match=r"A1111's rule would scale .* times to restore its mean; take the weights 'a1111-no"
    ):
        tiny.encode_prompt("a (red:-1) (cat:-1) (dog:-10)", weights="a1111")


COMPEL = [
    "a red++ cat",
    "a (red)0.5 cat",
    "(a)0.3 red-- (cat dog)1.4",
    "(the dog)0 in a photo-",
    '"a red cat"1.2 of',
    "",
]
COMPEL += ["a (red)-- cat " + "of the " * 6 + "(dog)0.5"]  # cut off; of a part that is cut in two, compel masks the end


@pytest.mark.parametrize("prompt", COMPEL)
@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_compel_s_contexts(model, prompt):
    expected = Compel(model.tokenizer, model.text_encoder)(prompt)
    torch.testing.assert_close(model.encode_prompt(prompt, weights="compel"), expected)


def test_compel_by_hand(model):
    """w = 1/2: half way from the prompt to the prompt in which the word is masked, both with the word's own context
    half way to the empty prompt's."""
    encode, plain = encoder_of(model), model.tokenize("a red cat")[0].tolist()
    mask = torch.ones(1, 16).long()
    mask[0, 2] = 0
    z, without, empty = encode(plain), encode(plain, mask), model.encode_prompt("")
    for one in (z, without):
        one[0, 2] = (one[0, 2] + empty[0, 2]) / 2
    torch.testing.assert_close(model.encode_prompt("a (red)0.5 cat", weights="compel"), (z + without) / 2)


def test_break_joins_the_contexts_of_two_prompts(model):
    found = model.encode_prompt("a red cat BREAK the dog", weights="a1111")
    assert torch.equal(found, torch.cat([model.encode_prompt("a red cat"), model.encode_prompt("the dog")], dim=1))
    assert torch.equal(model.encode_prompt("a red cat BREAK", weights="a1111"), model.encode_prompt("a red cat"))


@pytest.mark.parametrize("clip_skip", [0, 1, 2, 3])
def test_clip_skip_equals_diffusers_byte_for_byte(model, pipeline, clip_skip):
    pipeline.text_encoder = model.text_encoder
    if not hasattr(model.text_encoder, "text_model"):  # diffusers 0.42 asks for a level that transformers has left out
        model.text_encoder.__dict__["text_model"] = model.text_encoder
    expected = pipeline.encode_prompt("a red cat", "cpu", 1, False, clip_skip=clip_skip)[0]
    found = model.encode_prompt("a red cat", clip_skip=clip_skip)
    assert torch.equal(found, expected)
    assert torch.equal(found, model.encode_prompt("a red cat")) == (clip_skip == 0)
    weighted = model.encode_prompt("a (red:2) cat", weights="a1111-no-norm", clip_skip=clip_skip)
    assert torch.equal(weighted[0, 2], 2 * expected[0, 2])


def test_a_learned_word_has_its_weight_at_all_of_its_vectors_and_takes_a_gradient(model):
    rows = torch.randn(3, 48, generator=seeded(), requires_grad=True)
    model.add_word("<toy>", rows)
    plain, w = model.encode_prompt("a <toy> cat"), torch.ones(16, 1)
    w[2:5] = 1.5
    assert torch.equal(model.encode_prompt("a (<toy>:1.5) cat", weights="a1111-no-norm"), plain * w)
    matrix = model.text_encoder.get_input_embeddings().weight.requires_grad_(True)
    for weights, prompt in (("a1111", "a (<toy>:1.5) cat"), ("compel", "a (<toy>)0.5 cat")):
        (gradient,) = torch.autograd.grad(model.encode_prompt(prompt, weights=weights)[0, :8].sum(), matrix)
        assert gradient[-3:].abs().sum(dim=1).min() > 0


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("a BREAK BREAK b", {"weights": "a1111"}, "'a BREAK BREAK b' has an empty chunk; leave out a BREAK, or write"),
        ("BREAK a", {"weights": "a1111"}, "has an empty chunk"),
        ("(())", {"weights": "a1111"}, "has an empty chunk"),
        ("()", {"weights": "compel"}, "has an empty chunk"),
        (
            "a",
            {"clip_skip": 4},
            r"clip_skip = 4; expected 0 to 3, the text encoder's layers \(A1111's number is one more",
        ),
        ("a", {"clip_skip": -1}, "clip_skip = -1"),
        ("a", {"clip_skip": 1.0}, "clip_skip = 1.0"),
        ("a", {"clip_skip": True}, "clip_skip = True"),
        ("a", {"weights": "sd"}, "unknown prompt weights 'sd'"),
        ([], {"weights": "a1111"}, "no prompt given"),
        ([None], {"weights": "compel"}, "the prompt None is not text"),
    ],
)
def test_bad_options(model, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        model.encode_prompt(prompt, **options)


def test_the_empty_prompt_stays_empty(model):
    for options in ({"weights": "a1111"}, {"weights": "compel"}, {"long_prompts": True}):
        assert torch.equal(model.encode_prompt("", **options), model.encode_prompt(""))


@pytest.mark.parametrize(
    ("prompt", "option"),
    [
        ("a (red:1.4) cat", "--prompt-weights a1111"),
        ("a red++ cat", "--prompt-weights compel"),
        ("a (red cat)0.5", "--prompt-weights compel"),
        ("a cat BREAK a dog", r"encode_prompt\(weights='a1111'\)"),
        ("a cat <lora:x:1>", "--lora-dir"),
        ("a " * 15, "--long-prompts"),
    ],
)
def test_what_is_not_read_names_the_option_that_reads_it(model, prompt, option):
    with pytest.warns(UserWarning, match=option):
        model.encode_prompt(prompt)
    with pytest.warns(UserWarning, match=option):
        model.encode_prompt(prompt, clip_skip=1)


@pytest.mark.parametrize("weights", ["a1111-no-norm", "compel"])
@pytest.mark.parametrize("word", ["<v1.5>", "<cat--1>", "(cat)x", "<a:b>", "cat++x", "[zz]", "<a,b>", "<x>"])
def test_a_learned_word_may_have_signs_in_it(model, weights, word):
    """It is read as a plainly named word of the same vectors is, with a weight or without."""
    vectors = torch.randn(2, 48, generator=seeded())
    for name in (word, "<plain>"):
        model.add_word(name, vectors)
    weighted = {"compel": "(a red {})1.3 cat", "a1111-no-norm": "(a red {}:1.3) cat"}[weights]
    for prompt in (weighted, "the {} cat"):
        found, expected = (model.encode_prompt(prompt.replace("{}", x), weights=weights) for x in (word, "<plain>"))
        torch.testing.assert_close(found, expected)
    assert torch.equal(found, model.encode_prompt("the <plain> cat"))


@pytest.mark.parametrize("options", [{}, {"weights": "compel"}, {"long_prompts": True}])
def test_what_is_no_list_of_prompts(model, options):
    for wrong in (None, 5):
        with pytest.raises(ValueError, match=f"prompts = {wrong}; expected a text, or a list of texts"):
            model.encode_prompt(wrong, **options)


def test_a_placeholder_that_the_model_lacks_is_told_with_weights_too(model):
    with pytest.warns(UserWarning, match="the prompt says '<x>', no word of this model"):
        model.encode_prompt("a (<x>:1.2)", weights="a1111")


def test_training_prompts_with_weights(model):
    """The loss of a batch is that of the weighted contexts; without the option it is `batch_loss` itself."""
    from minti.textual_inversion import Batch, batch_loss, diffusion_loss

    latents, noise = (torch.randn(2, 4, 8, 8, generator=seeded(i)) for i in (1, 2))
    prompts, timesteps = ["a (red:1.5) cat", "the dog"], torch.tensor([10, 500])
    batch = Batch(latents, noise, timesteps, prompts, [0, 1])
    config = minti.TextualInversionConfig(prompt_weights="a1111", templates=["a ({}:1.2)"])
    context = model.encode_prompt(prompts, weights="a1111")
    torch.testing.assert_close(config.loss(model, batch), diffusion_loss(model, latents, timesteps, context, noise))
    plain = minti.TextualInversionConfig(horizontal_flip=True)
    batch = batch._replace(prompts=["a red cat", "the dog"])
    assert torch.equal(plain.loss(model, batch), batch_loss(model, batch))
    for wrong in ({"prompt_weights": "x"}, {"prompt_weights": "a1111", "templates": ["a ({}:1.2.3)"]}):
        with pytest.raises(ValueError, match=r"unknown prompt weights 'x'|'1.2.3', which is no number"):
            minti.TextualInversionConfig(**wrong)
