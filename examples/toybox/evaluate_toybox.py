"""Measures the toybox: reconstructions, prompts and learned words, as its judge sees them; and what guidance costs.

    python examples/toybox/evaluate_toybox.py                      # everything
    python examples/toybox/evaluate_toybox.py --only inversion --quiet

Prints tables in per cent and writes measures.json. The judge was trained on the world's own ground truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, generators, load, make_output, run, whole_or_auto
from support.sharing import first_step_shared, shared_steps, unconditional_shared

import argparse
import json
import time
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

import minti
import painting
import world
from held_out import TOYS, pixels_of, to_pixels, wrappers_to_train
from measure import TOY, load_judge, rates, recognised, table, toy_truth, verdicts
from minti.denoising import SAMPLERS
from minti.personalization.num_vectors_search import NumVectorsSearch
from minti.utils import replacing
from networks import Judge

SCENE = ("size", "place", "background", "style")


def scenes(count: int, seed: int) -> tuple[list[world.Scene], torch.Tensor]:
    """Scenes that training has not drawn, with their pixels."""
    drawn = [world.random_scene(np.random.default_rng((seed, 9, i))) for i in range(count)]
    return drawn, to_pixels(
        [painting.draw(scene, np.random.default_rng((seed, 10, i))) for i, scene in enumerate(drawn)]
    )


def truth(judge: Judge, scene: world.Scene) -> dict[str, str]:
    """The right answers to what can be seen in a picture of the scene."""
    return {name: judge.answers[name][index] for name, index in judge.labels(scene).items() if index >= 0}


class Evaluation:
    """A model, its judge, and how pictures are drawn."""

    def __init__(self, args):
        self.args, self.judge = args, load_judge(args.model)
        self.quiet = True if args.quiet else None

    def draw(self, model: minti.StableDiffusion, prompts: list[str]) -> list[dict[str, str]]:
        """Draws the prompts and returns the judge's verdicts; picture i has noise of its own."""
        pixels = []
        for start in tqdm(range(0, len(prompts), 16), desc="drawing", disable=self.quiet, leave=False):
            part = prompts[start : start + 16]
            pixels.append(
                minti.sample(
                    model,
                    part,
                    generator=generators(self.args.seed + start, len(part)),
                    sampler=self.args.sampler,
                    num_inference_steps=self.args.steps,
                    guidance_scale=self.args.guidance_scale,
                    output="pixels",
                )
            )
        return verdicts(self.judge, torch.cat(pixels))

    @torch.no_grad()
    def reconstruction(self, model: minti.StableDiffusion, count: int) -> list[tuple[str, dict[str, float]]]:
        """The judge on true pictures, and on the same through the VAE."""
        drawn, pixels = scenes(count, self.args.seed)
        rows = []
        decoded = torch.cat([model.vae.decode(model.encode(part).mean) for part in pixels.split(50)])
        for name, seen in (("true pictures", pixels), ("reconstructions", decoded)):
            pairs = zip(verdicts(self.judge, seen), (truth(self.judge, scene) for scene in drawn))
            rows.append((name, rates(pairs)))
        return rows

    def prompts(self, model: minti.StableDiffusion, count: int) -> list[tuple[str, dict[str, float]]]:
        """Prompts that name every attribute, or a made-up name, or two toys."""
        rng = np.random.default_rng((self.args.seed, 11))
        described, named, pairs = [], [], []
        for _ in range(count):
            scene = world.random_scene(rng, pair_rate=0)
            (toy,) = scene.toys
            while toy in world.HELD_OUT:
                toy = world.random_toy(rng)
            looks = f"{scene.size} {toy.main} {toy.shape} with a {toy.second} {toy.pattern}"
            tail = f"{scene.place} on a {scene.background} background"
            described.append((f"{world.STYLES[scene.style]} a {looks} {tail}", truth(self.judge, scene)))
            name = str(rng.choice(list(world.NAMED)))
            named.append((f"a photo of a {name}", toy_truth(world.NAMED[name])))
            two = [str(n) for n in rng.choice(list(world.NAMED), 2, replace=False)]
            answers = toy_truth(world.NAMED[two[0]], 0) | toy_truth(world.NAMED[two[1]], 1)
            pairs.append((f"a photo of a {two[0]} next to a {two[1]}", answers))
        rows = []
        for name, jobs in (
            ("every attribute named", described),
            ("made-up names", named),
            ("two made-up names", pairs),
        ):
            seen = self.draw(model, [prompt for prompt, _ in jobs])
            rows.append((name, rates(zip(seen, (answers for _, answers in jobs)))))
        return rows

    def inversion(self, toys: list[world.Toy], per_prompt: int) -> tuple[list[tuple[str, dict[str, float]]], dict]:
        """Learns each toy from five pictures, then draws it alone, in styles and in pairs."""
        folder, names = self.args.output, [f"<toy-{i}>" for i in range(len(toys))]
        seconds, steps, alone, styled = [], [], [], []
        for name, toy in zip(tqdm(names, desc="learning", disable=self.quiet), toys):
            model, begin = load(self.args), time.perf_counter()
            wrappers = wrappers_to_train(
                model, name, pixels_of(toy), self.args.vectors, self.args.initializer, self.args.seed
            )
            steps.append(sum(1 for wrapper in wrappers for _ in minti.textual_inversion(wrapper, pixels_of(toy))))
            wrapper = wrappers.best if isinstance(wrappers, NumVectorsSearch) else wrappers[0]
            seconds.append(time.perf_counter() - begin)
            minti.save_embeddings(wrapper, folder / f"{name[1:-1]}.safetensors")
            seen = self.draw(model, [f"a photo of a {name}"] * per_prompt)
            alone += [(verdict, toy_truth(toy)) for verdict in seen]
            styles = [style for style in world.STYLES if style != "photo"]
            prompts = [f"{world.STYLES[style]} a {name}" for style in styles for _ in range(4)]
            for verdict, style in zip(self.draw(model, prompts), np.repeat(styles, 4)):
                styled.append((verdict, {"style": str(style), "shape_0": toy.shape}))
        rows = [
            (f"one learned word, {len(toys)} x {per_prompt} photos", rates(alone)),
            ("in other styles", rates(styled)),
        ]

        model = load(self.args)
        for name in names:
            minti.load_embeddings(model, folder / f"{name[1:-1]}.safetensors")
        hits = []
        for i in range(0, len(toys) - 1, 2):
            for verdict in self.draw(model, [f"a {names[i]} next to a {names[i + 1]}"] * per_prompt):
                hits += [recognised(verdict, toys[i]), recognised(verdict, toys[i + 1])]
        rows.append(("two learned words in one prompt", {"recognised": sum(hits) / len(hits)} if hits else {}))
        each = {name: rates(alone[i * per_prompt : (i + 1) * per_prompt]) for i, name in enumerate(names)}
        details = {"seconds": seconds, "steps": steps, "each": each}
        return rows, details


def guidance_costs(model: minti.StableDiffusion, args: argparse.Namespace, batch: int = 8) -> list[dict[str, object]]:
    """Exercise E4, question 2: evaluations, time, and how far the pictures are from those of the exact run.

    All pictures start from the same noise; the exact run draws them one by one.
    """
    rng = np.random.default_rng((args.seed, 12))
    prompts = [f"a photo of a {name}" for name in rng.choice(list(world.NAMED), batch, replace=False)]
    options = {"num_inference_steps": args.steps, "sampler": "ddim", "guidance_scale": args.guidance_scale}
    noise = torch.randn(1, *model.latents_shape(1)[1:], generator=generators(args.seed, 1)[0])
    last = model.scheduler.config.num_train_timesteps - 1
    ways = {
        "exact, one by one": None,
        "exact, as one batch": {},
        "first step shared": first_step_shared,
        "one unconditional trajectory for all": unconditional_shared,
        "the same, noisier half only": partial(unconditional_shared, interval=(last // 2, last)),
        "refreshed every 2nd step": {"refresh_every": 2},
        "refreshed every 5th step": {"refresh_every": 5},
        "the noisier half only": {"guidance_interval": (last // 2, last)},
        "none": {"guidance_scale": 1.0},
    }
    rows, exact = [], None
    for name, way in ways.items():
        start, evaluations, parts = time.perf_counter(), 0, []
        for part in [[prompt] for prompt in prompts] if way is None else [prompts]:
            latents = noise.expand(len(part), -1, -1, -1)
            if callable(way):
                *_, step = shared_steps(model, part, latents, way, **options)
            else:
                *_, step = minti.sample_steps(model, part, latents=latents, **(options | (way or {})))
            evaluations += step.evaluations
            parts.append(step.latents)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            pixels = model.decode(torch.cat(parts)).clamp(-1, 1)
        exact = pixels if exact is None else exact
        deviation = (pixels - exact).abs().mean().item() * 127.5
        rows.append({"way": name, "evaluations": evaluations, "seconds": seconds, "deviation": deviation})
    return rows


def main() -> None:
    """All measures, as tables and as JSON."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/evaluation")
    parser.add_argument("--only", choices=("reconstruction", "prompts", "inversion", "guidance"), help="one part only")
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddpm")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    parser.add_argument(
        "--count", type=int, default=160, help="prompts of each kind; six times as many reconstructions"
    )
    parser.add_argument("--toys", choices=TOYS, default="test", help="which held-out toys to learn")
    parser.add_argument("--vectors", type=whole_or_auto(1), default=1, help="rows of a learned word, or 'auto'")
    parser.add_argument("--initializer", default="toy", help="the word that it begins as, or 'auto'")
    args = parser.parse_args()
    folder = make_output(args.output)
    model = load(args)
    evaluation = Evaluation(args)
    results: dict[str, object] = {}

    if args.only in (None, "reconstruction"):
        rows = evaluation.reconstruction(model, 6 * args.count)
        results["reconstruction"] = dict(rows)
        print(table(rows, (*TOY, *SCENE)), end="\n\n")
    if args.only in (None, "prompts"):
        rows = evaluation.prompts(model, args.count)
        results["prompts"] = dict(rows)
        print(table(rows, (*TOY, *SCENE)), end="\n\n")
    if args.only in (None, "inversion"):
        rows, details = evaluation.inversion(TOYS[args.toys], per_prompt=16)
        results["inversion"] = dict(rows) | details
        print(table(rows, (*TOY, "style", "recognised")))
        print(f"\nsteps: {details['steps']}; seconds: {[round(s, 1) for s in details['seconds']]}")
    if args.only in (None, "guidance"):
        rows = guidance_costs(model, args)
        results["guidance"] = rows
        print(f"\n| guidance, 8 prompts, {args.steps} steps | evaluations | seconds | mean deviation, grey levels |")
        print("|---|---|---|---|")
        for row in rows:
            print(f"| {row['way']} | {row['evaluations']} | {row['seconds']:.1f} | {row['deviation']:.2f} |")
    with replacing(folder / "measures.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
