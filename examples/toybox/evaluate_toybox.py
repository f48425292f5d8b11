"""Evaluates the toybox by its judge: VAE reconstructions, prompts, learned words; and the cost of guidance.

    python examples/toybox/evaluate_toybox.py                      # everything
    python examples/toybox/evaluate_toybox.py --only inversion --quiet

Prints tables in per cent and writes measures.json. The judge was trained on the world's own ground truth.
"""

from study import Study, accuracies, markdown, options
from support.command_line import generators, run
from support.option_types import filled, whole_or_auto
from support.sharing import first_step_shared, unconditional_shared

import time
from functools import partial
from typing import Any

import numpy as np
import torch

import minti
import world
from data import write_json
from held_out import TOYS, painted, pixels_of, random_scenes, wrappers_to_train
from measure import TOY, Rates, Verdict, rates, recognised, toy_truth, verdicts
from minti.denoising import SAMPLERS
from minti.guidance.conditions import Conditions
from minti.personalization.num_vectors_search import NumVectorsSearch
from networks import Judge

SCENE = ("size", "place", "background", "style")
PER_PROMPT = 16  # samples of a learned word
Results = tuple[dict[str, Rates], dict[str, Any]]  # rows of a table, and what else goes into measures.json


def truth(judge: Judge, scene: world.Scene) -> Verdict:
    """The right classes of what can be seen in an image of the scene."""
    return {name: judge.answers[name][index] for name, index in judge.labels(scene).items() if index >= 0}


def draw(study: Study, prompts: list[str], model: minti.StableDiffusion | None = None) -> list[Verdict]:
    """The judge's verdicts on samples of the prompts."""
    return verdicts(study.judge, study.sample(prompts, model))


@torch.no_grad()
def reconstruction(study: Study) -> Results:
    """The judge on true images, and on the same through the VAE."""
    model, seed = study.model, study.args.seed
    scenes = random_scenes(6 * study.args.count, seed, 9)  # which training has not shown
    pixels, truths = painted(scenes, seed, 10), [truth(study.judge, scene) for scene in scenes]
    decoded = torch.cat([model.vae.decode(model.encode(part).mean) for part in pixels.split(50)])
    images = {"true images": pixels, "reconstructions": decoded}
    return {name: rates(zip(verdicts(study.judge, seen), truths)) for name, seen in images.items()}, {}


def prompts(study: Study) -> Results:
    """Prompts that name every attribute, or a made-up name, or two toys."""
    rng = np.random.default_rng((study.args.seed, 11))
    described, named, pairs = [], [], []
    for _ in range(study.args.count):
        scene = world.random_scene(rng, pair_rate=0)
        (toy,) = scene.toys
        while toy in world.HELD_OUT:
            toy = world.random_toy(rng)
        tail = f"{scene.place} on a {scene.background} background"
        prompt = f"{world.STYLES[scene.style]} a {scene.size} {toy.looks} {tail}"
        described.append((prompt, truth(study.judge, scene)))
        name = str(rng.choice(list(world.NAMED)))
        named.append((f"a photo of a {name}", toy_truth(world.NAMED[name])))
        two = [str(n) for n in rng.choice(list(world.NAMED), 2, replace=False)]
        answers = toy_truth(world.NAMED[two[0]], 0) | toy_truth(world.NAMED[two[1]], 1)
        pairs.append((f"a photo of a {two[0]} next to a {two[1]}", answers))
    kinds = {"every attribute named": described, "made-up names": named, "two made-up names": pairs}
    seen = {name: draw(study, [prompt for prompt, _ in jobs]) for name, jobs in kinds.items()}
    return {name: rates(zip(seen[name], (answers for _, answers in jobs))) for name, jobs in kinds.items()}, {}


def inversion(study: Study) -> Results:
    """Textual inversion of each toy from five images, then samples of it alone, in styles and in pairs."""
    args, toys = study.args, TOYS[study.args.toys]
    names, seconds, steps, alone, styled = [f"<toy-{i}>" for i in range(len(toys))], [], [], [], []
    files = {name: study.folder / f"{name[1:-1]}.safetensors" for name in names}
    for name, toy in zip(study.bar(names, "learning"), toys):
        model, begin = study.fresh(), time.perf_counter()
        wrappers = wrappers_to_train(model, name, pixels_of(toy), args.vectors, args.initializer, args.seed)
        runs = (minti.monitored(minti.textual_inversion(wrapper, pixels_of(toy))) for wrapper in wrappers)
        steps.append(sum(1 for run in runs for _ in run))
        wrapper = wrappers.best if isinstance(wrappers, NumVectorsSearch) else wrappers[0]
        seconds.append(time.perf_counter() - begin)
        minti.save_embeddings(wrapper, files[name])
        alone += [(seen, toy_truth(toy)) for seen in draw(study, [f"a photo of a {name}"] * PER_PROMPT, model)]
        styles = [style for style in world.STYLES if style != "photo" for _ in range(4)]
        seen = draw(study, [f"{world.STYLES[style]} a {name}" for style in styles], model)
        styled += [(verdict, {"style": style, "shape_0": toy.shape}) for verdict, style in zip(seen, styles)]
    rows = {f"one learned word, {len(toys)} x {PER_PROMPT} photos": rates(alone), "in other styles": rates(styled)}

    model, hits = study.fresh(), []
    for name in names:
        minti.load_embeddings(model, files[name])
    for i in range(0, len(toys) - 1, 2):
        for verdict in draw(study, [f"a {names[i]} next to a {names[i + 1]}"] * PER_PROMPT, model):
            hits += [recognised(verdict, toys[i]), recognised(verdict, toys[i + 1])]
    rows["two learned words in one prompt"] = {"recognised": sum(hits) / len(hits)} if hits else {}
    each = {name: rates(alone[i * PER_PROMPT : (i + 1) * PER_PROMPT]) for i, name in enumerate(names)}
    return rows, {"seconds": seconds, "steps": steps, "each": each}


def guidance_costs(study: Study, batch: int = 8) -> list[dict[str, Any]]:
    """Exercise E4, question 2: evaluations, time, and how far the images are from those of the exact run.

    All images start from the same noise; the exact run samples them one by one.
    """
    args, model = study.args, study.model
    rng = np.random.default_rng((args.seed, 12))
    prompts = [f"a photo of a {name}" for name in rng.choice(list(world.NAMED), batch, replace=False)]
    how = {"num_inference_steps": args.steps, "sampler": "ddim", "guidance_scale": args.guidance_scale}
    noise = torch.randn(1, *model.latents_shape(1)[1:], generator=generators(args.seed, 1)[0])
    last = model.scheduler.config.num_train_timesteps - 1
    half = (last // 2, last)
    alone, together, one_more = [[prompt] for prompt in prompts], [prompts], [[*prompts, ""]]
    ways = {  # {name: (batches, further options)}
        "exact, one by one": (alone, {}),
        "exact, as one batch": (together, {}),
        "first step shared": (together, {"cfg": first_step_shared}),
        "one unconditional trajectory for all": (one_more, {"cfg": unconditional_shared}),
        "the same, noisier half only": (one_more, {"cfg": partial(unconditional_shared, interval=half)}),
        "refreshed every 2nd step": (together, {"cfg": Conditions(model, refresh_every=2)}),
        "refreshed every 5th step": (together, {"cfg": Conditions(model, refresh_every=5)}),
        "the noisier half only": (together, {"cfg": Conditions(model, interval=half)}),
        "none": (together, {"guidance_scale": 1.0}),
    }
    rows, exact = [], None
    for name, (batches, way) in ways.items():
        start, evaluations, parts = time.perf_counter(), 0, []
        for part in batches:
            *_, step = minti.sample_steps(model, part, latents=noise, **(how | way))
            evaluations += step.evaluations
            parts.append(step.latents)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            pixels = model.decode(torch.cat(parts)[:batch]).clamp(-1, 1)
        exact = pixels if exact is None else exact
        deviation = (pixels - exact).abs().mean().item() * 127.5
        rows.append({"way": name, "evaluations": evaluations, "seconds": seconds, "deviation": deviation})
    return rows


PARTS = {
    "reconstruction": (reconstruction, (*TOY, *SCENE)),
    "prompts": (prompts, (*TOY, *SCENE)),
    "inversion": (inversion, (*TOY, "style", "recognised")),
}


def main() -> None:
    """All measures, as tables and as JSON."""
    count_help = "prompts of each kind; six times as many reconstructions"
    parser = options(__doc__, "outputs/evaluation", count=(160, 1, count_help), steps=50)
    parser.add_argument("--only", choices=(*PARTS, "guidance"), help="one part only")
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddpm")
    parser.add_argument("--toys", choices=TOYS, default="test", help="which held-out toys to learn")
    parser.add_argument("--vectors", type=whole_or_auto(1), default=1, help="embedding vectors of a word, or 'auto'")
    parser.add_argument("--initializer", type=filled, default="toy", help="the initializer token, or 'auto'")
    study = Study(parser)
    only, results = study.args.only, {}
    for name, (measure, columns) in PARTS.items():
        if only in (None, name):
            rows, details = measure(study)
            results[name] = rows | details
            print(accuracies(rows, columns), end="\n\n")
            if details:
                print(f"steps: {details['steps']}; seconds: {[round(s, 1) for s in details['seconds']]}\n")
    if only in (None, "guidance"):
        results["guidance"] = guidance_costs(study)
        print(f"guidance, 8 prompts, {study.args.steps} steps; deviation in grey levels")
        print(markdown(results["guidance"], {"way": "", "evaluations": "", "seconds": ".1f", "deviation": ".2f"}))
    write_json(study.folder / "measures.json", results)


if __name__ == "__main__":
    run(main)
