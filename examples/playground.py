"""A demo in the browser: sample images, learn a word, compose two prompts, and see every step.

    pip install -e '.[playground]'
    python examples/playground.py

It is served to this machine alone, unless --host says otherwise, and fetches nothing from the network.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "toybox"))

from support.command_line import arguments, load, run, whole
from support.serving import SCROLL, plainly, serve
from support.session import Session

from collections.abc import Iterator
from threading import Lock
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image, ImageOps

import minti
from draw_concepts import CONCEPTS, concept_pictures
from minti.denoising import SAMPLERS
from minti.evaluation.grids import grid
from minti.formats.image_files import open_folder, open_image
from minti.guidance.conditions import Conditions
from noisy_judge import FILE as JUDGE
from world import COLOURS, PATTERNS, SHAPES, Toy

BUNDLED, HERE, OWN = "a bundled toy", "a toy drawn here", "my images"
PLACES = {"on the left": (0, 0.5), "on the right": (0.5, 1), "everywhere": (0, 1)}
PAIR = (
    ("a photo of a red star next to a toy", "on the left"),
    ("a photo of a toy next to a blue heart", "on the right"),
)
COUNT, PLAIN = {"minimum": 1, "precision": 0, "maximum": 1000, "min_width": 110}, {"label": "", "show_label": False}
SEED = {"label": "Seed", "minimum": 0, "precision": 0, "maximum": 2**32 - 1, "min_width": 110}
PICTURE = {"format": "png", "buttons": [], "interactive": False}
RUNS = {"concurrency_limit": None, "trigger_mode": "multiple", "show_progress": "minimal"}  # a second ends the first
RUNS["js"] = SCROLL


# --- what happens on a click ------------------------------------------------------------------------------------------


@plainly
def draw(
    session: Session, prompt: str, negative: str, sampler: str, steps: int, scale: float, seed: int, *more: Any
) -> Iterator[Any]:
    """The image at every step, beside it another prompt or scale from the same noise."""
    other, other_scale, wish, push, sketch, strength, lora, weight = more
    asked = [(prompt, scale)]
    if other.strip() or other_scale or wish:  # what is steered stands beside what is not
        asked.append((other.strip() or prompt, other_scale or scale))
    adapters = session.adapters(sketch, strength or 0, lora, weight or 0)
    steered = session.steered(wish, push or 0)
    options = {"negative_prompt": negative, "sampler": sampler, "num_inference_steps": int(steps or 0)}
    for t, shown, maps in session.draw(asked, int(seed or 0), adapters, steered, **options):
        yield (*shown[0], *pair(shown[1:]), maps, f"t = {t}")


def pair(shown: list[tuple[Image.Image, Image.Image]]) -> list[dict[str, Any]]:
    """What the two pictures of a second run are to show; nothing without one."""
    return [gr.update(value=picture, visible=True) for picture in shown[0]] if shown else [gr.update(visible=False)] * 2


@plainly
def learn(
    session: Session,
    source: str,
    concept: str,
    files: list[str] | None,
    word: str,
    begins: str,
    steps: int,
    *looks: str,
) -> Iterator[Any]:
    """Learns a word, from one of three kinds of images."""
    if source == BUNDLED:
        pictures = open_folder(CONCEPTS / concept)
    elif source == HERE:
        if looks[2] == looks[3]:
            raise ValueError("the toy's two colours are the same; choose two")
        drawn = concept_pictures(Toy(*looks))
        pictures = [Image.fromarray((picture * 255).round().astype(np.uint8)) for picture in drawn]
    elif not files:
        raise ValueError("there is no image to learn from; bring three to ten that show one thing")
    else:
        pictures = [open_image(path) for path in files]
    yield None, None, grid([ImageOps.fit(each, (128, 128)) for each in pictures], columns=5), ""
    for lesson, picture in session.learn(pictures, word.strip(), begins.strip(), int(steps or 0)):
        yield lesson.curve(), picture, gr.skip(), lesson.said()


@plainly
def go_on(session: Session) -> Iterator[Any]:
    """From where the last lesson was stopped."""
    for lesson, picture in session.go_on():
        yield lesson.curve(), picture, gr.skip(), lesson.said()


@plainly
def save_word(session: Session) -> Iterator[Any]:
    """The last word, to keep."""
    yield gr.update(value=str(session.save()), visible=True)


@plainly
def together(session: Session, *asked: Any) -> Iterator[Any]:
    """Composed guidance: two prompts, each with its place and weight."""
    *two, whole_prompt, steps, seed = asked
    extra = [(prompt, weight, session.place(*PLACES[place])) for prompt, place, weight in (two[:3], two[3:])]
    options = {"sampler": "ddim", "num_inference_steps": int(steps or 0), "cfg": Conditions(session.model, extra)}
    for t, [shown], _ in session.draw([(whole_prompt, None)], int(seed or 0), **options):
        yield (*shown, f"t = {t}")


# --- the page ---------------------------------------------------------------------------------------------------------


def both(latents: str = "Latents", clean: str = "Clean, predicted", visible: bool = True) -> list[gr.Image]:
    """Where the two pictures of a run are shown."""
    with gr.Row(elem_classes="seen" if visible else None):
        return [gr.Image(label=label, visible=visible, min_width=140, **PICTURE) for label in (latents, clean)]


def draw_tab(session: gr.State, model: minti.StableDiffusion, outlines: bool, judge: bool) -> None:
    """Controls on the left, or on a telephone above, and the picture beside."""
    with gr.Row():
        with gr.Column(min_width=260):
            asked = [gr.Textbox("a photo of a red star", label="Prompt"), gr.Textbox("", label="Negative prompt")]
            with gr.Row():
                asked += [gr.Dropdown(list(SAMPLERS), value="ddim", label="Sampler", min_width=110)]
                asked += [gr.Number(20, label="Steps", **COUNT)]
                asked += [gr.Number(model.defaults.guidance_scale, label="Guidance", min_width=110)]
                asked += [gr.Number(0, **SEED)]
            button = gr.Button("Draw", variant="primary")
            with gr.Accordion("Beside it, from the same noise", open=False):
                asked += [gr.Textbox("", label="Another prompt"), gr.Number(0, label="Another scale (0: the same)")]
            with gr.Accordion("Classifier guidance", open=False, visible=judge):
                wishes = [("nowhere", ""), *COLOURS, *SHAPES]
                asked += [gr.Dropdown(wishes, value="", label="Towards a colour or a shape")]
                asked += [gr.Number(30, label="Scale of the gradient")]
            with gr.Accordion("Along an outline drawn by hand", open=False, visible=outlines):
                brush = gr.Brush(default_size=8, colors=["#000000"], color_mode="fixed")
                pad = {"canvas_size": (256, 256), "type": "pil", "layers": False, "brush": brush, **PLAIN}
                asked += [gr.Sketchpad(**pad), gr.Number(1, label="How strongly")]
            with gr.Accordion("With a LoRA", open=False):
                asked += [gr.File(label="File", type="filepath"), gr.Number(1, label="Weight")]
        with gr.Column(min_width=260):
            said, pictures = gr.Markdown(""), both()
            pictures += both("Beside it: latents", "Beside it: clean", visible=False)
            maps = gr.Gallery(label="Attention map of each word", columns=3, height="auto", **PICTURE)
    button.click(draw, [session, *asked], [*pictures, maps, said], api_name="draw", **RUNS)


def learn_tab(session: gr.State) -> None:
    """What to learn, its curve, and the word as it is by now."""
    with gr.Row():
        with gr.Column(min_width=260):
            source = gr.Radio([BUNDLED, HERE, OWN], value=BUNDLED, label="Learn")
            concept = gr.Dropdown(sorted(folder.name for folder in CONCEPTS.iterdir()), label="The toy")
            with gr.Row(visible=False) as looks:
                kinds = {"Shape": SHAPES, "Pattern": PATTERNS, "Colour": list(COLOURS), "Second": list(COLOURS)[::-1]}
                chosen = [gr.Dropdown(of, value=of[0], label=kind, min_width=110) for kind, of in kinds.items()]
            files = gr.File(label="Three to ten images", file_count="multiple", type="filepath", visible=False)
            how = [gr.Textbox("<concept>", label="The new word"), gr.Textbox("toy", label="Initializer token")]
            how += [gr.Number(0, label="Steps (0: early stopping)", minimum=0, maximum=100000, precision=0)]
            with gr.Row():
                button = gr.Button("Learn", variant="primary", min_width=100)
                stop, further = gr.Button("Stop", min_width=100), gr.Button("Go on", min_width=100)
                save = gr.Button("Save", min_width=100)
            saved = gr.File(label="The word's file", interactive=False, visible=False)
        with gr.Column(min_width=260):
            said = gr.Markdown("")
            curve = gr.HTML("")
            picture = gr.Image(label="The word, drawn", height=280, elem_classes="seen", **PICTURE)
            pictures = gr.Image(label="Learned from", **PICTURE)

    only = lambda kind: [gr.update(visible=kind == each) for each in (BUNDLED, HERE, OWN)]  # noqa: E731
    shown = [curve, picture, pictures, said]
    source.change(only, source, [concept, looks, files], api_visibility="private")
    button.click(learn, [session, source, concept, files, *how, *chosen], shown, api_name="learn", **RUNS)
    stop.click(Session.stop, session, None, api_name="stop", queue=False)
    further.click(go_on, session, shown, api_name="go_on", **RUNS)
    save.click(save_word, session, saved, api_name="save")


def together_tab(session: gr.State) -> None:
    """Two prompts with their places."""
    with gr.Row():
        with gr.Column(min_width=260):
            asked = []
            for prompt, place in PAIR:
                with gr.Group():
                    asked += [gr.Textbox(prompt, label="Prompt"), gr.Radio(list(PLACES), value=place, **PLAIN)]
                    asked += [gr.Slider(-10, 10, 5, step=0.5, label="Weight; below zero it pushes away")]
            asked += [gr.Textbox("a photo", label="Of the whole image")]
            with gr.Row():
                asked += [gr.Number(20, label="Steps", **COUNT)]
                asked += [gr.Number(0, **SEED)]
            button = gr.Button("Put together", variant="primary")
        with gr.Column(min_width=260):
            said, pictures = gr.Markdown(""), both()
    button.click(together, [session, *asked], [*pictures, said], api_name="together", **RUNS)


def playground(model: minti.StableDiffusion, source: Path) -> gr.Blocks:
    """The page; every visitor has a session of their own."""
    with gr.Blocks(title="minti", analytics_enabled=False) as page:
        session = gr.State(Session(model, source, Lock()).warm())
        gr.Markdown("# minti\nSample images, learn a word from a few images, compose two prompts; see every step.")
        with gr.Tab("Draw"):
            draw_tab(session, model, (source / "controlnet").is_dir(), (source / JUDGE).is_file())
        with gr.Tab("Learn"):
            learn_tab(session)
        with gr.Tab("Together"):
            together_tab(session)
    return page


def main() -> None:
    """Loads the model and opens the page."""
    parser = arguments(__doc__.split("\n\n")[0], output=None)
    parser.add_argument("--host", default="127.0.0.1", help="who may open it: by default this machine alone")
    parser.add_argument("--port", type=whole(1, 65535), help="default: the first that is free from 7860")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    args = parser.parse_args()
    serve(playground(load(args), Path(args.model)), args.host, args.port, inbrowser=not args.no_browser)


if __name__ == "__main__":
    run(main)
