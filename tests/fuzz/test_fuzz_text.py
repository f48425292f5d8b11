"""Prompts, placeholders, initializers and templates of any characters."""

from __future__ import annotations

import pytest
import torch
from fuzzing import CHARACTERS, TEXT, inputs, refusal
from hypothesis import example, given
from hypothesis import strategies as st

import minti
from minti import text

WORDS = ("<one>", "<two>", "<two>s", "<two>_1", "<É>")
PROMPTS = st.one_of(
    TEXT,
    st.lists(st.one_of(st.sampled_from(("a", "cat", " ", "\t", "_1", *WORDS)), TEXT), max_size=30).map("".join),
    st.builds(
        lambda word, n: f"{word} " * n, st.sampled_from(("cat", "<two>", "zebra,", "🐈", "<")), st.integers(1, 5000)
    ),
)


@pytest.fixture(scope="module")
def speaker(fresh):
    """A model with words of one vector and of several, some the beginnings of others."""
    model = fresh()
    for i, word in enumerate(WORDS):
        rows = torch.randn(1 + i % 3, 48, generator=torch.Generator().manual_seed(i))
        tokens = text.placeholder_tokens(word, len(rows))
        if not set(tokens) & set(model.tokenizer.get_vocab()):
            model.add_word(word, rows)
    return model


@inputs(8)
@given(PROMPTS)
@example("\udc80")
@example("\ud83d\ude00 two halves that are no pair")
@example("\x00")
@example("")
@example("<two>" * 3000)
@example("<two>" + " " * 100_000)
@example("a\u0301 " * 5000)
def test_a_prompt_becomes_a_finite_context(speaker, prompt):
    with refusal("prompt"):
        context = speaker.encode_prompt(prompt)
        assert context.shape == (1, 16, 48)
        assert context.isfinite().all()
        expanded = text.token_ids(prompt, speaker.tokenizer, speaker.words)
        named = {ids[0]: ids for ids in speaker.words.values()}
        for i, token in enumerate(expanded):
            assert expanded[i : i + len(named.get(token, [token]))] == named.get(token, [token])


SYNTAX = ("(", ")", "[", "]", ":1.4)", ":", ":nan)", ":1e999)", "\\", "++", "-", ")0.5", '"', ".", ",", " BREAK ", "|")
WEIGHTED = st.lists(st.one_of(st.sampled_from(("a", "cat", " ", *WORDS, *SYNTAX)), TEXT), max_size=30).map("".join)


@inputs(8)
@given(WEIGHTED, st.sampled_from(("a1111-no-norm", "compel")), st.booleans(), st.integers(0, 3))
@example("(" * 5000 + ")" * 5000, "a1111-no-norm", True, 0)
@example("(a " * 300 + ")" * 300, "compel", True, 0)
@example("[" + "|" * 3000, "a1111-no-norm", False, 0)
@example("(a:" + " " * 3000 + "1", "a1111-no-norm", False, 0)
@example('"' * 3000, "compel", False, 1)
@pytest.mark.filterwarnings("ignore:the prompt")
def test_a_weighted_prompt_becomes_finite_contexts(speaker, prompt, weights, long_prompts, clip_skip):
    with refusal("prompt"), torch.no_grad():
        context = speaker.encode_prompt(prompt, weights=weights, long_prompts=long_prompts, clip_skip=clip_skip)
        assert context.shape[0] == 1
        assert context.shape[1] % 16 == 0
        assert context.isfinite().all()


def state(model):
    weight = model.text_encoder.get_input_embeddings().weight
    return len(model.tokenizer), weight.shape, weight.requires_grad


PLACEHOLDERS = st.one_of(
    TEXT,
    st.builds("<{}>".format, st.text(CHARACTERS, max_size=6)),
    st.sampled_from(
        ("<İ>", "<ﬁ>", "<ß>", "<Σς>", "_1", "{}", "<a>{}", "../../x", "<a/b>", "<|endoftext|>", "</w>", "Cat")
    ),
)


@inputs(8)
@given(PLACEHOLDERS, st.integers(1, 4), st.sampled_from(("new_rows", "restore")))
@example("<İ>", 2, "new_rows")
@example("\udc80", 1, "new_rows")
@example("<e\u0301>", 1, "restore")
def test_a_placeholder_is_learned_or_refused_without_a_trace(fresh, placeholder, vectors, row_update):
    model = fresh()
    before = state(model)
    with refusal(repr(placeholder), "placeholder"):
        config = minti.TextualInversionConfig(
            placeholder_token=placeholder,
            initializer_token="cat",
            num_vectors=vectors,
            row_update=row_update,
            templates=["a {} photo", "{}"],
        )
        wrapper = minti.TrainingWrapper(model, config)
        try:
            minti.prepare_for_textual_inversion(wrapper)
        except ValueError:
            assert state(model) == before
            raise
        assert set(model.words[placeholder]) <= set(model.tokenize([f"a {placeholder}"])[0].tolist())
        assert model.encode_prompt(f"the {placeholder}").isfinite().all()


TEMPLATES = st.one_of(
    TEXT,
    st.builds("{}{{}}{}".format, TEXT, TEXT),
    st.builds(lambda n: "a " * n + "{}", st.integers(0, 3000)),
)

PHRASES = st.lists(st.one_of(TEXT, st.sampled_from(["red", "cat", "a", "zebra"])), min_size=2).map(" ".join)


@inputs(6)
@given(st.one_of(TEXT, st.lists(TEMPLATES, max_size=4)), st.one_of(TEXT, PHRASES))
@example(["{}"], "\udc80")
@example(["a {}", "{} {}"], "red cat")
@example(["a {}", "{} {}"], "red cat " * 20)
@example(["\udc80 {}"], "cat")
@example(["{}\u0301"], "cat")
@example(["<conc{}ept>"], "cat")
@example(["{}{}"], "cat")
@example(["a " * 15 + "{}"], "cat")
@example(["{} {0} {x} {"], "cat")
def test_templates_and_initializers_are_used_or_refused_without_a_trace(fresh, templates, initializer):
    model = fresh()
    before = state(model)
    with refusal("template", "initializer", "prompt"):
        try:
            config = minti.TextualInversionConfig(templates=templates, initializer_token=initializer)
            wrapper = minti.TrainingWrapper(model, config)
            minti.prepare_for_textual_inversion(wrapper)
        except ValueError:
            assert state(model) == before
            raise
        for prompt in wrapper.prompts:
            assert model.words[config.placeholder_token][0] in model.tokenize([prompt])[0]
