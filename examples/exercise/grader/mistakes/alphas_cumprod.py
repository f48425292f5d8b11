"""Part 1: what often goes wrong with the products alpha-bar."""

from exercise.grader.table import mistakes

BAR = '`002` 4.1, "A key insight is that we can derive"'
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

    the product's inverse, or the noise's rate
        (1 - torch.cumprod(1 - betas, 0)) ** 0.5
        1 / torch.cumprod(1 - betas, 0)
        ? What fraction of the variance is left after one step? That is the first entry.

    the logarithm of the product
        torch.cumsum(torch.log(1 - betas), 0)
        ? A sum of logarithms is the logarithm of what?

    a product of products
        torch.cumprod(torch.cumprod(1 - betas, 0), 0)
        torch.cumprod(1 - torch.cumsum(betas, 0), 0)
        ? How often does the first step's alpha occur in the second entry?

    one step's alpha to the power of the number of steps
        (1 - betas) ** torch.arange(1, len(betas) + 1)
        (1 - betas[0]) ** torch.arange(1, len(betas) + 1)
        ? Does every step have the same beta?

    the minus the other way round: beta - 1
        torch.cumprod(betas - 1, 0)
        ? Can a fraction of a variance be negative?

    betas of its own, where the given ones belong
        torch.cumprod(1 - torch.linspace(1e-4, 0.02, len(betas)), 0)
        torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, len(betas)) ** 2, 0)
        torch.cumprod(1 - torch.linspace(0.00085, 0.012, len(betas)), 0)
        ? What is the argument for?
    """,
)
