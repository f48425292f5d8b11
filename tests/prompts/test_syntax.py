"""Prompt weights as text. AUTOMATIC1111's rule by the examples that its `parse_prompt_attention` documents
(`modules/prompt_parser.py` of its web UI), as products of 1.1; compel's by compel itself. (The former was also compared
with A1111's own parser, which is under another licence, on 50,000 random prompts: all equal.)"""

import random
import re

import pytest
from compel.prompt_parser import PromptParser

from minti.prompts.syntax import parse

UP, DOWN = 1.1, 1 / 1.1


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("plain text", [("plain text", 1)]),
        ("an (important) word", [("an ", 1), ("important", UP), (" word", 1)]),
        ("a [dull] one", [("a ", 1), ("dull", DOWN), (" one", 1)]),
        (r"\(literal\] \[x\) \\", [(r"(literal] [x) " + "\\", 1)]),
        ("(unnecessary)(brackets)", [("unnecessarybrackets", UP)]),
        (
            "a (((toy:1.3)) [on] a (hill:0.5), sun, (((sky))).)",
            [
                ("a ", 1),
                ("toy", 1.3 * UP * UP),
                (" ", UP),
                ("on", DOWN * UP),
                (" a ", UP),
                ("hill", 0.5 * UP),
                (", sun, ", UP),
                ("sky", UP**4),
                (".", UP),
            ],
        ),
        ("(red:-1) (red:+.5) ( red : 2 )", [("red", -1), (" ", 1), ("red", 0.5), (" ", 1), (" red ", 2)]),
        ("3:4, a: b", [("3:4, a: b", 1)]),
        ("", []),
    ],
)
@pytest.mark.parametrize("syntax", ["a1111", "a1111-no-norm"])
def test_a1111(prompt, parts, syntax, recwarn):
    (found,) = parse(prompt, syntax)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])
    assert not recwarn.list


def test_break_begins_a_chunk():
    assert parse("a red cat BREAK a dog", "a1111") == [[("a red cat", 1)], [("a dog", 1)]]
    assert parse("(a BREAK b:2) BREAK\n[c]", "a1111") == [[("a", 2)], [("b", 2), ("", 1)], [("", 1), ("c", DOWN)]]
    assert parse("a daybreak, BREAKS", "a1111") == [[("a daybreak, BREAKS", 1)]]
    assert parse("a BREAK b", "compel") == [[("a BREAK b", 1)]]


@pytest.mark.parametrize(
    ("prompt", "parts", "told"),
    [
        ("a (red", [("a ", 1), ("red", UP)], r"does not close a bracket with \); it holds to the end"),
        ("a [red", [("a ", 1), ("red", DOWN)], r"does not close a bracket with \]"),
        ("a red)", [("a red)", 1)], r"closes a bracket, \), that was not opened; it is read as text"),
        ("a :)", [("a :)", 1)], "was not opened"),
        ("(a: b:c)", [("a: b:c", UP)], "no weight in ':c.', which is read as text"),
        ("a [cat:dog:0.5]", [("a ", 1), ("cat:dog:0.5", DOWN)], r"\[cat:dog:0.5\], A1111's prompt editing"),
        ("a [cat|dog]", [("a ", 1), ("cat|dog", DOWN)], "prompt editing"),
    ],
)
def test_what_a1111_reads_as_text_is_told(prompt, parts, told):
    with pytest.warns(UserWarning, match=told) as messages:
        assert parse(prompt, "a1111") == [parts]
    assert len(messages) == 1


PIECES = [*("red", "a", " ball", " ", ", ", ",", ".", "(", ")", "+", "++", "-", "--", ")1.4", ")0.5", ")++", '"')]
PIECES += ['"a b"', "\\(", "\\)", "\\+", "-haired", "3", "3.5", "=", "'s", ":", "(a b)0.7", "(c d)--", "é"]


@pytest.mark.filterwarnings("ignore:the prompt .* bracket")
def test_compel_reads_the_same():
    """Random prompts: the same words with the same weights, but for the spaces between them."""
    chance, theirs, compared = random.Random(0), PromptParser(), 0
    for _ in range(200):
        prompt = "".join(chance.choices(PIECES, k=chance.randrange(10)))
        (expected,) = theirs.parse_conjunction(prompt).prompts or [None]
        parts = [(part.text, part.weight) for part in expected.children] if expected else []
        if any(abs(weight) > 10 for _, weight in parts):  # "33" behind a quotation
            continue
        (found,) = parse(prompt, "compel")
        plain = [[(re.sub(r"\s", "", text), weight) for text, weight in one if text.strip()] for one in (found, parts)]
        assert [text for text, _ in plain[0]] == [text for text, _ in plain[1]], prompt
        assert [weight for _, weight in plain[0]] == pytest.approx([weight for _, weight in plain[1]]), prompt
        compared += len(parts) > 1
    assert compared > 25


@pytest.mark.parametrize("prompt", ["a (red", "a red)", "(a (b)1.2"])
def test_what_compel_reads_as_text_is_told(prompt):
    with pytest.warns(UserWarning, match="has a bracket that does not match another; it is read as text, as in compel"):
        parse(prompt, "compel")


@pytest.mark.parametrize(
    ("prompt", "syntax", "message"),
    [
        ("a (red:1.4.2)", "a1111", r"'a \(red:1.4.2\)' has the weight '1.4.2', which is no number; write \(red:1.4\)"),
        ("a (red:1,4)", "a1111", "the weight '1,4', which is no number"),
        ("a (red:inf)", "a1111", "gives 'red' the weight inf; expected -10 to 10, usually 0.5 to 1.5"),
        ("a (red:nan)", "a1111", "gives 'red' the weight nan"),
        ("a (red:1e9)", "a1111", r"gives 'red' the weight 1e\+09"),
        ("a (red:" + "9" * 400 + ")", "a1111", "the weight inf"),
        ("(" * 30 + "red" + ")" * 30, "a1111", "the weight 17.4"),
        ("(" * 3000 + "red", "compel", "too many brackets inside each other"),
        ("( " * 3000 + "red" + " )" * 3000, "compel", "too many brackets inside each other"),
        ("(a red ball)14", "compel", "gives 'a red ball' the weight 14"),
        ("red" + "+" * 99999, "compel", "the weight 2.24"),
        (
            "a cat.swap(dog)",
            "compel",
            r"compel's operator '.*\.swap\(', which minti lacks; weights are written red\+\+",
        ),
        ('("a", "b").blend(1, 1)', "compel", r"operator '\.blend\('"),
        ("a", "invoke", "unknown prompt weights 'invoke'; expected one of a1111, a1111-no-norm, compel"),
        (None, "a1111", "the prompt None is not text"),
        ("\ud800", "compel", "half a character"),
    ],
)
@pytest.mark.filterwarnings("ignore:the prompt .* bracket")
def test_bad_weights_are_refused_in_one_line(prompt, syntax, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(prompt, syntax)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
