"""A visitor's session of the playground: the model with words of their own, and the one run that is theirs.

The networks are shared, and each session takes its turn with them for a step at a time. Adapters are attached during a
step only, so that nobody samples with another's LoRA.
"""

from support.lesson import Lesson

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from threading import Lock
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import minti
from minti.adapter import Adapter
from minti.adapters.controlnet import ControlNet
from minti.adapters.tiny_decoder import TinyVAE
from minti.denoising import SampleStep
from minti.editing.attention_maps import AttentionMaps
from minti.images import to_pil
from minti.personalization.vocabulary import is_learned
from noisy_judge import by_noisy_judge, load_noisy_judge

Step = TypeVar("Step")
Shown = tuple[Image.Image, Image.Image]  # the latents, decoded, and the clean picture predicted
SHOWN = 25  # steps of a picture are decoded at most
JUDGED = 600  # the timestep below which a judge of noisy latents knows enough to steer


class Session:
    """Shares the networks of the model that was loaded, and has a text encoder and a tokenizer of its own.

    Attributes:
        source: the folder that it was loaded from.
        lesson: the last word that was learned, or whose training can be continued.
    """

    def __init__(self, loaded: minti.StableDiffusion, source: Path, turn: Lock):
        self.loaded, self.source, self.turn = loaded, source, turn
        own = {name: deepcopy(getattr(loaded, name)) for name in ("text_encoder", "tokenizer", "words")}
        self.model = replace(loaded, **own, learning={})
        tiny = source / "tiny_decoder"
        self.tiny = TinyVAE.from_pretrained(tiny, loaded) if tiny.is_dir() else None
        self.lesson: Lesson | None = None
        self._run: object = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        """A new visitor's, as gradio makes it from the first."""
        return Session(self.loaded, self.source, self.turn)

    def warm(self) -> "Session":
        """Takes one step, so that the first click does not pay for what is only slow once."""
        for _ in self.draw([("a", None)], 0, num_inference_steps=1):
            pass
        return self

    def stop(self) -> None:
        """Ends the run that is going on, after the step that it is in."""
        self._run = None

    def taking(self, steps: Iterable[Step], adapters: Sequence[Adapter] = ()) -> Iterator[Step]:
        """The steps of a run, until it ends or another of this session begins."""
        self._run = run = object()
        for step in within(steps, lambda: self.turn, *(partial(adapter.attached, self.model) for adapter in adapters)):
            if self._run is not run:
                return
            yield step

    def adapters(self, sketch: dict[str, Any] | None, scale: float, lora: str | None, weight: float) -> list[Adapter]:
        """The adapters of a run: a ControlNet with an outline drawn by hand, a LoRA's file."""
        adapters: list[Adapter] = []
        if (hint := drawn_line(sketch, self.model.resolution)) is not None:
            control = ControlNet.from_pretrained(self.source / "controlnet", self.model)
            control.hint, control.scale = hint, scale
            adapters.append(control)
        if lora:
            adapters.append(minti.load_lora(self.model, lora, weight))
        return adapters

    def steered(self, wish: str | None, scale: float) -> dict[str, Any]:
        """Classifier guidance towards a colour or a shape, as an option of `minti.sample_steps`, or none."""
        if not wish:
            return {}
        return {"guidance": by_noisy_judge(self.model, load_noisy_judge(self.source), wish, scale, JUDGED)}

    def place(self, left: float, right: float) -> Tensor:
        """A mask of the latents between two shares of the width, (1, 1, h, w)."""
        h, w = self.model.latents_shape(1)[2:]
        x = (torch.arange(w) + 0.5) / w
        return ((left <= x) & (x < right)).float().expand(1, 1, h, w)

    def draw(
        self,
        asked: Sequence[tuple[str, float | None]],
        seed: int,
        adapters: Sequence[Adapter] = (),
        steered: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> Iterator[tuple[int, list[Shown], list[tuple[Image.Image, str]]]]:
        """Samples prompts with their guidance scales (None: the model's own) from the same noise, side by side.

        `options`: of `minti.sample_steps`; `steered`: of the first image alone. Yields the timestep, the step of every
        image, and, with the last step, the attention map of each word of the first prompt.
        """
        if not all(prompt.strip() for prompt, _ in asked):
            raise ValueError('the prompt is empty; say what to draw, such as "a photo of a red star"')
        noise = torch.randn(self.model.latents_shape(1), generator=torch.Generator().manual_seed(seed))
        maps, runs = AttentionMaps(self.model, [asked[0][0]]), []
        for prompt, scale in asked:
            drawn = {"guidance_scale": scale, "latents": noise, "generator": torch.Generator().manual_seed(seed)}
            runs.append(minti.sample_steps(self.model, prompt, **drawn, **options, **({} if runs else steered)))
        if "cfg" not in options:  # the maps are of one prompt
            runs[0] = within(runs[0], lambda: maps.attached(self.model))
        last, total = None, options["num_inference_steps"]
        for i, last in enumerate(self.taking(zip(*runs), adapters)):
            if i % (-(-total // SHOWN)) == 0 and i < total - 1:
                yield last[0].timestep, [self.shown(step, preview=True) for step in last], []
        if last is not None:
            shown = [self.shown(step) for step in last]
            yield last[0].timestep, shown, overlays(maps, shown[0][1])

    @torch.no_grad()
    def shown(self, step: SampleStep, preview: bool = False) -> Shown:
        """Both images of a step, small ones enlarged; `preview`: by the tiny decoder, if the model has one."""
        decode = self.tiny.decode if preview and self.tiny else self.model.decode
        latents, clean = to_pil(decode(torch.cat([step.latents, step.clean])))
        return enlarged(latents), enlarged(clean)

    def learn(
        self, pictures: Sequence[Image.Image], word: str, initializer: str, steps: int
    ) -> Iterator[tuple[Lesson, Image.Image]]:
        """Learns a word; with every validation loss, and in the end, yields the lesson and an image of the word.
        `steps`: 0 means early stopping."""
        if is_learned(initializer):  # files are not for whoever opens the page to name
            raise ValueError(f"the initializer {initializer!r} is no known word; choose a plain one, such as toy")
        config = minti.TextualInversionConfig(
            placeholder_token=word, initializer_token=initializer, steps=steps or None
        )
        wrapper = minti.TrainingWrapper(self.model, config)
        noise = torch.randn(self.model.latents_shape(1), generator=torch.Generator().manual_seed(0))
        with self.turn:
            steps = iter(minti.monitored(minti.textual_inversion(wrapper, pictures)))
        yield from self.go_on(Lesson(wrapper, steps, noise))

    def go_on(self, lesson: Lesson | None = None) -> Iterator[tuple[Lesson, Image.Image]]:
        """A lesson from its start, or the last one from where it was stopped."""
        lesson = lesson or self.lesson
        if lesson is None:
            raise ValueError("nothing has been learned yet; press Learn")
        lesson.state = "learning"
        for state in self.taking(lesson.steps):
            self.lesson = lesson
            lesson.states.append(state)
            if state.validation_loss is not None and not state.finished:
                yield lesson, self.portrait(lesson)
        if lesson.states:  # none: another run has begun before the first step
            lesson.state = "learned" if lesson.states[-1].finished else "stopped"
            yield lesson, self.portrait(lesson)

    def portrait(self, lesson: Lesson) -> Image.Image:
        """The word as it is now, sampled in ten steps from the same noise."""
        prompt, options = lesson.wrapper.prompts[0], {"num_inference_steps": 10, "sampler": "ddim"}
        with self.turn:
            return enlarged(minti.sample(self.model, prompt, latents=lesson.noise, **options)[0])

    def save(self) -> Path:
        """The last word in a file, as diffusers reads it."""
        if self.lesson is None:
            raise ValueError("there is no word to save yet; learn one first")
        path = Path(mkdtemp(prefix="minti-")) / "learned_embeds.safetensors"
        minti.save_embeddings(self.lesson.wrapper, path)
        return path


def within(steps: Iterable[Step], *contexts: Callable[[], AbstractContextManager[Any]]) -> Iterator[Step]:
    """Takes each step within these contexts, which are left in between."""
    steps, end = iter(steps), object()
    while True:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            step = next(steps, end)
        if step is end:
            return
        yield step


def enlarged(picture: Image.Image, least: int = 256) -> Image.Image:
    """Whole times as large, without smoothing."""
    times = max(1, least // picture.width)
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def overlays(maps: AttentionMaps, picture: Image.Image) -> list[tuple[Image.Image, str]]:
    """The image once for each word of the prompt, dark where the word's attention is low."""
    found = []
    for word in dict.fromkeys(maps.prompts[0].split()) if maps.evaluations else ():
        try:
            weights = maps.of(word)[:, None]  # 1 1 h w
        except ValueError:  # at the end that was cut off
            continue
        weights = F.interpolate(weights / weights.max(), picture.size[::-1], mode="bilinear")[0, 0]  # H W
        light = 0.15 + 0.85 * weights.numpy()[..., None]
        found.append((Image.fromarray((np.asarray(picture) * light).astype(np.uint8)), word))
    return found


def drawn_line(sketch: dict[str, Any] | None, size: int) -> Tensor | None:
    """What was drawn by hand as a ControlNet's hint, white on black, (1, 3, size, size) in [0, 1]; None: nothing."""
    layers = [layer for layer in (sketch or {}).get("layers", ()) if layer is not None]
    alpha = [layer.getchannel("A").resize((size, size), Image.Resampling.BILINEAR) for layer in layers]
    if not any(layer.getbbox() for layer in alpha):
        return None
    line = np.max([np.asarray(layer, dtype=np.float32) for layer in alpha], axis=0) / 255  # size size
    return torch.from_numpy(line).expand(1, 3, -1, -1)
