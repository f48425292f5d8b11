"""Prompt weights as people write them: a prompt to its parts, (text, weight), by the syntax of another program.

AUTOMATIC1111: `(red)` is red 1.1 times, `[red]` red / 1.1, `(red:1.4)` red 1.4 times; nested weights multiply, `\\(` is
a bracket, and BREAK begins another chunk of tokens, inside brackets too (where A1111 reads it as a word).
compel: `red++` is red 1.1² times, `red--` 0.9² times, `(a red ball)1.4` and `"a red ball"1.4` 1.4 times."""

import re
import warnings
from itertools import groupby, pairwise
from operator import itemgetter

from minti.runs.messages import check_choice, short_repr
from minti.runs.word_checks import check_text

Part = tuple[str, float]
MOST = 10  # weights beyond make noise: compel's page says 1.6
A1111 = re.compile(r"\\[()\[\]\\]?|:\s*(?P<number>(?!BREAK\b)[^\s:()\[\]\\]*)\s*\)|[()\[\]:]|[^\\()\[\]:]+")
NUMBER = re.compile(r"[-+]?(?:[\d.,]+(?:e[-+]?\d*)?|inf(?:inity)?|nan)", re.IGNORECASE)
BREAK = re.compile(r"\s*\bBREAK\b\s*")
PROMPT_EDITING = re.compile(r"(?<!\\)\[[^\[\]]*(?::\s*[-+]?[\d.]+\s*|\|[^\[\]]*)\]")
WORD = re.compile(r'(?:\\[()",.+\-=]|[-+](?![\s()",.+\-=]|\Z)|-?\d+|[^\s()",.+\-=])+')
SIGNS, FACTOR, SOLID = re.compile(r"\++|-+"), re.compile(r"\d+\.\d*|\.?\d+"), re.compile(r"\S+")
OPERATORS = re.compile(r'[\w)"]\.(?:swap|blend|and|add|attend)\(|\b(?:with|use)Lora\(')


def parse(prompt: str, syntax: str) -> list[list[Part]]:
    """The chunks between BREAKs, each its parts. `syntax`: a name of `SYNTAXES`. Warns of brackets that do not match.
    Raises ValueError: a weight is no number, not finite or beyond 10; an operator of compel that minti lacks."""
    check_choice("prompt weights", syntax, tuple(SYNTAXES))
    check_text(prompt, "the prompt")
    read, between = SYNTAXES[syntax]
    chunks = []
    for parts in read(prompt):
        chunks.append([])
        for weight, texts in groupby(parts, key=itemgetter(1)):
            chunks[-1].append((between.join(text for text, _ in texts), weight))
            if not abs(weight) <= MOST:
                given = f"the prompt {short_repr(prompt)} gives {short_repr(chunks[-1][-1][0])} the weight {weight:g}"
                raise ValueError(f"{given}; expected -{MOST} to {MOST}, usually 0.5 to 1.5")
    return chunks


def tell(prompt: str, what: str) -> None:
    """Warns of what a prompt does not mean as it is written."""
    warnings.warn(f"the prompt {short_repr(prompt)} {what}", stacklevel=3)


def number(text: str, prompt: str) -> float | None:
    """The weight behind a colon; None where it is text. Raises ValueError: meant as a number, it is none."""
    if not NUMBER.fullmatch(text):
        return None
    try:
        return float(text)
    except ValueError:
        what = f"the prompt {short_repr(prompt)} has the weight {short_repr(text)}, which is no number"
        raise ValueError(f"{what}; write (red:1.4), or \\( and \\) for brackets that are text") from None


def parse_a1111(prompt: str) -> list[list[Part]]:
    """AUTOMATIC1111's syntax. A bracket that does not close holds to the end; one that was not opened is text."""
    if editing := PROMPT_EDITING.search(prompt):
        tell(prompt, f"holds {editing[0]}, A1111's prompt editing, which minti lacks; it is read as text")
    parts: list[list] = []  # [text, weight]; a BREAK has no text
    opened: dict[str, list[int]] = {")": [], "]": []}  # where the brackets began that are to be closed so

    def multiply(begin: int, factor: float) -> None:
        for part in parts[begin:]:
            part[1] *= factor

    for match in A1111.finditer(prompt):
        token, last = match[0], match[0][-1]
        if token[0] == "\\":
            parts.append([token[1:], 1.0])
        elif token in ("(", "["):
            opened[")" if token == "(" else "]"].append(len(parts))
        elif opened.get(last):
            factor = None if match["number"] is None else number(match["number"], prompt)
            if factor is None and len(token) > 1:
                tell(prompt, f"has no weight in {short_repr(token)}, which is read as text")
                parts.append([token[:-1], 1.0])
            multiply(opened[last].pop(), {")": 1.1, "]": 1 / 1.1}[last] if factor is None else factor)
        else:
            if last in opened:
                tell(prompt, f"closes a bracket, {last}, that was not opened; it is read as text")
            first, *others = BREAK.split(token)
            parts.append([first, 1.0])
            parts += [[text, 1.0] for other in others for text in (None, other)]
    for bracket, begins in opened.items():
        for begin in begins:
            tell(prompt, f"does not close a bracket with {bracket}; it holds to the end, as in A1111")
            multiply(begin, {")": 1.1, "]": 1 / 1.1}[bracket])
    breaks = [-1, *(i for i, (text, _) in enumerate(parts) if text is None), len(parts)]
    return [parts[before + 1 : after] for before, after in pairwise(breaks)]


def parse_compel(prompt: str) -> list[list[Part]]:
    """compel's syntax, its weights alone; brackets that do not match are text, as there."""
    if operator := OPERATORS.search(prompt):
        found = f"the prompt {short_repr(prompt)} has compel's operator {operator[0].lstrip(')')!r}, which minti lacks"
        raise ValueError(f"{found}; weights are written red++, red-- and (red)1.4")
    text, at, parts = re.sub(r",(\S)", r", \1", prompt), 0, []
    try:
        while match := SOLID.search(text, at):
            at = match.start()
            found = weighted(text, at)
            if found is None:
                if re.search(r"(?<!\\)[()]", match[0]):
                    tell(prompt, "has a bracket that does not match another; it is read as text, as in compel")
                found = [(match[0], 1.0)], match.end()
            parts, at = parts + found[0], found[1]
    except RecursionError:
        raise ValueError(f"the prompt {short_repr(prompt)} has too many brackets inside each other") from None
    return [[(re.sub(r'\\([()"])', r"\1", piece), weight) for piece, weight in parts]]


def weighted(text: str, at: int, inside: bool = False) -> tuple[list[Part], int] | None:
    """What stands at `at` with the weight behind it, and where it ends: brackets, a quotation, or a word, which has
    signs unless it is `inside` of brackets. None: nothing of the kind."""
    if group := text[at] in '("':
        found = bracketed(text, at)
    else:
        found = ([(word[0], 1.0)], word.end()) if (word := WORD.match(text, at)) else None
    if found is None:
        return None
    parts, at = found
    if signs := SIGNS.match(text, at):
        factor, at = (1.1 if text[at] == "+" else 0.9) ** min(len(signs[0]), 999), signs.end()
    elif group and (given := FACTOR.match(text, at)):
        factor, at = float(given[0]), given.end()
    elif group or inside:
        return found
    else:
        return None
    return [(piece, weight * factor) for piece, weight in parts], at


def bracketed(text: str, at: int) -> tuple[list[Part], int] | None:
    """The parts in brackets, or in quotation marks, that open at `at`, and where they end; None: they do not."""
    closing, at, parts = {"(": ")", '"': '"'}[text[at]], at + 1, []
    while match := SOLID.search(text, at):
        at = match.start()
        if text[at] == closing:
            return parts, at + 1
        found = ([(text[at], 1.0)], at + 1) if text[at] in ",." else weighted(text, at, inside=True)
        if found is None:
            return None
        parts, at = parts + found[0], found[1]
    return None


# What reads each, and what stands between parts of one weight when they are joined.
SYNTAXES = {"a1111": (parse_a1111, ""), "a1111-no-norm": (parse_a1111, ""), "compel": (parse_compel, " ")}
