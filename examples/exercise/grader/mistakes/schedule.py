"""Part 1: what often goes wrong with the schedule and its noise."""

from exercise.grader.seen import AGAIN
from exercise.grader.table import mistakes

BAR = '`002` 4.1, "A key insight is that we can derive"'
PLACE = '`002` 4.3, "This uses the formula"; `003` 1'

ALPHAS_CUMPROD = mistakes(
    "betas",
    "",
    """
    the product of the betas themselves
        torch.cumprod(betas, 0)
        ? A step adds the variance beta; what fraction of the variance does it keep?

    one minus the product of the betas
        1 - torch.cumprod(betas, 0)
        ? What does a single step keep? And two of them, one after the other?

    a sum where a product belongs
        1 - torch.cumsum(betas, 0)
        torch.cumsum(1 - betas, 0)
        torch.cumsum(betas, 0)
        torch.exp(-torch.cumsum(betas, 0))
        ? Two steps each keep nine tenths of the variance: how much do both together keep?

    the alpha of each step alone: no product
        1 - betas
        ? What is left after two steps that each keep nine tenths?

    the variance of the noise, where that of the image belongs
        1 - torch.cumprod(1 - betas, 0)
        ? Near which number should the first entry be, after a single small step?

    the root of alpha-bar
        torch.cumprod(1 - betas, 0) ** 0.5
        ? Is alpha-bar a variance or a standard deviation? Where are the roots in this part's formulas?

    a square or a root inside the product
        torch.cumprod((1 - betas) ** 2, 0)
        torch.cumprod(1 - betas**0.5, 0)
        torch.cumprod(1 - betas**2, 0)
        torch.cumprod((1 - betas**2) ** 0.5, 0)
        ? A beta is already a variance. What fraction of the variance does one step keep?

    an index off by one: the first entry is 1, and the last step is missing
        torch.cat([torch.ones(1), torch.cumprod(1 - betas, 0)[:-1]])
        ? Entry 0 is already one step of noise; the clean image has no entry.

    the clean image's 1 in front: an entry too many
        torch.cat([torch.ones(1), torch.cumprod(1 - betas, 0)])
        ? How many timesteps are there, and is the clean image one of them?

    the first beta left out of the product
        torch.cumprod(1 - betas, 0) / (1 - betas[0])
        torch.cumprod(1 - betas[1:], 0)
        torch.cumprod(1 - betas, 0)[1:]
        ? Entry 0 is already one step of noise: which beta does that step have?

    the product of all steps as a single number
        torch.prod(1 - betas)
        torch.prod(1 - betas).expand_as(betas)
        ? A noisy image may be at any timestep: how many entries are needed?

    the product from the other end
        torch.cumprod((1 - betas).flip(0), 0).flip(0)
        torch.cumprod((1 - betas).flip(0), 0)
        ? The first entry has one step of noise: which beta does that step have?

    the entries in reversed order
        torch.cumprod(1 - betas, 0).flip(0)
        ? Should later timesteps have more of the image, or less?

    only two factors, the step's own alpha and the one before
        (1 - betas) * torch.cat([torch.ones(1), 1 - betas[:-1]])
        (1 - betas) * (1 - betas).roll(1)
        ? How many factors does the last entry have?

    a plus: each step adds to the variance that is kept
        torch.cumprod(1 + betas, 0)
        ? Does a step keep more of the image than there was, or less?

    betas of its own, where the given ones belong
        torch.cumprod(1 - torch.linspace(1e-4, 0.02, len(betas)), 0)
        torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, len(betas)) ** 2, 0)
        torch.cumprod(1 - torch.linspace(0.00085, 0.012, len(betas)), 0)
        ? What is the argument for?
    """,
)
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
