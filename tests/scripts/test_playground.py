"""The playground: by gradio's client in every run, and in a real browser where playwright and Chromium are."""

import pytest

pytest.importorskip("gradio", reason="the playground needs gradio")

from support.serving import serve
from support.session import Session, drawn_line

import re
import shutil
from base64 import b64decode
from copy import deepcopy
from io import BytesIO
from threading import Lock

import httpx
import numpy as np
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import minti
from minti.embeddings import read_embeddings
from minti.formats.image_files import open_folder
from noisy_judge import by_noisy_judge, load_noisy_judge
from playground import BUNDLED, CONCEPTS, OWN, playground

CONCEPT = "red-diamond-pink-belt"
DRAW = ("", "ddim", 2, 5, 0, "", 0, "", 30, None, 1, None, 1)  # what follows the prompt
TOY = ("circle", "stripe", "red", "white")


def served(model, folder):
    page = playground(model, folder)
    yield serve(page, prevent_thread_lock=True, quiet=True)
    page.close()


@pytest.fixture(scope="module")
def small(opened, tiny_folder):
    """A page on the random model, which has neither a ControlNet nor a judge."""
    yield from served(opened, tiny_folder)


@pytest.fixture(scope="module")
def toybox():
    return minti.StableDiffusion.from_pretrained()


@pytest.fixture(scope="module")
def address(toybox):
    yield from served(toybox, minti.TOYBOX)


@pytest.fixture
def visitor(small):
    return Client(small, verbose=False)


def learn(visitor, word="<concept>", steps=2, source=BUNDLED, files=None):
    return visitor.predict(source, CONCEPT, files, word, "toy", steps, *TOY, api_name="/learn")


def test_a_word_is_learned_drawn_and_saved(visitor):
    curve, picture, _, said = learn(visitor, "<mine>")
    assert "learned `<mine>`: 2 steps" in said
    assert picture
    svg = b64decode(re.search('base64,([^"]+)', curve)[1]).decode()
    assert all(name in svg for name in ("<svg", "the word", "before", "the empty prompt"))
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
        (lambda one: learn(one, "cat"), "'cat' is in the vocabulary already .* such as '&lt;my-concept&gt;'"),
        (lambda one: learn(one, source=OWN), "no image to learn from"),
        (lambda one: learn(one, source=OWN, files=[handle_file(__file__)]), "not an image that can be read"),
    ],
)
def test_what_is_wrong_is_a_sentence(visitor, call, message):
    with pytest.raises(AppError, match=message) as caught:
        call(visitor)
    assert "\n" not in str(caught.value)


def test_a_lora_that_does_not_fit_is_a_sentence(visitor, toybox, tmp_path):
    minti.save_lora(minti.LoRA(toybox), tmp_path / "of_the_toybox.safetensors")
    (tmp_path / "prose.safetensors").write_text("no numbers", encoding="utf-8")
    for name, message in (
        ("of_the_toybox", "was learned on another model"),
        ("prose", "is not a whole safetensors file"),
    ):
        with pytest.raises(AppError, match=f"^{name}.safetensors.*({message})") as caught:
            visitor.predict("a cat", *DRAW[:-2], handle_file(tmp_path / f"{name}.safetensors"), 1, api_name="/draw")
        assert "\n" not in str(caught.value)


def test_only_this_machine_is_asked(small):
    """It listens to this machine alone, and the page may fetch from nowhere else."""
    answer = httpx.get(small)
    assert small.startswith("http://127.0.0.1:")
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert not re.search(r'(?:src|href)="https?://(?!127)', answer.text.split("</head>")[0])


def alike(a, b):
    """But for the rounding of a decoder that has two pictures to decode at once."""
    return np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max() <= 1


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


def test_classifier_guidance_acts_on_the_first_image_alone(toybox):
    session, options = Session(toybox, minti.TOYBOX, Lock()), {"num_inference_steps": 2, "sampler": "ddim"}
    prompt, noise = "a photo of a toy", torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(7))
    steered = session.steered("green", 30)
    *_, (_, shown, _) = session.draw([(prompt, None)] * 2, 7, steered=steered, **options)
    guidance = by_noisy_judge(toybox, load_noisy_judge(minti.TOYBOX), "green", 30, 600)
    drawn = [minti.sample(toybox, prompt, latents=noise, **also, **options)[0] for also in ({"guidance": guidance}, {})]
    assert not alike(*drawn)
    for (latents, _), picture in zip(shown, drawn):
        assert alike(latents.resize(picture.size, 0), picture)


def test_a_run_that_ends_before_its_first_step_says_nothing(session, monkeypatch):
    monkeypatch.setattr(session, "taking", lambda steps: iter(()))
    assert list(session.learn([Image.new("RGB", (64, 64))], "<mine>", "toy", 2)) == []


def test_an_outline_is_white_where_a_line_was_drawn():
    layer = Image.new("RGBA", (256, 256))
    assert drawn_line({"layers": [layer]}, 64) is None
    layer.paste((0, 0, 0, 255), (0, 0, 128, 256))
    hint = drawn_line({"layers": [layer]}, 64)
    assert hint.shape == (1, 3, 64, 64)
    assert hint[..., :31].min() == 1
    assert hint[..., 33:].max() == 0


# --- in a browser -----------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(params=[1200, 390], ids=["desktop", "telephone"])
def page(browser, address, request):
    """The page at two widths; it stays within the window, and asks nobody else."""
    page = browser.new_page(viewport={"width": request.param, "height": 850})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= request.param
    assert [url for url in asked if url.startswith(("http", "ws")) and not url.startswith(address)] == []


@pytest.fixture
def wide(browser, address):
    page = browser.new_page(viewport={"width": 1200, "height": 850})
    page.goto(address)
    return page


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def drawn(page, label="Latents"):
    """The picture beneath a label, once the run has come to its last step."""
    page.get_by_text("t = 1", exact=True).wait_for()
    page.wait_for_timeout(500)  # the picture may follow its timestep
    source = page.locator(".block", has=page.get_by_text(label, exact=True)).locator("img").last.get_attribute("src")
    return Image.open(BytesIO(httpx.get(source).content)).convert("RGB").resize((64, 64), 0)


def draw_two_steps(page):
    page.get_by_label("Steps", exact=True).first.fill("2")
    press(page, "Draw")
    page.get_by_text("t = 501", exact=True).wait_for()
    return drawn(page)


def test_in_a_browser(page):
    """Draws, where one sees it, learns twenty steps, uses the word."""
    press(page, "Draw")
    page.get_by_text("t = 1", exact=True).wait_for()
    seen = page.locator(".seen").first.bounding_box()
    assert 0 <= seen["y"] < seen["y"] + seen["height"] <= 850
    page.get_by_role("tab", name="Learn").click()
    page.get_by_label("Steps (0").fill("20")
    press(page, "Learn")
    page.get_by_text(re.compile("^learned .*20 steps")).wait_for(timeout=60000)
    page.get_by_role("tab", name="Draw").click()
    page.get_by_label("Prompt", exact=True).fill("")
    press(page, "Draw")
    page.get_by_text("the prompt is empty; say what to draw").wait_for()
    page.get_by_label("Prompt", exact=True).fill("a sketch of a <concept>")
    press(page, "Draw")
    page.get_by_text("<concept>", exact=True).first.wait_for()  # beneath the word's map


def test_a_lora_a_judge_and_an_outline_in_a_browser(wide, toybox, tmp_path):
    config = minti.DreamBoothConfig(learns="lora", steps=3, learning_rate=1e-2, prior_weight=0)
    booth = minti.DreamBooth(toybox, config)
    for _ in minti.dreambooth(booth, open_folder(CONCEPTS / CONCEPT)):
        pass
    minti.save_lora(booth.lora, tmp_path / "three_steps.safetensors")
    alone = draw_two_steps(wide)

    wide.get_by_role("button", name="With a LoRA").click()
    wide.locator("input[type=file]").first.set_input_files(tmp_path / "three_steps.safetensors")
    wide.get_by_text("safetensors").wait_for()
    with_lora = draw_two_steps(wide)
    options = {"num_inference_steps": 2, "sampler": "ddim"}
    noise = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    with booth.lora.attached(toybox):
        expected = minti.sample(toybox, "a photo of a red star", latents=noise, **options)[0]
    assert alike(with_lora, expected)
    assert not alike(with_lora, alone)

    wide.get_by_role("button", name="Classifier guidance").click()
    wide.get_by_label("Towards a colour or a shape").click()
    wide.get_by_role("option", name="green").click()
    assert not alike(draw_two_steps(wide), with_lora)
    assert alike(drawn(wide, "Beside it: latents"), with_lora)

    wide.get_by_role("button", name="Along an outline").click()
    wide.get_by_role("button", name="Brush").click()
    wide.locator("canvas").first.scroll_into_view_if_needed()
    canvas = wide.locator("canvas").first.bounding_box()
    x, y = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    wide.mouse.move(x - 40, y - 40)
    wide.mouse.down()
    for dx, dy in ((40, -40), (40, 40), (-40, 40), (-40, -40)):
        wide.mouse.move(x + dx, y + dy, steps=8)
    wide.mouse.up()
    wide.wait_for_timeout(1000)
    draw_two_steps(wide)
    assert not alike(drawn(wide, "Beside it: latents"), with_lora)
