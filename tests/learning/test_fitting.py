"""Images of any shape: padded to a square with a mask, or in buckets of aspect ratios."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.training_utils import find_nearest_bucket
from helpers import learning, seeded, train, wrapper
from PIL import Image, ImageOps

import minti
from minti.images import to_pixels
from minti.personalization.augmented_images import AugmentedImages
from minti.personalization.fitting import bucket, buckets
from minti.personalization.losses import weighted_loss
from minti.personalization.num_vectors_search import NumVectorsSearch, losses_of
from minti.runs.monitor import ValidationSet
from minti.textual_inversion import Batch

SD = SimpleNamespace(  # of the sizes that buckets depend on
    resolution=512,
    vae=SimpleNamespace(config=SimpleNamespace(factor=8)),
    unet=SimpleNamespace(config=SimpleNamespace(block_out_channels=(320, 640, 1280, 1280))),
)
PIXELS = {"fit": "bucket", "batch_size": 1}


def image(width, height, seed=0, mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(values, mode)


def test_cropping_is_the_default(tiny):
    """E4's transform, whatever shape an image has."""
    images = [image(30, 20), image(16, 16, 1), image(10, 40, 2)]
    data = AugmentedImages(tiny, images)
    assert torch.equal(data.pixels, torch.stack([to_pixels(each, 16) for each in images]))
    assert wrapper(tiny).config.training_images is None
    assert torch.equal(wrapper(tiny, fit="crop").config.training_images(tiny, images).mean, data.mean)


# --- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 16), (16, 32), (64, 16), (16, 16), (8, 4), (5, 5)])
def test_padding_is_that_of_pillow(tiny, size):
    """Where the image's edges lie on those of latents, two pixels wide; but for the colour, which is NumPy's "edge":
    the image's next to it."""
    data = AugmentedImages(tiny, [image(*size)], fit="pad")
    theirs = ImageOps.pad(image(*size), (16, 16), Image.Resampling.BICUBIC)
    inside = np.array(ImageOps.pad(Image.new("L", size, 255), (16, 16), Image.Resampling.NEAREST, color=0)) > 0
    assert torch.equal(data.pixels[0, :, inside], to_pixels(theirs, 16)[:, inside])
    assert torch.equal(data.masks[0, 0], torch.from_numpy(inside).float()[::2, ::2])
    left, top, right, bottom = Image.fromarray(inside).getbbox()
    edge = np.pad(theirs.crop((left, top, right, bottom)), ((top, 16 - bottom), (left, 16 - right), (0, 0)), "edge")
    assert torch.equal(data.pixels[0], to_pixels(Image.fromarray(edge), 16))


@pytest.mark.parametrize("size", [(31, 20), (20, 31), (1000, 3), (17, 16)])
def test_a_latent_is_either_image_or_padding(tiny, size):
    """The mask is all of 0 and 1, a rectangle in the middle; at most half a latent of the image is cut off."""
    data, factor = AugmentedImages(tiny, [image(*size)], fit="pad"), tiny.vae.config.factor
    assert set(data.masks.unique().tolist()) <= {0.0, 1.0}
    rows, columns = (data.masks[0, 0].any(dim=axis).nonzero().flatten() for axis in (1, 0))
    assert data.masks[0, 0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    for found, side in zip((columns, rows), size):
        assert abs(len(found) - max(1, side / max(size) * 16 / factor)) <= 0.5
        assert abs(found[0] - (8 - 1 - found[-1])) <= 1


def test_what_the_padding_looks_like_is_no_part_of_the_loss(tiny):
    """Of a UNet that sees each latent alone; a real one, and the VAE, see the colour beside the image, as context.
    There the gradient is zero, and the loss is the mean over the image alone."""
    data = AugmentedImages(tiny, [image(32, 12), image(10, 24, 1)], fit="pad")
    measure = wrapper(tiny, fit="pad").config.measure
    batch = data.batch(4, ["a toy"], seeded())
    inside = batch.masks.bool().expand_as(batch.latents)
    assert 0 < inside.float().mean() < 1
    tiny.unet = lambda latents, *_: 0.3 * latents
    latents = torch.where(inside, batch.latents, 7 * torch.randn(batch.latents.shape, generator=seeded()))
    noise = torch.where(inside, batch.noise, torch.zeros(()))
    other = batch._replace(latents=latents.requires_grad_(True), noise=noise)
    loss = weighted_loss(tiny, other, measure)
    noisy = tiny.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    errors = (tiny.scheduler.target(batch.latents, batch.noise, batch.timesteps) - 0.3 * noisy).square()
    expected = torch.stack([each[where].mean() for each, where in zip(errors, inside)]).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not latents.grad[~inside].any()
    assert latents.grad[inside].all()


def test_padding_and_masks_together(tiny):
    """Only what is opaque, within the image, counts."""
    pixels = np.full((8, 16, 4), 255, dtype=np.uint8)
    pixels[:, :4, 3] = 0
    data = AugmentedImages(tiny, [Image.fromarray(pixels, "RGBA")], masked=True, fit="pad", flip=True)
    expected = torch.zeros(2, 1, 8, 8)
    expected[0, :, 2:6, 2:] = expected[1, :, 2:6, :6] = 1
    assert torch.equal(data.masks, expected)
    assert AugmentedImages(tiny, [Image.fromarray(pixels, "RGBA")], fit="pad").masks.sum() == 8 * 4
    with pytest.raises(ValueError, match="image 0 has no alpha channel"):
        AugmentedImages(tiny, [image(32, 16)], masked=True, fit="pad")


# --- buckets ----------------------------------------------------------------------------------------------------------


def test_buckets_of_sd():
    """Multiples of 64 from 256 to 1024, no larger than 512 x 512, with no room for a further 64; with their mirror
    images, and 512 x 512 itself."""
    found = buckets(SD)
    assert (512, 512) in found
    assert {(w, h) for h, w in found} == set(found)
    assert {side for size in found for side in size} <= set(range(256, 1025, 64))
    assert {min(size) for size in found} == {256, 320, 384, 448, 512}
    assert max(map(max, found)) == 1024
    for h, w in found:
        assert h * w <= 512**2 < min(h, w) * (max(h, w) + 64) or (min(h, w) + 64) * max(h, w) > 512**2


def test_buckets_of_small_models(tiny, toybox):
    """Multiples of the strides of VAE and UNet, 2 * 4 and 4 * 4."""
    assert buckets(tiny) == [(8, 24), (8, 32), (16, 16), (24, 8), (32, 8)]
    assert all(side % 16 == 0 for size in buckets(toybox) for side in size)
    assert {(64, 64), (48, 80), (80, 48), (32, 128)} <= set(buckets(toybox))


def test_the_nearest_bucket_is_diffusers(tiny):
    for model, (w, h) in product((SD, tiny), product((1, 7, 300, 512, 640, 1000, 1777), repeat=2)):
        sizes = buckets(model)
        found = bucket(SimpleNamespace(width=w, height=h), sizes)
        assert found == sizes[find_nearest_bucket(h, w, sizes)]


def wide_and_tall():
    return [image(50, 16), image(16, 16, 1), image(16, 60, 2), image(20, 16, 3)]


SHAPES = [(8, 24), (16, 16), (32, 8), (16, 16)]


def test_each_image_is_cropped_to_its_bucket(tiny):
    """Its pixels are those of Pillow's fit, its latents those of its own encoding, and its noise has their shape."""
    data = AugmentedImages(tiny, wide_and_tall(), fit="bucket", flip=True)
    assert [tuple(2 * side for side in shape) for shape in data.shapes] == SHAPES * 2
    data.logvar.fill_(-60)  # every draw is the mean
    for i, (each, size) in enumerate(zip(wide_and_tall() * 2, SHAPES * 2)):
        pixels = to_pixels(ImageOps.fit(each, size[::-1], Image.Resampling.BICUBIC), size, flip=i >= 4)
        batch = data.with_masks(data_batch(data, i))
        assert batch.noise.shape == batch.latents.shape
        torch.testing.assert_close(batch.latents, tiny.scale(tiny.encode(pixels[None]).mean), rtol=0, atol=1e-6)


def data_batch(data, i):
    """A batch of an image, before it is cut to its shape."""
    latents = data.latents(torch.tensor([i]), seeded())
    return Batch(latents, latents, torch.tensor([3]), ["a toy"], [i])


def test_a_word_is_learned_from_buckets_with_a_validation_loss(tiny):
    """The mean of the losses of each by itself; and captions, masks and the number of vectors go with it."""
    w, states = train(tiny, wide_and_tall(), steps=4, **PIXELS)
    assert len(states) == 4
    monitor = w.trainer.monitor
    alone = losses_of(tiny, monitor.validation, w.prompts)
    assert monitor.evaluate(w.prompts) == pytest.approx(alone.mean().item(), rel=1e-5)
    seen = {tuple(batch.latents.shape[2:]) for _, batch in monitor.validation.batches(w.prompts, 1)}
    assert seen == {(h // 2, w // 2) for h, w in SHAPES}


def test_the_loss_of_a_bucket_is_that_of_its_image_alone(tiny):
    """Of the validation set too: latents and noise of the image's own shape through the UNet."""
    data = AugmentedImages(tiny, wide_and_tall(), fit="bucket")
    validation = ValidationSet(data, 8, seeded())
    for place, batch in validation.batches(["a toy"], 1):
        h, w = data.shapes[batch.indices[0]]
        assert torch.equal(batch.latents, validation.latents[place, :, :h, :w])
        assert torch.equal(batch.noise, validation.noise[place, :, :h, :w])
        assert batch.noise.std() > 0.5


def test_batches_of_several_shapes_are_refused_before_the_first_step(tiny):
    message = r"gives images of 3 shapes, which cannot share a batch; set batch_size \(--batch-size\) to 1"
    with pytest.raises(ValueError, match=message):
        learning(wrapper(tiny, fit="bucket", batch_size=2), wide_and_tall())
    with pytest.raises(ValueError, match="gives images of 2 shapes"):
        AugmentedImages(tiny, wide_and_tall()[:2], fit="bucket").batch(16, ["a toy"], seeded())
    assert "<concept>" not in tiny.words
    same = [image(50, 16), image(51, 16, 1)]  # all in one bucket
    _, states = train(tiny, same, fit="bucket", batch_size=2, steps=1)
    assert len(states) == 1


def test_buckets_have_masks_of_their_shapes(tiny):
    images = [image(50, 16, mode="RGBA"), image(16, 16, 1, mode="RGBA")]
    data = AugmentedImages(tiny, images, fit="bucket", masked=True)
    for _ in range(8):
        batch = data.batch(1, ["a toy"], seeded())
        assert batch.masks.shape[2:] == batch.latents.shape[2:]


def test_the_number_of_vectors_is_chosen_with_buckets(tiny):
    config = minti.TextualInversionConfig(steps=1, templates=("a {}",), initializer_token="toy", **PIXELS)
    search = NumVectorsSearch(tiny, config, wide_and_tall(), most=2, size=4)
    for word in search:
        next(minti.textual_inversion(word, wide_and_tall()))
    assert len(search.decisions) == 2


def test_an_unknown_fit():
    with pytest.raises(ValueError, match="unknown fit 'stretch'; expected one of crop, pad, bucket"):
        minti.TextualInversionConfig(fit="stretch")
