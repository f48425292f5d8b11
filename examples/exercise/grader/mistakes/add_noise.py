"""Part 1: what often goes wrong with adding noise."""

from exercise.grader.seen import AGAIN
from exercise.grader.table import mistakes

PLACE = '`002` 4.3, "This uses the formula"; `003` 1'
ADD_NOISE = mistakes(
    "clean, noise, timesteps, alphas_cumprod",
    """
    a = alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    right = a**0.5 * clean + (1 - a) ** 0.5 * noise
    """,
    """
    alpha-bar where its root belongs
        a * clean + (1 - a) * noise
        a**2 * clean + (1 - a) ** 2 * noise
        ? By which factor do you multiply a number, so that its variance is multiplied by alpha-bar?

    the root taken of the noise's rate, and not of the image's
        a * clean + (1 - a) ** 0.5 * noise
        ? By which factor do you multiply a number, so that its variance is multiplied by alpha-bar?

    the root taken of the image's rate, and not of the noise's
        a**0.5 * clean + (1 - a) * noise
        ? By which factor do you multiply a number, so that its variance is multiplied by 1 - alpha-bar?

    signal and noise exchanged
        (1 - a) ** 0.5 * clean + a**0.5 * noise
        (1 - a) * clean + a * noise
        ? At timestep 1 there should be almost no noise; is there?

    a noise rate that makes the rates, not their squares, add up to one
        a**0.5 * clean + (1 - a**0.5) * noise
        ? Which two numbers have to add up to one, so that the variance stays one?

    the clean image not scaled
        clean + (1 - a) ** 0.5 * noise
        clean + (1 - a) * noise
        ? What is the variance of x_t, if that of x_0 is one? It should be one at every timestep.

    the noise not scaled
        a**0.5 * clean + noise
        a * clean + noise
        ? How much noise should there be at timestep 1, and how much at the last?

    neither image nor noise scaled
        clean + noise
        ? What do the timesteps change in your result?

    minus the noise
        a**0.5 * clean - (1 - a) ** 0.5 * noise
        a * clean - (1 - a) * noise
        ? The network learns to predict the noise that was added; what would it learn here?

    the same rate for image and noise
        a**0.5 * (clean + noise)
        (1 - a) ** 0.5 * (clean + noise)
        a * (clean + noise)
        ? If much of the image is left, is there much noise?

    no noise at all
        a**0.5 * clean
        ? What is `noise` for?

    the noise alone
        (1 - a) ** 0.5 * noise
        ? What is `clean` for?

    a bracket in the wrong place: one rate multiplies both terms
        a**0.5 * (clean + (1 - a) ** 0.5 * noise)
        (1 - a) ** 0.5 * (a**0.5 * clean + noise)
        ? Multiply the bracket out: what stands before each of the two?

    a plus under the root
        a**0.5 * clean + (1 + a) ** 0.5 * noise
        ? Which two numbers have to add up to one, so that the variance stays one?

    another function of alpha-bar under the root
        a**0.5 * clean + (1 - a**2) ** 0.5 * noise
        a**0.5 * clean + (1 - a**0.5) ** 0.5 * noise
        a * clean + (1 - a**2) ** 0.5 * noise
        ? Which two numbers have to add up to one, so that the variance stays one?

    the image's rate before the noise, and none before the image
        clean + a**0.5 * noise
        clean + a * noise
        ? How much noise should there be at timestep 1, and how much at the last?

    the timestep itself as the level, without the schedule
        (1 - (s := timesteps.reshape(-1, 1, 1, 1) / len(alphas_cumprod))) * clean + s * noise
        (s := timesteps.reshape(-1, 1, 1, 1)) ** 0.5 * clean + (1 - s) ** 0.5 * noise
        ? What is `alphas_cumprod` for?

    the whole schedule, where the entries of these timesteps belong
        alphas_cumprod**0.5 * clean + (1 - alphas_cumprod) ** 0.5 * noise
        ? Which entries of `alphas_cumprod` belong to the images of this batch?

    one root over both terms
        (a * clean + (1 - a) * noise) ** 0.5
        ? Of what are the roots: of the rates, or of the whole?

    the formula for the way back, from x_t to x_0
        (clean - (1 - a) ** 0.5 * noise) / a**0.5
        ? Which of the two do you have, x_0 or x_t?

    divided by the rates, where one multiplies
        clean / a**0.5 + noise / (1 - a) ** 0.5
        clean / a**0.5 + (1 - a) ** 0.5 * noise
        ? At the last timestep, should the image be large or small?

    the timestep's index off by one
        timesteps = timesteps - 1; right
        timesteps = (timesteps - 1).clamp(min=0); right
        timesteps = timesteps + 1; right
        alphas_cumprod = torch.cat([torch.ones(1), alphas_cumprod]); right
        ? The notes count from 1, the code from 0: which entry belongs to the first step here?

    one timestep for the whole batch
        timesteps = timesteps[0]; right
        timesteps = timesteps[-1]; right
        timesteps = timesteps.max(); right
        a.mean() ** 0.5 * clean + (1 - a.mean()) ** 0.5 * noise
        ? May the images of a batch be at different timesteps?

    each image's level applied along the width instead of the batch
        a.view(-1) ** 0.5 * clean + (1 - a.view(-1)) ** 0.5 * noise
        ? (b,) and (b, c, h, w): from which side does broadcasting align shapes?
        @ the argument `alphas_cumprod`; PyTorch's notes on broadcasting

    each image's level applied along the height instead of the batch
        a.view(-1, 1) ** 0.5 * clean + (1 - a.view(-1, 1)) ** 0.5 * noise
        ? (b, 1) and (b, c, h, w): from which side does broadcasting align shapes?
        @ the argument `alphas_cumprod`; PyTorch's notes on broadcasting

    each image's level applied along the channels instead of the batch
        a.view(-1, 1, 1) ** 0.5 * clean + (1 - a.view(-1, 1, 1)) ** 0.5 * noise
        ? Which of the four axes is the batch's?
        @ the argument `alphas_cumprod`; PyTorch's notes on broadcasting

    the product taken once more of what is a product already
        alphas_cumprod = alphas_cumprod.cumprod(0); right
        alphas_cumprod = (1 - alphas_cumprod).cumprod(0); right
        ? What does entry t of `alphas_cumprod` say?
        @ the argument `alphas_cumprod`
    """,
) + mistakes(
    "clean, noise, timesteps, alphas_cumprod",
    "",
    """
    noise of its own, where the one that is given belongs
        torch.randn_like(clean)
        ? The loss compares with the noise that was added: who else has to know it?
    """,
    by=(AGAIN,),
)
