"""On Apple's GPUs: the same as on the CPU, to other kernels' rounding. Skipped where there is none."""

import pytest
import torch
from helpers import learning, pictures, seeded, wrapper

import minti
from minti.denoising import SAMPLERS

pytestmark = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no GPU of Apple's (mps)")


@pytest.fixture
def both(tiny, tiny_folder):
    return tiny, minti.StableDiffusion.from_pretrained(tiny_folder, "mps")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples(both, sampler):
    options = {"sampler": sampler, "num_inference_steps": 3, "output": "latents"}
    cpu, mps = (minti.sample(model, ["a red cat"], generator=seeded(), **options).cpu() for model in both)
    assert (cpu - mps).norm() < 1e-3 * cpu.norm()


@pytest.mark.parametrize("options", [{}, {"row_update": "restore"}, {"min_snr": 5.0}, {"initializer_token": None}])
def test_learning_and_its_checkpoints(both, tmp_path, options):
    """Drawn by the same CPU generator: losses and vectors."""
    words = [wrapper(model, steps=3, num_vectors=2, **options) for model in both]
    cpu, mps = ([(state.loss, state.validation_loss) for state in learning(word)] for word in words)
    assert [loss for loss, _ in mps] == pytest.approx([loss for loss, _ in cpu], rel=1e-3)
    assert words[1].embedding.values.device.type == "mps"
    minti.save_checkpoint(words[1], tmp_path)
    assert minti.load_checkpoint(tmp_path).state["adapter"]["values"].device.type == "cpu"


def test_a_lora_and_a_word_learn_along(both):
    """Which takes a sum in float64, on the CPU."""
    for model in both:
        word = wrapper(model, steps=1)
        next(minti.textual_inversion(word, pictures()))
        config = minti.DreamBoothConfig(learns="lora", prior_weight=0.0, steps=1, initializer_token="toy")
        training = minti.DreamBooth(model, config, word)
        assert next(minti.dreambooth(training, pictures())).gradient_norm > 0
