"""A class-conditional model: the label against diffusers' class embedding, guidance, what a recipe is, and training."""

from dataclasses import asdict
from pathlib import Path

import diffusers
import pytest
import torch
import torch.nn.functional as F
from helpers import seeded
from running import script_inside
from torch import nn

from class_conditional import mixed, uphill
from compare_training import RECIPES, kept, table
from minti.adapter import Adapter
from minti.evaluation.distribution import fit_gaussian, frechet_distance
from minti.sampling import conditional
from small_diffusion import LOSSES, ClassConditional, Recipe, clipped, new_model, sampled, training
from small_toys import CLASSES, HEADS, Classifier, bootstrap, measured, small_toys, small_unet_config
from world import BACKGROUNDS

EXAMPLES = Path(__file__).parents[2] / "examples"
WIDTHS, K = (8, 16), len(CLASSES)


def twins(**embedding):
    """diffusers' UNet with a class embedding, random, and ours with its weights."""
    torch.manual_seed(0)
    config = small_unet_config(WIDTHS)
    kinds = {"mid_block_type": "UNetMidBlock2DCrossAttn", **embedding}
    theirs = diffusers.UNet2DConditionModel(**asdict(config), **kinds).eval()
    ours = ClassConditional(config).eval()
    weights = theirs.state_dict()
    label = {key: weights.pop(key) for key in list(weights) if key.startswith("class_embedding")}
    ours.unet.load_state_dict(weights)
    return theirs, ours, label["class_embedding.weight"]


def predicted(theirs, pixels, timesteps, classes):
    """diffusers' prediction, of blocks of 2 x 2 pixels."""
    nothing = torch.zeros(len(pixels), 1, 8)
    output = theirs(F.pixel_unshuffle(pixels, 2), timesteps, nothing, class_labels=classes).sample
    return F.pixel_shuffle(output, 2)


@pytest.mark.fast
@torch.no_grad()
def test_a_one_hot_label_equals_diffusers_class_embedding():
    """`num_class_embeds`: a row of a table; a one-hot vector times the table is that row, bit for bit."""
    theirs, ours, rows = twins(num_class_embeds=K)
    ours.label.projection.weight.copy_(rows.T)
    x, t, classes = torch.randn(3, 3, 16, 16), torch.tensor([3, 400, 999]), torch.tensor([0, 5, 7])
    expected = predicted(theirs, x, t, classes)
    assert expected.std() > 0.01
    assert not torch.equal(expected, predicted(theirs, x, t, classes.flip(0)))
    assert torch.equal(ours(x, t, F.one_hot(classes, K).float()), expected)


@pytest.mark.fast
@torch.no_grad()
def test_a_blended_label_equals_diffusers_projection():
    """`class_embed_type="simple_projection"` takes vectors of any numbers: here 0.7 of a class and 0.3 of another."""
    theirs, ours, matrix = twins(class_embed_type="simple_projection", projection_class_embeddings_input_dim=K)
    theirs.class_embedding.bias.zero_()
    ours.label.projection.weight.copy_(matrix)
    blended = torch.stack([mixed(2, 6, 0.7), mixed(1, 0, 0.3), torch.zeros(K)])
    assert blended[0].tolist() == pytest.approx([0, 0, 0.7, 0, 0, 0, 0.3, 0])
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([3, 400, 999])
    assert torch.equal(ours(x, t, blended), predicted(theirs, x, t, blended))


@pytest.mark.fast
@torch.no_grad()
def test_the_label_leaves_no_trace_and_its_unet_is_the_plain_one():
    model = new_model(Recipe(), 0, WIDTHS)
    x, t, labels = torch.randn(2, 3, 16, 16), torch.tensor([3, 700]), torch.eye(K)[:2]
    model.label.projection.weight.normal_()
    with_label, without = model(x, t, labels), model(x, t, torch.zeros(2, K))
    assert isinstance(model.label, Adapter)
    assert not torch.equal(with_label, without)
    plain = model.unet(F.pixel_unshuffle(x, 2), t, torch.zeros(2, 1, 8))  # no hooks are left
    assert torch.equal(F.pixel_shuffle(plain, 2), without)


@pytest.mark.fast
@torch.no_grad()
def test_without_skip_connections_nothing_but_the_bottom_reaches_the_decoder():
    """The same weights and as many; what comes out depends on the image through the bottom alone."""
    both = [new_model(Recipe(skips=skips), 3, WIDTHS).unet for skips in (True, False)]
    assert all(torch.equal(a, b) for a, b in zip(both[0].state_dict().values(), both[1].state_dict().values()))
    x, t, nothing = torch.randn(2, 12, 8, 8), torch.tensor([5, 5]), torch.zeros(2, 1, 8)
    time = both[1].embed_time(t, x.dtype)
    bottom, skips = both[1].left(x, time, nothing)
    others = [torch.randn_like(skip) for skip in skips]
    assert torch.equal(both[1].right(bottom, others, time, nothing), both[1](x, t, nothing))
    assert not torch.equal(both[0].right(bottom, others, time, nothing), both[0](x, t, nothing))


@pytest.mark.fast
@pytest.mark.parametrize("name", ["epsilon", "sample", "v_prediction"])
def test_the_clipped_prediction_is_diffusers_clip_sample(name):
    """A step of DDIM with `clip_sample`, from a prediction that leaves [-1, 1]."""
    scheduler = Recipe(prediction=name).scheduler()
    config = asdict(scheduler.config) | {"clip_sample": True}
    theirs = diffusers.DDIMScheduler(**{k: v for k, v in config.items() if v is not None})
    theirs.set_timesteps(50)
    x, output = (3 * torch.randn(2, 3, 4, 4, generator=seeded(seed)) for seed in (0, 1))
    t = 500
    step = theirs.step(output, t, x, use_clipped_model_output=True)
    clean, noise = scheduler.clean_and_noise(clipped(scheduler, lambda x, t: output)(x, t), x, t)
    assert (step.pred_original_sample.abs() == 1).any()
    torch.testing.assert_close(clean, step.pred_original_sample, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scheduler.add_noise(clean, noise, 480), step.prev_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.fast
@torch.no_grad()
def test_guidance_without_a_classifier_in_both_notations():
    """s = 1 + w: one step of DDIM by hand, with (1 + w) epsilon(x, y) - w epsilon(x, 0)."""
    recipe, w = Recipe(), 2.0
    scheduler, model = recipe.scheduler(), new_model(recipe, 0, WIDTHS)
    labels, noise = torch.eye(K)[[1, 4]], torch.randn(1, 3, 16, 16, generator=seeded(2)).expand(2, -1, -1, -1)
    with_label, without = (conditional(model, some)(noise, 0) for some in (labels, torch.zeros(2, K)))
    expected = scheduler.clean_from_noise(noise, (1 + w) * with_label - w * without, 0).clamp(-1, 1)
    found = sampled(model, scheduler, labels, 1 + w, steps=1, seed=2, alike=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.fast
def test_classifier_guidance_adds_the_gradient_to_the_score():
    """score' = score + s grad log p(y | x_t, t), of each image's own class."""
    scheduler, classes, t, s = Recipe().scheduler(), torch.tensor([2, 5, 0]), 400, 3.0
    torch.manual_seed(0)
    noisy = Classifier(WIDTHS).requires_grad_(False)
    x, output = torch.randn(2, 3, 16, 16, generator=seeded()), torch.randn(2, 3, 16, 16, generator=seeded(1))
    guided = uphill(noisy, scheduler, classes, s)(slice(1, 3))(lambda x, t: output)(x, t)
    leaf = x.clone().requires_grad_()
    loss = F.cross_entropy(noisy(leaf, torch.tensor([t, t]))["shape"], classes[1:], reduction="sum")
    (slope,) = torch.autograd.grad(-loss, leaf)
    difference = scheduler.score_from_noise(guided, t) - scheduler.score_from_noise(output, t)
    assert slope.abs().max() > 1e-4
    torch.testing.assert_close(difference, s * slope, rtol=1e-3, atol=1e-5)


@pytest.mark.fast
def test_recipes_draw_the_same_batches_and_differ_in_their_losses():
    """The same images, timesteps, noise and label drops; the loss is torch's, of the right target."""
    pixels, classes = torch.rand(6, 3, 16, 16, generator=seeded()) * 2 - 1, torch.arange(6)
    batches, losses = [], {}
    for name, change in RECIPES.items():
        recipe = Recipe(**change, batch_size=4)
        trainer = training(new_model(recipe, 0, WIDTHS), recipe, pixels, classes, 5)
        batches.append(batch := trainer.draw(torch.Generator().manual_seed(1)))
        clean, labels, timesteps, noise = batch
        scheduler = recipe.scheduler()
        with torch.no_grad():
            loss = trainer.loss(trainer.adapter, batch)
            output = trainer.adapter.module(scheduler.add_noise(clean, noise, timesteps), timesteps, labels)
        target = {"epsilon": noise, "sample": clean}.get(recipe.prediction, scheduler.velocity(clean, noise, timesteps))
        difference = (output - target).double()
        by_hand = {
            "L2": difference.square(),
            "L1": difference.abs(),
            "Huber": torch.where(difference.abs() < 0.1, difference**2 / 2, 0.1 * (difference.abs() - 0.05)),
        }[recipe.loss].mean()
        torch.testing.assert_close(loss.double(), by_hand, rtol=1e-4, atol=1e-5)
        losses[name] = loss.item()
    for other in batches[1:]:
        assert all(torch.equal(a, b) for a, b in zip(batches[0][::2], other[::2]))
        assert torch.equal(batches[0][3], other[3])
    assert len(LOSSES) == 3
    assert len({round(loss, 5) for loss in losses.values()}) > 7


@pytest.mark.fast
def test_labels_are_dropped_with_their_probability():
    pixels, recipe = torch.zeros(2, 3, 16, 16), Recipe(batch_size=4000)
    trainer = training(new_model(recipe, 0, WIDTHS), recipe, pixels, torch.tensor([3, 4]), 0)
    labels = trainer.draw(seeded())[1]
    dropped = (labels.sum(dim=1) == 0).double().mean().item()
    assert abs(dropped - recipe.dropout) < 4 * (recipe.dropout * (1 - recipe.dropout) / 4000) ** 0.5
    assert set(labels.argmax(dim=1)[labels.sum(dim=1) == 1].tolist()) == {3, 4}


@pytest.mark.fast
def test_labels_as_numbers_and_as_vectors():
    classes = torch.arange(K)
    assert torch.equal(Recipe().encoded(classes), torch.eye(K))
    numbers = Recipe(one_hot=False).encoded(classes)
    assert numbers.shape == (K, 1) and len(numbers.unique()) == K and (numbers > 0).all()  # 0 is no label


@pytest.mark.fast
def test_small_toys_are_the_middle_of_the_toybox_s():
    """The same images each time; a corner has the colour of the background's label, in a photo's light."""
    (pixels, labels), (again, _) = small_toys(6, 3), small_toys(4, 3)
    assert pixels.shape == (6, 3, 16, 16) and torch.equal(pixels[:4], again)
    assert -1 <= pixels.min() < pixels.max() <= 1
    corner = pixels[:, :, 0, 0] / 2 + 0.5
    for i in range(6):
        colour = torch.tensor(BACKGROUNDS[HEADS["background"][labels["background"][i]]])
        assert (corner[i] - 1.06 * colour).abs().max() < 0.03  # a photo's light falls from the top


@pytest.mark.fast
def test_measures_of_images_and_their_errors():
    """A judge that says the first class always; the bootstrap of a mean is its standard error."""
    torch.manual_seed(0)
    judge = Classifier(WIDTHS).eval().requires_grad_(False)
    nn.init.zeros_(judge.heads["shape"].weight)
    judge.heads["shape"].bias.copy_(torch.eye(K)[0] * 50)
    pixels, real = torch.rand(40, 3, 16, 16, generator=seeded()) * 2 - 1, torch.randn(50, 64, generator=seeded())
    found = measured(judge, pixels, torch.tensor([0, 1, 2, 3] * 10), real)
    assert found["right"] == 0.25
    assert found["right_error"] == pytest.approx((0.25 * 0.75 / 40) ** 0.5)
    features = judge.features(pixels, torch.zeros(40, dtype=torch.long))
    assert found["fid"] == pytest.approx(frechet_distance(fit_gaussian(features), fit_gaussian(real)))
    assert found["inception_score"] == pytest.approx(1)
    x = torch.randn(400, 1, generator=seeded())
    assert bootstrap(lambda rows: rows.mean().item(), x, 200) == pytest.approx(x.std().item() / 20, rel=0.2)


# --- at length --------------------------------------------------------------------------------------------------------


def test_training_learns_one_batch():
    """100 steps on eight images halve the loss; that of zeros is 1."""
    pixels, labels = small_toys(8, 0)
    recipe = Recipe(steps=100, batch_size=16)
    trainer = training(new_model(recipe, 0), recipe, pixels, labels["shape"], 0)
    losses = [step.loss for step in trainer]
    assert losses[0] > 0.9
    assert sum(losses[-10:]) / 10 < 1 / 2


SHORT = ("--steps", 3, "--sampling-steps", 2, "--pictures", 64, "--count", 16, "--quiet", "--output")


def test_the_exercise(tmp_path):
    options = ("--classifier-steps", 2, "--scales", 0, 1, "--classifier-scales", 1, "--mixed", 1, *SHORT, tmp_path)
    said = script_inside("toybox/class_conditional.py", *options).stdout
    ways = [line.split("|")[1].strip() for line in said.split("\n\n")[1].splitlines()[2:]]
    assert ways[:2] == ["the same true images", "other true images"]
    assert ways[2:] == ["pure noise", "no label", "label, w = 0", "label, w = 1", "classifier, s = 1"]
    assert 0 <= float(said.splitlines()[4].split("|")[3].split()[0]) < 0.01  # FID of a set with itself
    assert {path.name for path in tmp_path.glob("*.png")} == {"classes.png", "mixed.png"}


def test_the_study_adds_seeds_to_its_table(tmp_path):
    """A second call measures what is new only, and the table is of all rows."""
    options = ("--judge-steps", 2, *SHORT, tmp_path, "--ways", "predicts x_0", "--seeds")
    script_inside("toybox/compare_training.py", *options, 0)
    first = kept(tmp_path / "training.csv")
    said = script_inside("toybox/compare_training.py", *options, 0, 1).stdout
    rows = kept(tmp_path / "training.csv")
    assert [(row["recipe"], row["seed"]) for row in rows] == [
        ("true images", 0), ("predicts x_0", 0), ("predicts x_0", 1)
    ]  # fmt: skip
    assert rows[:2] == first
    assert table(rows) in said


@pytest.mark.fast
def test_the_table_of_the_page_is_that_of_the_stored_rows():
    """What the page says each choice is worth: `compare_training.py`'s training.csv."""
    page = (EXAMPLES / "class_conditional.md").read_text(encoding="utf-8")
    assert table(kept(EXAMPLES / "toybox/training.csv")) in page
