"""The sections of the evaluation report; each writes its PNG and CSV files and returns its HTML."""

from support import html
from support.charts import chart
from support.drawing import Artist
from support.pages import page
from support.rows import Row, fill
from support.subjects import Subject
from support.timestep_losses import loss_over_timesteps

import csv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

import minti
from minti.editing.attention_maps import AttentionMaps
from minti.evaluation import clip_scores
from minti.evaluation.clip_scores import Clip
from minti.evaluation.neighbours import learned_rows
from minti.images import to_pixels
from minti.personalization.vocabulary import known_words
from minti.runs.files import replacing
from minti.utils import randn

SCALES = (1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0)


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Records as CSV; every column that one of them has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: round(x, 5) if isinstance(x, float) else x for name, x in row.items()})


def shown(charts: Sequence[str]) -> str:
    """Charts as HTML, side by side where there is room."""
    return html.images([html.figure(each) for each in charts], "wide")


@torch.no_grad()
def known_lengths(model: minti.StableDiffusion) -> Tensor:
    """The norms of the vocabulary's embedding vectors, (v,) float32."""
    rows = model.text_encoder.get_input_embeddings().weight[list(known_words(model).values())]
    return rows.float().norm(dim=1).cpu()


def words(model: minti.StableDiffusion, toybox: Any, subjects: Sequence[Subject], folder: Path) -> list[str]:
    """Nearest words of the vocabulary to each embedding vector, and its norm; of the toybox's names also the looks."""
    lengths = known_lengths(model)
    low, middle, high = torch.quantile(lengths, torch.tensor([0.05, 0.5, 0.95])).tolist()
    records, lines = [], []
    for subject in subjects:
        for row in learned_rows(model, subject.word) if subject.word in model.words else ():
            nearest = {f"nearest_{i}": f"{word} {cosine:.3f}" for i, (word, cosine) in enumerate(row.nearest, 1)}
            records.append({"row": row.token, "length": round(row.length, 4)} | nearest)
            known = {word: toybox.looks(word) if toybox is not None else "" for word, _ in row.nearest}
            named = [f"{word}{known[word] and f' ({known[word]})'} {cosine:.2f}" for word, cosine in row.nearest]
            lines.append((row.token, row.length, ", ".join(named)))
    write_table(folder / "words.csv", records)
    text = (
        f"The norms of the vocabulary's {len(lengths)} embedding vectors: median {middle:.2f}, "
        f"5th to 95th percentile {low:.2f} to {high:.2f}."
    )
    return [
        *(html.paragraph(subject.summary) for subject in subjects),
        html.table(("token", "norm", "nearest words of the vocabulary, cosine similarity"), lines, "words"),
        html.paragraph(text, "soft"),
    ]


def learning(artist: Artist, subjects: Sequence[Subject], folder: Path) -> list[str]:
    """Images sampled during the training; the loss by timestep with the word, the initializer and no prompt."""
    blocks, records, drawn = [], [], []
    model, seed = artist.model, torch.Generator().manual_seed(artist.args.seed)
    last = model.scheduler.config.num_train_timesteps - 1
    timesteps = [round(last * (i + 0.5) / 16) for i in range(16)]
    for subject in subjects:
        pixels = torch.stack([to_pixels(picture, model.resolution) for picture in subject.pictures[:6]])
        with torch.no_grad():
            latents = torch.cat([model.scale(model.encode(part).mean) for part in pixels.split(1)])
        noise = randn(latents.shape, seed, latents.device, latents.dtype)
        prompts = {word: f"a photo of a {word}" for word in (subject.word, subject.initializer)} | {"no prompt": ""}
        losses = loss_over_timesteps(model, latents, list(prompts.values()), timesteps, noise).tolist()
        for name, line in zip(prompts, losses):
            records += [
                {"word": subject.word, "prompt": name, "timestep": t, "loss": x} for t, x in zip(timesteps, line)
            ]
        # The curves lie so near each other that only their differences can be seen.
        nothing = losses[-1]
        lines = {
            f"{name} instead of no prompt": [(t, a - b) for t, a, b in zip(timesteps, line, nothing)]
            for name, line in zip(prompts, losses[:-1])
        }
        drawn.append(chart(f"{subject.word}: loss, less that without a prompt", "timestep", lines))
        if subject.growth:
            strips = [
                html.images([html.image(pictures[i], f"step {step}") for step, pictures in subject.growth])
                for i in range(2)
            ]
            blocks.append(html.card(f"a photo of a {subject.word}", *strips))
            rows = [(f"{subject.word}\nstep {step}", pictures) for step, pictures in subject.growth]
            page(rows).save(folder / f"growth-{subjects.index(subject)}.png")
        else:
            blocks.append(html.paragraph(f"{subject.word} came from a file, so no training can be shown.", "soft"))
    write_table(folder / "losses-by-timestep.csv", records)
    explained = "Below zero, the prompt helps to predict the noise; these are the timesteps at which it matters."
    return [*blocks, html.paragraph(explained), shown(drawn)]


def guidance(artist: Artist, rows: Sequence[Row], clip: Clip | None, folder: Path) -> list[str]:
    """Image and text alignment over the guidance scale, for the first template of each word."""
    blocks, records, drawn = [], [], []
    first = {row.subjects[0].word: row for row in reversed(rows) if len(row.subjects) == 1}
    for word, row in sorted(first.items(), key=lambda item: rows.index(item[1])):
        samples = len(row.pictures)
        pictures = {scale: artist.draw([row.prompt], samples, guidance_scale=scale) for scale in SCALES}
        page([(f"{row.prompt}\nscale {scale:g}", p) for scale, p in pictures.items()]).save(
            folder / f"guidance-{len(blocks)}.png"
        )
        strip = [html.image(p[0], f"scale {scale:g}") for scale, p in pictures.items()]
        blocks.append(html.card(row.prompt, html.images(strip)))
        if clip is None:
            continue
        training, text = clip.images(row.subjects[0].pictures), clip.texts([clip_scores.without_words(row.template)])
        like = {s: clip_scores.mean_similarity(clip.images(p), training) for s, p in pictures.items()}
        obeys = {s: clip_scores.mean_similarity(clip.images(p), text) for s, p in pictures.items()}
        records += [{"word": word, "scale": s, "likeness": like[s], "obedience": obeys[s]} for s in SCALES]
        lines = {"image alignment": list(like.items()), "text alignment": list(obeys.items())}
        drawn.append(chart(f"{word}: over the guidance scale", "guidance scale", lines))
        pairs = [(obeys[s], like[s], f"{s:g}") for s in SCALES]
        lines = {"image alignment, at each scale": pairs}
        drawn.append(chart(f"{word}: image against text alignment", "text alignment", lines))
    if records:
        write_table(folder / "guidance.csv", records)
    return [*blocks, shown(drawn) if drawn else html.paragraph("Without a CLIP there are images only.", "soft")]


def attention(artist: Artist, rows: Sequence[Row], toybox: Any, subjects: Sequence[Subject], folder: Path) -> list[str]:
    """Cross-attention maps of each word of a prompt; on the toybox also their share inside the true outline."""
    blocks, model = [], artist.model
    chosen = {len(row.subjects): row for row in reversed(rows) if row.subjects[0] is subjects[0]}
    for _, row in sorted(chosen.items()):
        count = min(2, len(row.pictures), artist.args.batch_size)  # in one batch, which the maps follow
        with (maps := AttentionMaps(model, [row.prompt] * count)).attached(model):
            pictures = artist.draw([row.prompt], count)
        overlays = {}
        for name in dict.fromkeys(row.prompt.split()):
            with suppress(ValueError):  # of a long prompt's end, which the model does not read
                overlays[name] = [overlay(p, m) for p, m in zip(pictures, maps.of(name))]
        page([(row.prompt, pictures), *overlays.items()]).save(folder / f"attention-{len(row.subjects)}.png")
        lines = []
        for i in range(count):
            maps_shown = [html.image(pair[i], name) for name, pair in overlays.items()]
            lines.append(html.images([html.image(pictures[i], "sampled"), *maps_shown], "small"))
        blocks.append(html.card(row.prompt, *lines))
    blocks.append(html.paragraph("Each map is scaled to its own maximum; dark places get little attention.", "soft"))
    shares = {s.word: toybox.attention_inside(s) for s in subjects} if toybox is not None else {}
    if any(shares.values()):
        table, records = [], []
        for word, found in shares.items():
            chance = (found or {}).get("chance", (0, 0))[0]
            for name, (share, error) in (found or {}).items():
                records.append({"learned_word": word, "of": name, "share": share, "error": error, "chance": chance})
                table.append(
                    (name if name != "chance" else f"chance, for {word}", share, error, f"{share / chance:.2f}")
                )
        write_table(folder / "attention.csv", records)
        blocks.append(
            html.paragraph(
                "The share of attention that lies inside the toy's true outline, over 32 rendered images "
                "(whose outlines are known) at four noise levels. Chance is the outline's share of the image."
            )
        )
        blocks.append(html.table(("attention of", "share inside", "standard error", "times chance"), table))
    return blocks


def overlay(picture: Image.Image, heat: torch.Tensor) -> Image.Image:
    """An attention map, (h, w), laid over the image in grey."""
    scaled = F.interpolate((heat / heat.max())[None, None].float().cpu(), picture.size[::-1], mode="bicubic")[0, 0]
    colours = colormaps["inferno"](scaled.clamp(0, 1).numpy())[..., :3]
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    return Image.fromarray(((0.35 * grey + 0.65 * colours) * 255).round().astype(np.uint8))


def together(artist: Artist, rows: Sequence[Row], toybox: Any, folder: Path) -> list[str]:
    """Both words in one prompt; as two weighted prompts of one word each; and all three prompts together."""
    blocks, records, scale = [], [], artist.args.guidance_scale
    for row in (row for row in rows if len(row.subjects) == 2):
        a, b = row.subjects
        first, second = fill(row.template, [a.word, b.initializer]), fill(row.template, [a.initializer, b.word])
        count, two, three = len(row.pictures), 0.7 * scale, 0.5 * scale
        extra = [(first, three), (second, three)]
        ways = {
            f"as one prompt, guidance {scale:.2g}": row.pictures,
            f"as two, “{first}” and “{second}”, guidance {two:.2g} each": artist.draw(
                [first], count, extra_prompts=[(second, two)], guidance_scale=two
            ),
            f"as all three, guidance {three:.2g} each": artist.draw(
                [row.prompt], count, extra_prompts=extra, guidance_scale=three
            ),
        }
        page([(name, pictures) for name, pictures in ways.items()]).save(folder / f"together-{len(blocks)}.png")
        parts = []
        for name, pictures in ways.items():
            judged = toybox and toybox.judge_row(pictures, row.prompt, row.subjects)
            records.append({"prompt": row.prompt, "way": name} | (judged[0] if judged else {}))
            parts.append(html.paragraph(f"{name[0].upper()}{name[1:]}{f': {judged[1]}' if judged else ''}.", "said"))
            parts.append(html.images([html.image(picture) for picture in pictures]))
        blocks.append(html.card(row.prompt, *parts))
    write_table(folder / "together.csv", records)
    return blocks
