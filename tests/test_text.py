"""Tokenizing prompts: placeholder tokens, their expansion, and the encoded prompts."""

import logging
import re
import warnings

import pytest
import torch

from minti import text


def add(model, placeholder, vectors=1):
    width = model.text_encoder.get_input_embeddings().embedding_dim
    rows = torch.randn(vectors, width, generator=torch.Generator().manual_seed(vectors))
    return model.add_word(placeholder, rows), rows


@pytest.mark.parametrize("prompt", ["", "a photo of a red cat", "zebra, 3 dogs!"])
def test_context_equals_the_pipeline(tiny, pipeline, prompt):
    expected = pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0]
    assert torch.equal(tiny.encode_prompt(prompt), expected)


def test_new_vectors_stand_at_the_end_and_the_old_ones_are_untouched(tiny):
    before = tiny.text_encoder.get_input_embeddings().weight.clone()
    context = tiny.encode_prompt("a red cat")
    ids, rows = add(tiny, "<thing>", 3)
    weight = tiny.text_encoder.get_input_embeddings().weight
    assert ids == list(range(len(before), len(before) + 3))
    assert torch.equal(weight[ids], rows)
    assert torch.equal(weight[: len(before)], before)
    assert torch.equal(tiny.encode_prompt("a red cat"), context)


def test_expansion_equals_diffusers(tiny, pipeline):
    for vectors, token in ((1, "<one>"), (3, "<three>")):
        add(tiny, token, vectors)
    for prompt in ("a <three> and a <one>", "<three>", "<one>, <three>.", "nothing new"):
        converted = pipeline._maybe_convert_prompt(prompt, tiny.tokenizer)
        expected = tiny.tokenizer(converted, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
        assert torch.equal(tiny.tokenize(prompt), expected.input_ids)


@pytest.mark.parametrize(
    "prompt", ["a <CAT> here", "a <Cat> <Cat>_1 <Cat>_2 here", "a <cat><cat>_1 here", "a <cat> <CAT>_1 here"]
)
def test_what_stands_there_already_is_not_added_again_and_case_does_not_count(tiny, prompt):
    ids, _ = add(tiny, "<Cat>", 3)
    a, here = text.single_token_id(tiny.tokenizer, "a"), text.token_ids("here", tiny.tokenizer, {})
    assert text.token_ids(prompt, tiny.tokenizer, tiny.words) == [a, *ids, *here]


def test_a_word_may_stand_twice_and_in_part(tiny):
    (c, c1, c2), _ = add(tiny, "<cat>", 3)
    for prompt, expected in (
        ("<cat> <cat>", [c, c1, c2] * 2),
        ("<cat> <cat>_1 <cat>", [c, c1, c2] * 2),
        ("<cat>_1 <cat>_2", [c1, c2]),
        ("<cat> <cat>_2", [c, c1, c2, c2]),
    ):
        assert text.token_ids(prompt, tiny.tokenizer, tiny.words) == expected


@pytest.mark.parametrize(
    ("placeholder", "message"),
    [
        ("cat", r"in the vocabulary already \(case does not count\); choose"),
        ("CAT", "in the vocabulary already as 'cat'"),
        ("<thing>", r"in the vocabulary already \(case"),
        ("<THING>", "already as '<thing>'"),
        ("two words", "one word without spaces"),
        ("", "one word without spaces"),
    ],
)
def test_placeholders_that_cannot_be_new(tiny, placeholder, message):
    add(tiny, "<thing>")
    size = len(tiny.tokenizer)
    with pytest.raises(ValueError, match=message):
        add(tiny, placeholder)
    assert len(tiny.tokenizer) == size


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("zyx", "z + y + x</w>"),  # the small tokenizer knows letters and a few words
        ("red cat", "red</w> + cat</w>"),
        ("", "nothing"),
        ("<|endoftext|>", "<|endoftext|>"),
        ("z" * 300, "z + " * 25 + " ..."),
    ],
)
def test_initializers_that_are_no_single_token(tiny, caplog, word, pieces):
    """The message says what becomes of the word, and is the only one: not also that it is too long for a prompt."""
    caplog.set_level("WARNING", logger="transformers")
    logging.getLogger("transformers").addHandler(caplog.handler)
    with pytest.raises(ValueError, match=rf"is not a single token .* \(it becomes {re.escape(pieces)}\)"):
        text.single_token_id(tiny.tokenizer, word)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records
    assert tiny.tokenizer.decode(text.single_token_id(tiny.tokenizer, "cat")).strip() == "cat"


def test_a_long_prompt_warns_and_says_what_was_cut(tiny):
    with pytest.warns(UserWarning, match=r"longer than 14 tokens; cut off: 'toy dog'"):
        got = tiny.encode_prompt("a " * 14 + "toy dog")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(got, tiny.encode_prompt("a " * 14))
