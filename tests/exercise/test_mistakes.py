"""minti's own functions are right; mistakes, written down as a learner would, are recognised by their names."""

import e4_mistakes
import pytest
from running import ROOT

from exercise.grader.part import judge
from exercise.grader.submission import PARTS, functions, judged, lesson

EXERCISE = ROOT / "examples/exercise"
HOLE = "raise NotImplementedError"
NORMED = "a, b = (x / x.norm(dim=-1, keepdim=True) for x in (drawn, training)); "
NORMED_ALONE = "a = training / training.norm(dim=-1, keepdim=True); n = len(a); "
PATCH = """copy, step = weight.detach(){clone}, optimizer.step
    @torch.no_grad()
    def patched(*args, **kwargs):
        {body}
    optimizer.step = patched"""
LOSS = """noise = torch.randn(latents.shape, generator=generator)
    noisy = wrapper.scheduler.add_noise(latents, noise, timestep_idx)
    {}"""
ASK = "prediction = wrapper.unet({}, {}, embeddings); return {}"
LOOP = """losses = []
    for i in range(steps):
        batch = draw()
        value = loss(batch)
        {}
        losses.append(value.item())
    return losses"""
LEFT = "with torch.enable_grad():\n        x = x.clone().requires_grad_(); {}.backward(); return x.grad"


def patch(body, clone=".clone()"):
    return PATCH.format(clone=clone, body=body)


def asked(noisy="noisy", told="timestep_idx", result="((prediction - noise) ** 2).mean()"):
    return LOSS.format(ASK.format(noisy, told, result))


UNSEEDED = asked().replace("torch.randn(latents.shape, generator=generator)", "torch.randn_like(latents)")
RATES = "a = alphas_cumprod[timesteps][:, None, None, None]; return {}"
DDPM = "b = betas[t]; a = alphas_cumprod[t]; x = latents; e = noise; return {}"
DDIM = "A = alphas_cumprod; x0 = {}; a = {}; return a**0.5 * x0 + {} * noise"
X0 = "(latents - (1 - A[t])**0.5 * noise) / A[t]**0.5"
A_S = "A[s] if s >= 0 else torch.tensor(1.0)"
MAP = "w = (q @ k.mT / q.shape[-1]**0.5).softmax(-1); b = len(w); return {}"

# (part, function, what stands in its hole, how the mistake's name begins)
WRITTEN = [
    ("schedule", "make_alphas_cumprod", "return torch.cumprod(betas, 0)", "the product of the betas"),
    ("schedule", "make_alphas_cumprod", "return 1 - betas.cumsum(0)", "a sum where"),
    (
        "schedule",
        "make_alphas_cumprod",
        "a = 1 - betas; return torch.stack([a[:i].prod() for i in range(len(a))])",
        "an index off by one",
    ),
    ("schedule", "add_noise", RATES.format("a * clean + (1 - a) * noise"), "alpha-bar where its root"),
    ("schedule", "add_noise", RATES.format("(1 - a).sqrt() * clean + a.sqrt() * noise"), "signal and noise exchanged"),
    ("schedule", "add_noise", RATES.format("a.sqrt() * clean + (1 - a.sqrt()) * noise"), "a noise rate that"),
    (
        "schedule",
        "add_noise",
        "timesteps = timesteps - 1; " + RATES.format("a.sqrt() * clean + (1 - a).sqrt() * noise"),
        "the timestep's index off by one",
    ),
    (
        "schedule",
        "add_noise",
        "a = alphas_cumprod[timesteps]; return a.sqrt() * clean + (1 - a).sqrt() * noise",
        "each image's level",
    ),
    (
        "schedule",
        "add_noise",
        RATES.format("a.sqrt() * clean + (1 - a).sqrt() * torch.randn(clean.shape)"),
        "noise of its own",
    ),
    (
        "steps",
        "ddpm_step",
        DDPM.format("(x - b / (1 - a) * e) / (1-b)**0.5 + (b**0.5*z if t else 0)"),
        "1 - alpha-bar where its",
    ),
    (
        "steps",
        "ddpm_step",
        "A = torch.cat([torch.ones(1), alphas_cumprod])  # of t + 1 and t\n    "
        + DDPM.format("(x - b / (1-a)**0.5 * e) / (1-b)**0.5 + ((1 - A[t]) / (1 - a) * b)**0.5 * z"),
        "the posterior's variance",
    ),
    ("steps", "ddim_step", DDIM.format(X0, A_S.replace(">=", ">"), "(1 - a)**0.5"), "s = 0 taken"),
    ("steps", "ddpm_step", DDPM.format("(x - b / (1-a)**0.5 * e) / (1-b)**0.5 + (b * z if t else 0)"), "beta as the"),
    ("steps", "ddpm_step", DDPM.format("(x - b / (1-a)**0.5 * e) / (1-b)**0.5 + b**0.5 * z"), "noise in the last"),
    (
        "steps",
        "ddpm_step",
        DDPM.format("(x - b / (1-a)**0.5 * e) / a**0.5 + (b**0.5*z if t else 0)"),
        "alpha-bar where",
    ),
    ("steps", "ddpm_step", DDPM.format("(x - b * e) / (1-b)**0.5 + (b**0.5 * z if t else 0)"), "the predicted noise"),
    (
        "steps",
        "ddpm_step",
        DDPM.format("(x - (1-a)**0.5 * e) / (1-b)**0.5 + (b**0.5*z if t else 0)"),
        "the whole noise",
    ),
    ("steps", "ddim_step", DDIM.format(X0, "A[s]", "(1 - a)**0.5"), "alpha-bar of s = -1"),
    ("steps", "ddim_step", DDIM.format(X0, A_S, "(1 - A[t])**0.5"), "the noise put back at the level"),
    ("steps", "ddim_step", DDIM.format(X0.replace("A[t]**0.5", "A[t]"), A_S, "(1 - a)**0.5"), "alpha-bar where its"),
    ("steps", "ddim_step", DDIM.format(X0, A_S, "0"), "no noise put back"),
    ("guidance", "guided", "return cond + scale * (uncond - cond)", "the two predictions exchanged"),
    ("guidance", "guided", "return (1 + scale) * cond - scale * uncond", "w taken for"),
    ("guidance", "guided", "return uncond + scale * cond", "the scale on the prompt's"),
    ("guidance", "guided", "return scale * (cond - uncond)", "the difference alone"),
    ("guidance", "guided", "return uncond + (scale - 1) * (cond - uncond)", "s - 1 in the formula"),
    ("guidance", "evaluations", "return steps * pictures * (1 if scale == 1 else 2)", "both predictions in every"),
    ("guidance", "evaluations", "return steps * pictures", "the unconditional prediction not"),
    (
        "guidance",
        "evaluations",
        "return pictures * sum(2 if t % every == 0 else 1 for t in range(steps))",
        "scale 1 counted",
    ),
    (
        "guidance",
        "evaluations",
        "return pictures * (steps if scale == 1 else steps + steps // every)",
        "steps divided by k",
    ),
    (
        "guidance",
        "evaluations",
        "return steps * pictures + (0 if scale == 1 else (steps + every - 1) // every)",
        "one unconditional",
    ),
    ("attention", "attention", "return (q @ k.transpose(-1, -2)).softmax(-1) @ v", "the scores not divided"),
    ("attention", "attention", "return (q @ k.mT / q.shape[-1]).softmax(-1) @ v", "the scores divided by d"),
    ("attention", "attention", "return (q @ k.mT / q.shape[-1] ** 0.5).softmax(2) @ v", "softmax over the queries"),
    ("attention", "attention", "return (q @ k.mT / q.shape[-1] ** 0.5).softmax(1) @ v", "softmax over the heads"),
    (
        "attention",
        "word_map",
        MAP.format("w.mean(1)[:, :, places].sum(-1).view(b, width, height).transpose(1, 2)"),
        "height",
    ),
    ("attention", "word_map", MAP.format("w.mean(1)[:, :, places].mean(-1).view(b, height, width)"), "a mean over"),
    ("attention", "word_map", MAP.format("w.sum(1)[:, :, places].sum(-1).view(b, height, width)"), "a sum over"),
    (
        "attention",
        "word_map",
        MAP.format("sum(w.mean(1)[:, :, p - 1] for p in places).view(b, height, width)"),
        "the token before",
    ),
    (
        "attention",
        "word_map",
        "w = q @ k.mT / q.shape[-1]**0.5; return w.mean(1)[:, :, places].sum(-1).view(len(q), height, width)",
        "scores, where weights",
    ),
    ("loss", "scaled_latents", "return encoded.sample() * scaling_factor", "drawn without the generator"),
    ("loss", "scaled_latents", "return encoded.mean * scaling_factor", "the distribution's mean"),
    ("loss", "diffusion_loss", UNSEEDED, "noise that does not come"),
    (
        "loss",
        "diffusion_loss",
        LOSS.format("with torch.no_grad(): " + ASK.format("noisy", "timestep_idx", "0")).replace("; return 0", "")
        + "\n    return ((prediction - noise) ** 2).mean()",
        "right as a number, but",
    ),
    ("loss", "scaled_latents", "return encoded.sample(generator)", "the scaling factor forgotten"),
    ("loss", "scaled_latents", "return encoded.sample(generator) / scaling_factor", "divided by"),
    (
        "loss",
        "diffusion_loss",
        asked(result="((prediction - torch.randn(noise.shape, generator=generator)) ** 2).mean()"),
        "the noise drawn twice",
    ),
    ("loss", "diffusion_loss", asked(result="((prediction - latents) ** 2).mean()"), "the clean latents as"),
    ("loss", "diffusion_loss", asked(noisy="latents"), "the clean latents shown"),
    ("loss", "diffusion_loss", asked(noisy="latents + noise"), "noise added without"),
    ("loss", "diffusion_loss", asked(told="timestep_idx + 1"), "the network told another"),
    ("loss", "diffusion_loss", asked(result="((prediction - noise) ** 2).sum()"), "a sum of squares"),
    (
        "word",
        "extended",
        "return torch.cat([weight[[initializer_id] * num_vectors], weight])",
        "the new rows before",
    ),
    ("word", "extended", "return torch.cat([weight, torch.zeros(num_vectors, weight.shape[1])])", "the new rows are"),
    ("word", "extended", "return torch.cat([weight, weight[initializer_id : initializer_id + 1]])", "one new row"),
    (
        "word",
        "keep_the_rest",
        "weight.register_hook(lambda g: torch.cat([g[:first] * 0, g[first:]]))",
        "only the gradient zeroed",
    ),
    ("word", "keep_the_rest", patch("step(); weight[:first] = copy[:first]", clone=""), "nothing is put back"),
    ("word", "keep_the_rest", patch("weight[:first] = copy[:first]; step()"), "the old rows put back before"),
    ("word", "keep_the_rest", patch("step(); weight.copy_(copy)"), "the new rows put back as"),
    ("word", "keep_the_rest", patch("step(); weight[first:] = copy[first:]"), "the new rows put back, and"),
    ("word", "keep_the_rest", patch("step(); weight[:first + 1] = copy[:first + 1]"), "the first new row"),
    ("word", "keep_the_rest", patch("step(); weight[:first - 1] = copy[:first - 1]"), "the last old row"),
    ("loop", "learn", LOOP.format("value.backward(); optimizer.step()"), "the gradients of earlier"),
    (
        "loop",
        "learn",
        "batch = draw()\n    "
        + LOOP.format("optimizer.zero_grad(); value.backward(); optimizer.step()").replace("batch = draw()", "pass"),
        "one batch drawn",
    ),
    (
        "loop",
        "learn",
        LOOP.format("optimizer.step(); optimizer.zero_grad(); value.backward()"),
        "the step taken before",
    ),
    ("loop", "learn", LOOP.format("value.backward(); optimizer.zero_grad(); optimizer.step()"), "the gradient cleared"),
    (
        "loop",
        "learn",
        LOOP.format("optimizer.zero_grad(); value.backward(); optimizer.step()").replace("(steps)", "(steps + 1)"),
        "a step too many",
    ),
    (
        "loop",
        "learn",
        LOOP.format("optimizer.zero_grad(); value.backward(); optimizer.step()").replace(
            "value.item()", "value.item() + sum(losses[-1:])"
        ),
        "losses added up",
    ),
    (
        "loop",
        "learn",
        LOOP.format("optimizer.zero_grad(); value.backward(); optimizer.step()").replace(".item()", ""),
        "tensors kept",
    ),
    (
        "evaluation",
        "likeness",
        "return ((drawn / drawn.norm()) @ (training / training.norm()).T).mean().item()",
        "divided by the length of",
    ),
    (
        "evaluation",
        "among_themselves",
        NORMED_ALONE + "return torch.triu(a @ a.T, diagonal=1).sum().item() / (n * (n - 1))",
        "each pair once",
    ),
    ("evaluation", "position", "return max(0, min(1, (value - floor) / (ceiling - floor)))", "cut off"),
    ("evaluation", "likeness", "return (drawn @ training.T).mean().item()", "vectors that are not"),
    (
        "evaluation",
        "likeness",
        NORMED.replace("dim=-1", "dim=0") + "return (a @ b.T).mean().item()",
        "normalised over the wrong axis",
    ),
    ("evaluation", "likeness", NORMED + "return (a * b).sum(-1).mean().item()", "only image i"),
    (
        "evaluation",
        "likeness",
        "return torch.cosine_similarity(drawn.mean(0), training.mean(0), dim=0).item()",
        "the cosine of two means",
    ),
    ("evaluation", "among_themselves", NORMED_ALONE + "return (a @ a.T).mean().item()", "each image compared"),
    (
        "evaluation",
        "among_themselves",
        NORMED_ALONE + "return ((a @ a.T).sum() - n).item() / n**2",
        "the diagonal taken out",
    ),
    (
        "evaluation",
        "among_themselves",
        "s = training @ training.T; n = len(s); return s[~torch.eye(n, dtype=torch.bool)].mean().item()",
        "vectors that are not",
    ),
    ("evaluation", "position", "return (ceiling - value) / (ceiling - floor)", "floor and ceiling exchanged"),
    ("evaluation", "position", "return (value - floor) / ceiling", "divided by the ceiling"),
    (
        "lora",
        "start",
        "return torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)",
        "A and B both random",
    ),
    ("lora", "start", "return torch.zeros(rank, d_in), torch.zeros(d_out, rank)", "A and B both zero"),
    ("lora", "start", "return torch.zeros(rank, d_in), torch.randn(d_out, rank)", "A zero and B random"),
    ("lora", "start", "return torch.randn(d_in, rank), torch.zeros(rank, d_out)", "the shapes of A and B"),
    ("lora", "lora_forward", "return x @ weight.T + x @ down.T @ up.T", "alpha / r forgotten"),
    ("lora", "lora_forward", "return x @ weight.T + alpha * x @ down.T @ up.T", "alpha not divided"),
    ("lora", "lora_forward", "return x @ weight.T + len(down) / alpha * x @ down.T @ up.T", "r / alpha"),
    ("lora", "lora_forward", "return alpha / len(down) * x @ down.T @ up.T", "the frozen layer's"),
    ("lora", "lora_forward", "return x @ weight.T + alpha / len(up) * x @ down.T @ up.T", "alpha divided by d_out"),
    ("lora", "merged", "return weight + alpha / len(up) * up @ down", "alpha divided by d_out"),
    ("lora", "merged", "weight += alpha / len(down) * up @ down; return weight", "right, but `weight` itself"),
    ("lora", "merged", "return weight + up @ down", "alpha / r forgotten"),
    ("lora", "merged", "return weight + alpha * up @ down", "alpha not divided"),
    ("lora", "merged", "return alpha / len(down) * up @ down", "the update alone"),
    (
        "prior",
        "prompts",
        "s = f'{rare_word} {class_word}'; return template.replace('{}', s), template.replace('{}', s)",
        "the rare word in",
    ),
    ("prior", "prompts", "return template.format(rare_word), template.format(class_word)", "the thing called by"),
    (
        "prior",
        "prompts",
        "return template.format(class_word), template.format(rare_word + ' ' + class_word)",
        "the two prompts exchanged",
    ),
    (
        "prior",
        "prompts",
        "return template.format(f'{class_word} {rare_word}'), template.format(class_word)",
        "the class before",
    ),
    (
        "prior",
        "prompts",
        "return f'a photo of a {rare_word} {class_word}', f'a photo of a {class_word}'",
        "another template",
    ),
    (
        "prior",
        "prior_loss",
        "with torch.no_grad(): kept = loss(prior)\n    return loss(instance) + weight * kept",
        "the class's loss without",
    ),
    ("prior", "prior_loss", "return loss(instance) + loss(prior)", "lambda forgotten"),
    ("prior", "prior_loss", "return weight * loss(instance) + loss(prior)", "lambda on the thing's"),
    ("prior", "prior_loss", "return weight * (loss(instance) + loss(prior))", "lambda on both"),
    ("prior", "prior_loss", "return (1 - weight) * loss(instance) + weight * loss(prior)", "a mean weighted"),
    ("prior", "prior_loss", "return loss(instance) - weight * loss(prior)", "the class's loss subtracted"),
    (
        "gradient",
        "gradient_of",
        LEFT.format("log_probability(x).sum()").replace("x = x.clone().requires_grad_()", "x.requires_grad_()"),
        "right, but the sampler's own x",
    ),
    ("gradient", "gradient_of", LEFT.format("log_probability(x).mean()"), "the mean over the batch"),
    ("gradient", "gradient_of", LEFT.format("log_probability(x).exp().sum()"), "the gradient of the probability"),
    ("gradient", "gradient_of", LEFT.format("(-log_probability(x).sum())"), "the sign of a loss"),
    ("gradient", "guided_noise", "return noise + scale * (1 - alpha_bar) ** 0.5 * gradient", "a plus"),
    ("gradient", "guided_noise", "return noise - scale * gradient", "the factor of the score"),
    ("gradient", "guided_noise", "return noise - scale * (1 - alpha_bar) * gradient", "1 - alpha-bar where"),
    ("gradient", "guided_noise", "return noise - scale * alpha_bar ** 0.5 * gradient", "the signal's rate"),
    ("gradient", "guided_noise", "return noise - scale / (1 - alpha_bar) ** 0.5 * gradient", "divided by the noise's"),
    *e4_mistakes.WRITTEN,
]


@pytest.mark.parametrize("part, name, body, mistake", WRITTEN, ids=lambda value: str(value)[:30])
def test_a_mistake_is_recognised(part, name, body, mistake, tmp_path):
    before, after = (EXERCISE / f"{PARTS[part]}.py").read_text(encoding="utf-8").split(f"def {name}(")
    file = tmp_path / f"{PARTS[part]}.py"
    file.write_text(before + f"def {name}(" + after.replace(HOLE, body, 1), encoding="utf-8")
    (task,) = (task for task in lesson(part).tasks if task.name == name)
    verdict = judge(task, functions(file)[name], file)
    assert verdict.state == "mistake" and verdict.says.startswith(mistake), verdict.says


@pytest.mark.parametrize("part, name, body", e4_mistakes.RIGHT, ids=lambda value: str(value)[:30])
def test_another_way_to_write_it_is_right(part, name, body, tmp_path):
    before, after = (EXERCISE / f"{PARTS[part]}.py").read_text(encoding="utf-8").split(f"def {name}(")
    file = tmp_path / f"{PARTS[part]}.py"
    file.write_text(before + f"def {name}(" + after.replace(HOLE, body, 1), encoding="utf-8")
    (task,) = (task for task in lesson(part).tasks if task.name == name)
    verdict = judge(task, functions(file)[name], file)
    assert verdict.state == "right", verdict.says


def test_every_known_mistake_is_put_in_once():
    written = [(part, name, mistake) for part, name, _, mistake in WRITTEN]
    for part in PARTS:
        tasks = lesson(part).tasks
        known = [(part, task.name, mistake.name) for task in tasks for mistake in task.mistakes]
        assert len(known) >= 5
        for part, name, mistake in known:
            assert sum(w[:2] == (part, name) and mistake.startswith(w[2]) for w in written) == 1, mistake


@pytest.mark.parametrize("part", PARTS)
def test_the_holes_are_not_written_yet(part):
    verdicts = list(judged(EXERCISE, part))
    assert [(v.state, v.says) for v in verdicts] == [("unwritten", "not written yet")] * len(lesson(part).tasks)


@pytest.mark.parametrize("part", PARTS)
def test_minti_s_own_functions_are_right(part, tmp_path):
    tasks = lesson(part).tasks
    names = ", ".join(task.name for task in tasks)
    (tmp_path / f"{PARTS[part]}.py").write_text(
        f"from exercise.grader.lessons.{part} import {names}\n", encoding="utf-8"
    )
    assert [v.state for v in judged(tmp_path, part)] == ["right"] * len(tasks)
