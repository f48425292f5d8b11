"""Part 2: what often goes wrong with a step of DDPM."""

from exercise.grader.seen import AGAIN
from exercise.grader.table import mistakes

MEAN = '`002` 4.4, "Set mean"; `003` 2'
ARGUMENTS = "x, e, z, t, betas, alphas_cumprod"
GIVEN = """
b, a = betas[t], alphas_cumprod[t]
before = alphas_cumprod[t - 1] if t > 0 else torch.tensor(1.0)
weight, divisor, sigma = b / (1 - a) ** 0.5, (1 - b) ** 0.5, b**0.5 * (t > 0)
right = (x - weight * e) / divisor + sigma * z
"""
DDPM_STEP = mistakes(
    ARGUMENTS,
    GIVEN,
    """
    beta as the noise's standard deviation, where its root belongs
        (x - weight * e) / divisor + b * (t > 0) * z
        ? beta is a variance; by what is z multiplied?
        @ `002` 4.4, "Set covariance", where sigma_t^2 = beta_t

    noise in the last step, too
        (x - weight * e) / divisor + b**0.5 * z
        (x - weight * e) / divisor + b * z
        ? At t = 0 the result is the image; should it be noisy?
        @ `002` 4.4; `003` 2, "Iterate Backwards"

    no fresh noise in any step
        (x - weight * e) / divisor
        ? What is z for? Without it every step goes to the mean.
        @ `002` 4.4, "Set covariance", where sigma_t^2 = beta_t

    fresh noise in the wrong steps
        (x - weight * e) / divisor + b**0.5 * (t == 0) * z
        (x - weight * e) / divisor + b**0.5 * (t > 1) * z
        ? Which is the only step without it? Count t from 0.
        @ `002` 4.4; `003` 2, "Iterate Backwards"

    the fresh noise not scaled
        (x - weight * e) / divisor + (t > 0) * z
        (x - weight * e) / divisor + z
        ? How much noise did a single step add, on the way to noise?
        @ `002` 4.4, "Set covariance", where sigma_t^2 = beta_t

    alpha-bar or alpha where beta belongs, in front of z
        (x - weight * e) / divisor + (1 - a) ** 0.5 * (t > 0) * z
        (x - weight * e) / divisor + (1 - b) ** 0.5 * (t > 0) * z
        ? The noise of how many steps is put back?
        @ `002` 4.4, "Set covariance", where sigma_t^2 = beta_t

    the predicted noise and the fresh one exchanged, or taken for each other
        (x - weight * e) / divisor + sigma * e
        (x - weight * z) / divisor + sigma * e
        (x - weight * z) / divisor + sigma * z
        ? Two noises come in: which one did the network predict, and which one is new?

    the fresh noise inside the bracket
        (x - weight * e + sigma * z) / divisor
        ? What is divided by sqrt(alpha_t), and what comes after it?

    the fresh noise subtracted
        (x - weight * e) / divisor - sigma * z
        ? The images would be as good; but which sign is in the formula?

    the posterior's variance, where beta_t is asked for
        (x - weight * e) / divisor + ((1 - before) / (1 - a) * b) ** 0.5 * z
        (x - weight * e) / divisor + (1 - before) / (1 - a) * b * z
        ? DDPM allows both; which one is in this part's formula?
        @ `002` 4.4, "Set covariance", where sigma_t^2 = beta_t

    alpha-bar where the step's own alpha belongs
        (x - weight * e) / a**0.5 + sigma * z
        (x - weight * e) / a + sigma * z
        ? One step reverses the scaling of one step; of how many does alpha-bar?

    not divided by the root of alpha_t
        x - weight * e + sigma * z
        ? On the way to noise, a step also scales the image down; what reverses this?

    alpha where its root belongs
        (x - weight * e) / (1 - b) + sigma * z
        ? alpha is what a step keeps of the variance; by what is the image itself multiplied?

    divided by the noise's rate, where the image's belongs
        (x - weight * e) / b**0.5 + sigma * z
        (x - weight * e) / (1 - a) ** 0.5 + sigma * z
        (x - weight * e) / b + sigma * z
        ? By which rate did this step scale the image?

    multiplied by the root of alpha_t, where one divides
        (x - weight * e) * divisor + sigma * z
        ? Should a step back make the image's share larger or smaller?

    only one of the two terms divided by the root of alpha_t
        x / divisor - weight * e + sigma * z
        x - weight * e / divisor + sigma * z
        ? Where does the bracket begin, and where does it end?

    the predicted noise weighted by beta alone
        (x - b * e) / divisor + sigma * z
        ? The prediction has variance one; how much of it is in x_t?

    the step's own alpha where alpha-bar belongs, under the predicted noise
        (x - b**0.5 * e) / divisor + sigma * z
        (x - b / (1 - b) ** 0.5 * e) / divisor + sigma * z
        ? x_t has the noise of how many steps?

    alpha-bar where 1 - alpha-bar belongs, under the predicted noise
        (x - b / a**0.5 * e) / divisor + sigma * z
        ? Which of the two is the variance of the noise in x_t?

    the root of beta where beta belongs, with the predicted noise
        (x - (b / (1 - a)) ** 0.5 * e) / divisor + sigma * z
        ? Which of the two has a root in this part's formula?

    the whole noise taken out at once
        (x - (1 - a) ** 0.5 * e) / divisor + sigma * z
        (x - e) / divisor + sigma * z
        (x - (1 - a) ** 0.5 * e) / a**0.5 + sigma * z
        (x - (1 - a) ** 0.5 * e) / a**0.5
        ? This removes all noise at once; how far does one step of DDPM go?

    1 - alpha-bar where its root belongs
        (x - b / (1 - a) * e) / divisor + sigma * z
        ? 1 - alpha-bar is a variance; by what is the noise multiplied in x_t?

    the predicted noise multiplied by the root of 1 - alpha-bar, where one divides
        (x - b * (1 - a) ** 0.5 * e) / divisor + sigma * z
        ? How large is the part of x_t that the prediction stands for?

    alpha where beta belongs, with the predicted noise
        (x - (1 - b) / (1 - a) ** 0.5 * e) / divisor + sigma * z
        ? How much noise did this one step add?

    the predicted noise added, not taken away
        (x + weight * e) / divisor + sigma * z
        ? Should x_{t-1} have more noise than x_t, or less?

    beta squared, with the predicted noise
        (x - b**2 / (1 - a) ** 0.5 * e) / divisor + sigma * z
        ? Which power of beta is in this part's formula?

    alpha alone before the predicted noise
        (x - (1 - b) * e) / divisor + sigma * z
        ? How much noise did this one step add, and how large is all of it?

    a step towards noise, not away from it
        (1 - b) ** 0.5 * x + b**0.5 * z
        (1 - b) ** 0.5 * x + b**0.5 * e
        ? Is x_{t-1} to have more noise than x_t, or less?

    everything divided by the noise's rate as well
        (x - b * e) / (divisor * (1 - a) ** 0.5) + sigma * z
        ? Which of the terms stands over sqrt(1 - alpha-bar_t)?

    the predicted noise left out
        x / divisor + sigma * z
        ? What is the network's prediction for?

    the timestep's index off by one
        betas, alphas_cumprod = betas.roll(1), alphas_cumprod.roll(1); right
        (x - b / (1 - before) ** 0.5 * e) / divisor + sigma * z
        t = t + 1; right
        t = max(t - 1, 0); right
        ? beta_t and alpha-bar_t are those of the timestep that the step starts from.
    """,
) + mistakes(
    ARGUMENTS,
    GIVEN,
    """
    fresh noise of its own, where z belongs
        torch.randn_like(z)
        ? What is the argument z?
    """,
    by=(AGAIN,),
)
