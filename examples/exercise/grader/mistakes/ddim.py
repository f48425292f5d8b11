"""Part 2: what often goes wrong with a step of DDIM."""

from exercise.grader.seen import AGAIN
from exercise.grader.table import mistakes

DDIM = '`003` 4, "Deterministic Reverse Process", and 15'
ARGUMENTS = "x, e, t, s, alphas_cumprod"
GIVEN = """
a, b = (alphas_cumprod[i] if i >= 0 else torch.tensor(1.0) for i in (t, s))
signal, noisy = b**0.5, (1 - b) ** 0.5
x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
right = signal * x0 + noisy * e
"""
DDIM_STEP = mistakes(
    ARGUMENTS,
    GIVEN,
    """
    alpha-bar of s = -1 read from the list's other end
        s = s % len(alphas_cumprod); right
        ? In Python, index -1 is the last entry, the noisiest timestep; what does s = -1 mean here?

    alpha-bar of s = -1 taken for that of entry 0
        s = max(s, 0); right
        ? How much of the clean image is left before the first step of noise?
        @ the argument `s`

    alpha-bar of s = -1 taken for 0
        signal * (s >= 0) * x0 + (noisy if s >= 0 else 1) * e
        ? How much of the clean image is left where there is no noise?
        @ the argument `s`

    the noise put back at the level of t, not of s
        signal * x0 + (1 - a) ** 0.5 * e
        ? To which timestep does the step go?

    the level of t in the second formula, too, so that nothing changes
        a**0.5 * x0 + (1 - a) ** 0.5 * e
        ? To which timestep does the step go?

    the image scaled to the level of t, not of s
        a**0.5 * x0 + noisy * e
        ? To which timestep does the step go?

    t and s exchanged
        t, s = s, t; right
        ? At which of the two is x_t, and at which the result?

    the rates of image and noise exchanged
        noisy * x0 + signal * e
        signal * (x - a**0.5 * e) / (1 - a) ** 0.5 + noisy * e
        noisy * (x - a**0.5 * e) / (1 - a) ** 0.5 + signal * e
        ? Near the clean image, which of the two rates is almost one?

    alpha-bar where its root belongs, in the predicted clean image
        signal * (x - (1 - a) ** 0.5 * e) / a + noisy * e
        signal * (x - (1 - a) * e) / a**0.5 + noisy * e
        signal * (x - (1 - a) * e) / a + noisy * e
        ? Solve x_t = sqrt(alpha-bar) x_0 + ... for x_0.
        @ `002` 6.5, "Optimized approach"

    alpha-bar where its root belongs, on the way to s
        b * x0 + (1 - b) * e
        b * x0 + noisy * e
        signal * x0 + (1 - b) * e
        signal * x0 + (1 - signal) * e
        ? The second formula is part 1's, for timestep s: where are its roots?

    alpha-bar where its root belongs, in both formulas
        b * (x - (1 - a) * e) / a + (1 - b) * e
        ? alpha-bar is a variance; by what are image and noise multiplied?

    the predicted clean image not divided by its rate
        signal * (x - (1 - a) ** 0.5 * e) + noisy * e
        ? Solve x_t = sqrt(alpha-bar) x_0 + ... for x_0.
        @ `002` 6.5, "Optimized approach"

    the predicted clean image multiplied by its rate, where one divides
        signal * (x - (1 - a) ** 0.5 * e) * a**0.5 + noisy * e
        ? Solve x_t = sqrt(alpha-bar) x_0 + ... for x_0.
        @ `002` 6.5, "Optimized approach"

    divided by the noise's rate, where the image's belongs
        signal * (x - (1 - a) ** 0.5 * e) / (1 - a) ** 0.5 + noisy * e
        ? Solve x_t = sqrt(alpha-bar) x_0 + ... for x_0.
        @ `002` 6.5, "Optimized approach"

    the whole prediction subtracted, without its rate
        signal * (x - e) / a**0.5 + noisy * e
        signal * (x - e) + noisy * e
        ? How much of this noise is in x_t?
        @ `002` 6.5, "Optimized approach"

    only one of the two terms divided: a bracket is missing
        signal * (x - (1 - a) ** 0.5 * e / a**0.5) + noisy * e
        signal * (x / a**0.5 - (1 - a) ** 0.5 * e) + noisy * e
        ? What does the fraction bar stand over?
        @ `002` 6.5, "Optimized approach"

    a plus in the predicted clean image
        signal * (x + (1 - a) ** 0.5 * e) / a**0.5 + noisy * e
        ? Is the noise in x_t put into the clean image, or taken out?
        @ `002` 6.5, "Optimized approach"

    no noise put back
        signal * x0
        ? Is the image at s still noisy, and what does the network expect there?

    the predicted clean image as the result
        x0
        ? Where does the step go if s is not -1?

    the predicted clean image not scaled to the level of s
        x0 + noisy * e
        ? The second formula is part 1's, for timestep s.

    the whole noise put back, without its rate
        signal * x0 + e
        ? How much noise should there be at s?

    a minus before the noise that is put back
        signal * x0 - noisy * e
        ? It is the same noise again, at another level; which sign does it have in x_t?

    x_t where the predicted clean image belongs
        signal * x + noisy * e
        ? What do you do with x_0 after you have computed it?

    x_t or x_0 where the noise belongs
        signal * x0 + noisy * x
        signal * x0 + noisy * x0
        ? What is added again at the level of s?

    s = 0 taken for the clean image
        s = s if s > 0 else -1; right
        ? Entry 0 is already one step of noise; which s is the clean image?
        @ the argument `s`

    x_t as it is, for the clean image
        (x if s < 0 else right)
        ? Is x_t clean already, where the step ends at s = -1?
        @ the argument `s`

    x_t scaled, and its noise left as it was
        (b / a) ** 0.5 * x
        ? What is x_t made of, and which part of it is to be scaled?

    the two added without their rates
        x0 + e
        ? How much of the image and how much noise is there at s?

    an index off by one
        s = max(s - 1, -1); right
        s = s - 1 if s >= 0 else len(alphas_cumprod) - 2; right
        s = t - 1; right
        t = t - 1; right
        s = s + 1; right
        ? Which entries of `alphas_cumprod` belong to t and to s?

    the predicted clean image cut off at -1 and 1
        signal * x0.clamp(-1, 1) + noisy * e
        ? These are latents, not pixels: between which numbers are they?
        @ `002` 6.5, "Optimized approach"
    """,
) + mistakes(
    ARGUMENTS,
    GIVEN,
    """
    fresh noise, where the predicted one belongs
        torch.randn_like(e)
        ? Is DDIM deterministic? Which noise is it that is put back?
    """,
    by=(AGAIN,),
)
