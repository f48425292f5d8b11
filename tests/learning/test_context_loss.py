"""CoRe's context loss: the other words of a prompt stay what they are beside the class word."""

import pytest
import torch
from helpers import seeded, wrapper

import minti
from minti.personalization.context_loss import context_loss

PROMPTS = ["a {} in red", "photo of the {} of a cat"]


def added(model, vectors):
    model.add_word("<concept>", vectors)
    return model


def row(model, word):
    (i,) = model.tokenizer(word, add_special_tokens=False).input_ids
    return model.text_encoder.get_input_embeddings().weight[i].detach().clone()


def test_it_is_zero_where_the_word_is_the_class_word(tiny):
    added(tiny, row(tiny, "toy")[None])
    assert context_loss(tiny, "<concept>", "toy", PROMPTS).item() == 0.0
    assert context_loss(tiny, "<concept>", "dog", PROMPTS).item() > 0.0


def test_it_is_the_relative_error_at_the_words_behind(tiny):
    """By transformers' encoder, position by position, written out for one prompt: a, WORD, in, red."""
    added(tiny, torch.randn(2, 48, generator=seeded()))
    encode = lambda text: tiny.text_encoder(tiny.tokenize(text)).last_hidden_state[0]  # noqa: E731
    with_word, with_class = encode("a <concept> in red"), encode("a toy in red")
    pairs = [(4, 3), (5, 4)]  # of "in" and "red": behind the beginning, "a", and two vectors, or one token
    off = sum((with_word[i] - with_class[j]).square().sum() for i, j in pairs)
    expected = off / sum(with_class[j].square().sum() for _, j in pairs)
    torch.testing.assert_close(context_loss(tiny, "<concept>", "toy", PROMPTS[:1]), expected, rtol=1e-5, atol=0)


def test_only_tokens_that_both_prompts_share_are_compared(tiny):
    """ "{}g" is "dog" with this class word, and two tokens with the new one: of these nothing is compared."""
    added(tiny, torch.randn(2, 48, generator=seeded()))
    encode = lambda text: tiny.text_encoder(tiny.tokenize(text)).last_hidden_state[0]  # noqa: E731
    mine, theirs = encode("<concept>g in red")[4:6], encode("dog in red")[2:4]
    expected = (mine - theirs).square().sum() / theirs.square().sum()
    torch.testing.assert_close(context_loss(tiny, "<concept>", "do", ["{}g in red"]), expected)


@pytest.mark.parametrize("vectors", [1, 9])
def test_prompts_that_are_too_long_are_named(tiny, vectors):
    """By the new word's vectors, or by themselves; 14 tokens fit."""
    added(tiny, torch.randn(vectors, 48, generator=seeded()))
    prompt = "a {} in " + "red " * (4 if vectors == 9 else 12)
    with pytest.raises(ValueError, match=r"'a \{\} in red .* is too long for the 16 tokens .* \(context_prompts\)"):
        context_loss(tiny, "<concept>", "toy", [PROMPTS[0], prompt])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a {} in red", r"context_prompts = 'a \{\} in red'; expected a list of prompts"),
        ("object", "context_prompts = 'object'; expected a list of prompts"),
        (5, "context_prompts = 5; expected a list of prompts"),
        ([], "context_prompts is empty"),
        (["a cat"], "context_prompt 'a cat' has no {}"),
        ([b"{}"], "context_prompt b'{}' is not text"),
    ],
)
def test_what_are_no_prompts_of_it(prompts, message):
    with pytest.raises(ValueError, match=message):
        minti.TextualInversionConfig(context_weight=0.1, context_prompts=prompts)


def test_words_before_the_new_one_never_change(tiny):
    """CLIP's text encoder is causal; a prompt that ends with the word has nothing to keep."""
    added(tiny, torch.randn(1, 48, generator=seeded()))
    encode = lambda text: tiny.text_encoder(tiny.tokenize(text)).last_hidden_state[0]  # noqa: E731
    assert torch.equal(encode("photo of the <concept>")[:4], encode("photo of the toy")[:4])
    with pytest.raises(ValueError, match="words behind"):
        context_loss(tiny, "<concept>", "toy", ["photo of the {}"])


def test_learning_with_it_alone_takes_the_word_to_the_class_word_s_company(tiny):
    """From random vectors, with a weight beside which the images hardly count, it falls."""
    options = {
        "context_weight": 1e3,
        "context_prompts": PROMPTS,
        "initializer_token": "toy",
        "steps": 60,
        "learning_rate": 0.05,
    }
    w = wrapper(tiny, placeholder_token="<other>", **options)
    w.initial_vectors = lambda: torch.randn(1, 48, generator=seeded())
    trainer = minti.textual_inversion(w, torch.rand(2, 3, 16, 16, generator=seeded()))
    far = context_loss(tiny, "<other>", "toy", PROMPTS).item()
    for _ in trainer:
        pass
    assert context_loss(tiny, "<other>", "toy", PROMPTS).item() < 0.5 * far


@pytest.mark.parametrize("start", [None, torch.ones(1, 48), "word.safetensors"])
def test_it_needs_a_class_word(start):
    with pytest.raises(ValueError, match="has to be a word or a phrase"):
        minti.TextualInversionConfig(context_weight=0.01, initializer_token=start)


def test_it_is_added_to_the_diffusion_loss(tiny_folder):
    """The first step's loss of a run with it, less that without it, is its weight times it."""
    losses = []
    for weight in (0.0, 0.5):
        model = minti.StableDiffusion.from_pretrained(tiny_folder)
        w = wrapper(model, context_weight=weight, context_prompts=PROMPTS, initializer_token="dog", steps=1)
        w.initial_vectors = lambda: torch.ones(1, 48)
        losses.append(next(minti.textual_inversion(w, torch.rand(2, 3, 16, 16, generator=seeded()))).loss)
    model = added(minti.StableDiffusion.from_pretrained(tiny_folder), torch.ones(1, 48))
    expected = 0.5 * context_loss(model, "<concept>", "dog", PROMPTS).item()
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-4)
