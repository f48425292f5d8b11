"""The playground: by gradio's client in every run, and in a real browser where playwright and Chromium are."""

import pytest

pytest.importorskip("gradio", reason="the playground needs gradio")

from support.serving import serve
from support.session import Session, drawn_line

import re
import shutil
from copy import deepcopy
from threading import Lock

import httpx
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import minti
from minti.words.files import read_embeddings
from playground import BUNDLED, OWN, playground

CONCEPT = "red-diamond-pink-belt"
DRAW = ("", "ddim", 2, 5, 0, "", 0, "", 30, None, 1, None, 1)  # what follows the prompt
TOY = ("circle", "stripe", "red", "white")


@pytest.fixture(scope="module")
def address():
    page = playground(minti.StableDiffusion.from_pretrained(), minti.TOYBOX)
    yield serve(page, prevent_thread_lock=True, quiet=True)
    page.close()


@pytest.fixture
def visitor(address):
    return Client(address, verbose=False)


def learn(visitor, word="<concept>", steps=2, source=BUNDLED, files=None):
    return visitor.predict(source, CONCEPT, files, word, "toy", steps, *TOY, api_name="/learn")


def test_a_word_is_learned_drawn_and_saved(visitor):
    curve, picture, _, said = learn(visitor, "<mine>")
    assert "learned `<mine>`: 2 steps" in said
    assert picture
    assert curve
    latents, clean, *_, maps, timestep = visitor.predict("a photo of a <mine>", *DRAW, api_name="/draw")
    assert latents
    assert clean
    assert [each["caption"] for each in maps] == ["a", "photo", "of", "<mine>"]
    assert timestep == "t = 1"
    assert list(read_embeddings(visitor.predict(api_name="/save")["value"])) == ["<mine>"]


def test_two_are_drawn_together(visitor):
    two = ("a red star next to a toy", "on the left", 5, "a toy next to a blue heart", "on the right", 5)
    assert visitor.predict(*two, "a photo", 2, 0, api_name="/together")[-1] == "t = 1"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one: one.predict("  ", *DRAW, api_name="/draw"), "the prompt is empty"),
        (lambda one: one.predict(api_name="/go_on"), "nothing has been learned yet"),
        (lambda one: one.predict(api_name="/save"), "no word to save"),
        (lambda one: learn(one, "star"), "is in the vocabulary already"),
        (lambda one: learn(one, source=OWN), "no picture to learn from"),
        (lambda one: learn(one, source=OWN, files=[handle_file(__file__)]), "not a picture that can be read"),
    ],
)
def test_what_is_wrong_is_a_sentence(visitor, call, message):
    with pytest.raises(AppError, match=message) as caught:
        call(visitor)
    assert "\n" not in str(caught.value)


def test_only_this_machine_is_asked(address):
    """It listens to this machine alone, and the page may fetch from nowhere else."""
    answer = httpx.get(address)
    assert address.startswith("http://127.0.0.1:")
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert not re.search(r'(?:src|href)="https?://(?!127)', answer.text.split("</head>")[0])


# --- without a page ---------------------------------------------------------------------------------------------------


@pytest.fixture
def session(tiny, tiny_folder):
    return Session(tiny, tiny_folder, Lock())


def test_a_second_run_ends_the_first_and_stop_too(session):
    first, second = session.taking(iter(range(9))), session.taking(iter(range(9)))
    assert next(first) == 0
    assert next(second) == 0
    assert list(first) == []
    assert next(second) == 1
    session.stop()
    assert list(second) == []


def test_visitors_share_networks_and_no_words(session):
    other = deepcopy(session)
    assert other.model.unet is session.model.unet
    session.model.add_word("<mine>", torch.zeros(1, 48))
    assert "<mine>" not in other.model.words
    assert "<mine>" not in other.model.tokenizer.get_vocab()
    assert len(other.model.text_encoder.get_input_embeddings().weight) == other.model.tokenizer.vocab_size


def test_what_is_seen_is_what_the_library_draws(session):
    options = {"num_inference_steps": 3, "sampler": "ddpm"}
    *_, (_, shown, _) = session.draw([("a red cat", 3.0), ("a red cat", 1.0)], 7, **options)
    for scale, (latents, _) in zip((3.0, 1.0), shown):
        generator = torch.Generator().manual_seed(7)
        noise = torch.randn(session.model.latents_shape(1), generator=torch.Generator().manual_seed(7))
        drawn = minti.sample(
            session.model, "a red cat", guidance_scale=scale, generator=generator, latents=noise, **options
        )
        assert drawn[0].tobytes() == latents.resize(drawn[0].size, 0).tobytes()


def test_an_outline_is_white_where_a_line_was_drawn():
    layer = Image.new("RGBA", (256, 256))
    assert drawn_line({"layers": [layer]}, 64) is None
    layer.paste((0, 0, 0, 255), (0, 0, 128, 256))
    hint = drawn_line({"layers": [layer]}, 64)
    assert hint.shape == (1, 3, 64, 64)
    assert hint[..., :31].min() == 1
    assert hint[..., 33:].max() == 0


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "telephone"])
def test_in_a_browser(address, width):
    """Draws, learns twenty steps, uses the word; nothing is wider than the window, and nobody else is asked."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 850})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_role("button", name="Draw", exact=True).click()
        page.get_by_text("t = 1", exact=True).wait_for()
        page.get_by_role("tab", name="Learn").click()
        page.get_by_label("Steps (0").fill("20")
        page.get_by_role("button", name="Learn", exact=True).click()
        page.get_by_text(re.compile("^learned .*20 steps")).wait_for(timeout=60000)
        page.get_by_role("tab", name="Draw").click()
        page.get_by_label("Prompt", exact=True).fill("a sketch of a <concept>")
        page.get_by_role("button", name="Draw", exact=True).click()
        page.get_by_text("<concept>", exact=True).first.wait_for()  # beneath the word's map
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert [url for url in asked if url.startswith("http") and not url.startswith(address)] == []
        browser.close()
