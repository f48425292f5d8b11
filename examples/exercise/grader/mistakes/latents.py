"""Part 5: what often goes wrong with the scaled latents."""

from exercise.grader.table import mistakes

ENCODED = "the argument `scaling_factor`; of the VAE, `003` 8"
SAMPLES = "two samples, one after the other, scaling_factor = 0.13"
SAME, OTHER = "the same seed gives the same", "another seed gives other latents"
ARGUMENTS = "encoded, generator, scaling_factor"
SCALED_LATENTS = mistakes(
    ARGUMENTS,
    "",
    """
    drawn without the generator that is given
        encoded.sample() * scaling_factor
        ? Would another run with the same seed get the same latents?
        @ the argument `encoded`
    """,
    by=(SAME,),
) + mistakes(
    ARGUMENTS,
    """
    x = encoded.sample(generator)
    def anew(): return encoded.sample(torch.Generator().manual_seed(generator.initial_seed()))
    """,
    """
    the scaling factor forgotten
        x
        ? The UNet was trained on latents of about variance one; what is the VAE's?

    divided by the scaling factor
        x / scaling_factor
        ? That is the direction for decoding. Which direction makes the numbers smaller?

    the distribution's mean, where a sample belongs
        encoded.mean * scaling_factor
        encoded.mean
        encoded.mean / scaling_factor
        ? The encoder returns a distribution; what do you take from it?
        @ the argument `encoded`

    the distribution's deviation, where a sample belongs
        encoded.std * scaling_factor
        ? The encoder returns a distribution; what do you take from it?
        @ the argument `encoded`

    0.18215 written into the code, where the argument belongs
        x * 0.18215
        ? Another model has another factor; which argument has it?

    the latents cut off at -1 and 1
        x.clamp(-1, 1) * scaling_factor
        (x * scaling_factor).clamp(-1, 1)
        ? Pixels are between -1 and 1; are latents?

    the factor applied twice
        x * scaling_factor**2
        ? What variance do the latents have now?

    the root of the factor, or one minus it
        x * scaling_factor**0.5
        x / scaling_factor**0.5
        x * (1 - scaling_factor)
        ? The UNet's latents are the VAE's times which number?

    the factor added, not multiplied
        x + scaling_factor
        x - scaling_factor
        ? Which operation changes the variance of the latents?

    the sign the other way round
        -x * scaling_factor
        ? The UNet's latents are the VAE's times which number?

    only the mean or only the noise scaled
        encoded.mean * scaling_factor + (x - encoded.mean)
        encoded.mean + (x - encoded.mean) * scaling_factor
        ? What is scaled: a part of the sample, or all of it?

    divided by the deviation of this batch
        x / x.std()
        (x - x.mean()) / x.std()
        ? Should an image's latents depend on which others are in its batch?

    the same sample at every call: the generator started anew
        anew() * scaling_factor
        ? A generator goes on from where it is; what does its seed say about that?
        @ the argument `encoded`

    `latent_dist` asked for: `encoded` is the distribution itself
        encoded.latent_dist.sample(generator) * scaling_factor
        encoded.latent_dist.mean * scaling_factor
        ? In diffusers the encoder's output has a field of that name; which method has `encoded` here?
        @ the argument `encoded`

    the method itself, which was not called
        encoded.sample * scaling_factor
        ? What makes a method return something?
        @ the argument `encoded`

    only the first image
        x[0] * scaling_factor
        x[:1] * scaling_factor
        ? Which shape have the latents?

    numbers moved as pixels are
        2 * x * scaling_factor - 1
        (x * scaling_factor).clamp(0, 1)
        ? These are latents, not pixels: what is done to them?

    the distribution itself multiplied: nothing was sampled
        encoded * scaling_factor
        scaling_factor * encoded
        ? What does the encoder return, and which method has it?
        @ the argument `encoded`
    """,
)
SCALED_LATENTS += mistakes(
    ARGUMENTS,
    "",
    """
    the same latents from every generator
        encoded.sample(torch.Generator().manual_seed(0)) * scaling_factor
        ? What is the argument `generator` for?
        @ the argument `encoded`
    """,
    by=(OTHER,),
)
