"""Prompts of several chunks: against transformers' text encoder, diffusers' pipeline, and A1111's rule for where chunks
end, by hand (and compared with its `tokenize_line` on 20,000 random lists of tokens: all equal)."""

import warnings

import pytest
import torch
from compel import Compel
from compel.embeddings_provider import SplitLongTextMode
from helpers import seeded

import minti
from minti.prompts.long_prompts import padded, split

COMMA, WORDS = 7, {"<a>": [100, 101, 102], "<b>": [200]}
A = [100, 101, 102]


@pytest.mark.parametrize(
    ("ids", "starts"),
    [
        ([], [0]),
        ([1] * 10, [0]),
        ([1] * 11, [0, 10]),
        ([1] * 25, [0, 10, 20]),
        ([1] * 4 + [COMMA] + [1] * 8, [0, 5]),  # behind the comma
        ([1] * 9 + [COMMA] + [1] * 3, [0, 10]),
        ([1] * 10 + [COMMA] + [1] * 3, [0, 10]),  # a comma that does not fit begins the next chunk
        ([1] * 4 + [COMMA] + [1] * 5, [0]),  # nothing behind the end
        ([1] * 8 + A, [0, 8]),  # a word of three vectors stays whole
        ([1] * 8 + [102, 1, 1], [0, 10]),  # these vectors are not in its order
        ([*A * 4], [0, 9]),
        ([1] * 7 + A + [1], [0, 10]),
        ([1, COMMA] + [1] * 5 + A + [1], [0, 2]),
        ([1, COMMA] + [1] * 6 + A, [0, 8]),  # as in A1111: not full, so the comma does not count
        ([1] * 8 + [200, 200, 200], [0, 10]),
    ],
)
def test_where_chunks_begin(ids, starts):
    assert split(ids, 10, COMMA, WORDS) == starts


def test_a_comma_counts_among_the_last_twenty():
    for before, starts in ((9, [0, 30]), (10, [0, 11])):  # the last 21 and the last 20 of a full chunk begin with it
        assert split([1] * before + [COMMA] + [1] * (30 - before), 30, COMMA, {}) == starts


def test_a_word_longer_than_a_chunk_is_torn():
    starts = split(list(range(20)), 8, None, {"<long>": list(range(20))})
    assert starts[0] == 0
    assert all(0 < end - start <= 8 for start, end in zip(starts, [*starts[1:], 20]))


def test_two_chunks_are_two_encoded_prompts_joined(tiny):
    """Token by token from transformers' tokenizer and encoder: each chunk with its own start and end."""
    prompt = "a red cat " * 5 + "of the dog"
    ids = tiny.tokenizer(prompt, add_special_tokens=False).input_ids
    begin, end = tiny.tokenizer.bos_token_id, tiny.tokenizer.eos_token_id
    first, second = [begin, *ids[:14], end], [begin, *ids[14:], *[end] * (15 - len(ids[14:]))]
    expected = [tiny.text_encoder(torch.tensor([one])).last_hidden_state for one in (first, second)]
    found = tiny.encode_prompt(prompt, long_prompts=True)
    assert torch.equal(found, torch.cat(expected, dim=1))
    theirs = Compel(
        tiny.tokenizer, tiny.text_encoder, truncate_long_prompts=False, split_long_text_mode=SplitLongTextMode.BRUTAL
    )
    torch.testing.assert_close(found, theirs(prompt))
    weighted = "a red++ cat " + "a red cat " * 4 + "(of the)0.5 dog"
    torch.testing.assert_close(tiny.encode_prompt(weighted, weights="compel", long_prompts=True), theirs(weighted))


def test_down_weighted_words_of_two_chunks(tiny):
    """compel blends the whole long prompt, so that a word of one chunk counts in the other."""
    theirs = Compel(
        tiny.tokenizer, tiny.text_encoder, truncate_long_prompts=False, split_long_text_mode=SplitLongTextMode.BRUTAL
    )
    prompt = "(a red)0.6 cat " + "a red cat " * 4 + "(of the)0.5 dog"
    torch.testing.assert_close(tiny.encode_prompt(prompt, weights="compel", long_prompts=True), theirs(prompt))


def test_a_short_prompt_beside_a_long_one_gets_an_empty_chunk(tiny):
    long, short = "a red cat " * 6, "the dog"
    both = tiny.encode_prompt([long, short], long_prompts=True)
    assert both.shape == (2, 32, 48)
    expected = torch.cat([tiny.encode_prompt(short), tiny.encode_prompt("")], dim=1)
    torch.testing.assert_close(both[1:], expected)
    assert torch.equal(padded(tiny.encode_prompt(short), 32, tiny.encode_prompt("")), expected)
    assert torch.equal(padded(both, 32, tiny.encode_prompt("")), both)
    for length in (16, 40):
        with pytest.raises(ValueError, match=f"a context of 32 tokens cannot be padded to {length} with chunks"):
            padded(both, length, tiny.encode_prompt(""))


def test_learned_words_are_not_torn(tiny):
    tiny.add_word("<toy>", torch.randn(3, 48, generator=seeded()))
    found = tiny.encode_prompt("a " * 13 + "<toy>", long_prompts=True)
    expected = torch.cat([tiny.encode_prompt("a " * 13), tiny.encode_prompt("<toy>")], dim=1)
    assert torch.equal(found, expected)


def test_without_asking_a_prompt_is_cut(tiny):
    prompt = "a " * 14 + "(toy dog:1.2)"
    for options in ({"weights": "a1111"}, {"weights": "compel"}, {"clip_skip": 0}):
        with pytest.warns(UserWarning, match=r"longer than 14 tokens; cut off: '.*toy dog.*' \(long_prompts=True"):
            assert torch.equal(tiny.encode_prompt(prompt, **options), tiny.encode_prompt("a " * 14))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiny.encode_prompt("a " * 14 + "toy dog", long_prompts=True).shape[1] == 32


def test_images_equal_the_pipeline_with_the_same_contexts(tiny, pipeline):
    prompt, negative = (tiny.encode_prompt(text, long_prompts=True).detach() for text in ("a red cat " * 6, "the dog"))
    negative = padded(negative, 32, tiny.encode_prompt("")).detach()
    options = {"num_inference_steps": 2, "guidance_scale": 3.0}
    expected = pipeline(
        prompt_embeds=prompt, negative_prompt_embeds=negative, generator=seeded(), output_type="latent", **options
    ).images
    found = minti.sample(tiny, prompt, negative, generator=seeded(), output="latents", sampler="ddpm", **options)
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"negative prompts of 16 tokens for prompts of 32; .*long_prompts.padded"):
        minti.sample(tiny, prompt, "", **options)
