"""Settings that could only waste time are refused before anything is loaded; clipping; the validation set."""

import math

import pytest
import torch
from helpers import learning, pictures, seeded, wrapper

import minti
from minti.personalization.augmented_images import AugmentedImages
from minti.runs.monitor import ValidationSet


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"max_row_norm": value}, "max_row_norm = ") for value in (-1.0, 0, math.nan, math.inf)),
        *(({"max_gradient_norm": value}, "max_gradient_norm = ") for value in (-1.0, 0, math.nan, math.inf)),
        *(({"learning_rate": value}, "learning_rate = ") for value in (-1e-3, math.nan, math.inf)),
        *(({"weight_decay": value}, "weight_decay = ") for value in (-0.1, math.nan)),
        ({"warmup_steps": -1}, "warmup_steps = -1"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**63}, "seed = 9223372036854775808; expected a whole number from 0 to 9,223,372,036,854,775,807"),
        ({"num_vectors": 0}, "num_vectors = 0; expected a whole number from 1"),
        ({"num_vectors": 1001}, "num_vectors = 1001; expected a whole number from 1 to 1,000"),
        ({"templates": ()}, "templates is empty"),
        ({"placeholder_token": ""}, "placeholder token '' is empty"),
        ({"lr_schedule": "cosine"}, "say with `steps` which that is"),
        ({"lr_schedule": "cosine", "max_steps": 100}, "say with `steps` which that is"),
    ],
)
def test_settings_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        minti.TextualInversionConfig(**options)


def test_the_most_that_is_allowed():
    config = minti.TextualInversionConfig(num_vectors=1000, seed=2**63 - 1)
    assert (config.num_vectors, config.seed) == (1000, 2**63 - 1)


def test_a_cosine_ends_at_zero(tiny):
    """At its last step, which `steps` names: 1/2 (1 + cos(pi i / n)) before it."""
    w = wrapper(tiny, steps=4, lr_schedule="cosine")
    rates = [state.learning_rate for state in learning(w)]
    assert rates == pytest.approx([0.01 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)])


# --- clipping ---------------------------------------------------------------------------------------------------------


def gradients(w, optimizer):
    """The new rows' gradient as the optimizer gets it, and the state of that step."""
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(w.embedding.gradients()[0].detach().clone()))
    state = next(minti.textual_inversion(w, pictures(), optimizer))
    return seen[0], state


@pytest.mark.parametrize("form", ["new_rows", "restore"])
def test_the_optimizer_gets_the_clipped_gradient(tiny_folder, form):
    """g max / |g| where |g| is above max, else g; the norm that is shown is the one before."""
    whole = []
    for limit in (None, 1e-3, 1e6):
        model = minti.StableDiffusion.from_pretrained(tiny_folder)
        w = wrapper(model, row_update=form, max_gradient_norm=limit, num_vectors=2)
        gradient, state = gradients(w, minti.prepare_for_textual_inversion(w))
        whole = gradient if limit is None else whole
        norm = torch.linalg.vector_norm(whole).item()
        assert norm > 2e-3, "the test needs a gradient that is clipped"
        expected = whole * (1e-3 / norm) if limit == 1e-3 else whole
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=0)
        assert state.gradient_norm == pytest.approx(norm)


# --- the validation set -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "flip"), [(200, False), (100, True), (5, False), (3, True), (16, False), (17, False)]
)
def test_the_validation_set_is_spread_over_all_images(tiny, count, flip):
    """Each of them as often as any other, or one more; of too many, one in every so many, mirror images included."""
    grey = torch.linspace(-1, 1, count)[:, None, None, None].expand(count, 3, 16, 16).clone()
    grey[..., :8] += 0.5  # so that the mirror image is another
    data = AugmentedImages(tiny, grey, flip=flip)
    data.logvar.fill_(-30)  # every draw is the mean
    size, total = 16, len(data)
    fixed = ValidationSet(data, size, seeded())
    distances = (fixed.latents[:, None] - tiny.scale(data.mean)[None]).flatten(2).norm(dim=2)  # size total
    numbers = sorted(distances.argmin(dim=1).tolist())
    if total > size:
        assert len(set(numbers)) == size
        edges = [i * total // size for i in range(size + 1)]
        assert all(low <= number < high for number, low, high in zip(numbers, edges, edges[1:]))
    else:
        counts = [numbers.count(i) for i in range(total)]
        assert set(counts) <= {size // total, -(-size // total)}
    if flip:
        assert min(numbers) < count <= max(numbers)
