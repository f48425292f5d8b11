"""Part 11: what often goes wrong with a classifier's gradient and its guidance."""

from exercise.grader.table import mistakes

AUTO, GUIDE = "`002` 6.2; `003` 6", "`003` 6, for any classifier; arXiv 2105.05233, Algorithm 2"
GRADIENTS = (
    "log p(y | x) = -|x|^2 / 2, x = [[1, 2], [3, -1]]",
    "the left half of two Gaussians, x of shape (4, 2)",
    "log p(y | x) = -|x|^2 / 2, x of shape (3, 2, 2, 2)",
)
LEFT, KEEPS = "x has a gradient afterwards, or asks for one", "the result keeps its graph"
ON = "gradients are switched on for the sampler as well"
ARGUMENTS = "log, x"
GIVEN = """
def of(number, y=None):
    y = x.detach().clone().requires_grad_() if y is None else y
    with torch.enable_grad(): return torch.autograd.grad(number(log(y)), y)[0]
"""
GRADIENT_OF = mistakes(
    ARGUMENTS,
    GIVEN,
    """
    the mean over the batch, so that the guidance depends on the batch size
        of(lambda l: l.mean())
        ? Should one image's gradient depend on how many others are in the batch?

    the gradient of the probability, not of its logarithm
        of(lambda l: l.exp().sum())
        ? Is `log_probability` already a logarithm?

    the logarithm taken a second time
        of(lambda l: l.log().sum())
        of(lambda l: l.sum().log())
        of(lambda l: (-l).log().sum())
        ? Is `log_probability` already a logarithm?

    the sign of a loss: away from the class
        of(lambda l: -l.sum())
        of(lambda l: -l.mean())
        ? In which direction does log p(y | x) grow?

    the gradient of the first image only
        of(lambda l: l[0])
        of(lambda l: l[:1].sum())
        of(lambda l: l.max())
        ? Every image of the batch has a gradient of its own.

    the gradient scaled to length one, or cut off
        F.normalize(of(lambda l: l.sum()), dim=-1)
        F.normalize(of(lambda l: l.sum()).flatten(1), dim=-1).view(x.shape)
        of(lambda l: l.sum()) / of(lambda l: l.sum()).norm()
        of(lambda l: l.sum()).clamp(-1, 1)
        of(lambda l: l.sum()).sign()
        ? Does its length say anything about how far x is from the class?

    the gradient multiplied by the batch size or by x
        of(lambda l: l.sum()) * len(x)
        of(lambda l: l.sum()) * x
        ? What is the derivative of a sum by each of its terms?

    x moved along the gradient already
        x + of(lambda l: l.sum())
        ? What is asked for: the gradient, or a step along it?

    the gradients of all images added up
        of(lambda l: l.sum()).sum(0, keepdim=True).expand_as(x)
        of(lambda l: l.sum()).mean(0, keepdim=True).expand_as(x)
        of(lambda l: l.sum()).sum(0)
        of(lambda l: l.sum()).mean(0)
        ? Every image of the batch has a gradient of its own.

    the square of the logarithm
        of(lambda l: (l**2).sum())
        ? Of which number is the gradient?

    the log-probability itself, where its gradient belongs
        log(x)
        log(x).sum()
        ? Which shape has the result?

    a tuple, as `torch.autograd.grad` returns it
        (of(lambda l: l.sum()),)
        ? `torch.autograd.grad` has a gradient for each of its inputs: how many are there here?

    nothing to go back through: gradients are off, or x does not ask for one
        torch.autograd.grad(log(y := x.detach().clone().requires_grad_()).sum(), y)[0]
        ? A sampler runs within `torch.no_grad()`. What switches gradients on again, and for which tensor?
        @ the text of `gradient_of`

    the gradient of a tensor that was in no computation: none
        x.grad
        ? Which tensor was handed to `log_probability`, and from which one is the gradient read?

    a logarithm of a sum, or shares of the batch, where a sum belongs
        of(lambda l: l.logsumexp(0))
        of(lambda l: l.softmax(0).sum())
        of(lambda l: l.softmax(0)[0])
        ? Should one image's gradient depend on which others are in the batch?

    one gradient of several numbers: the sum is missing
        of(lambda l: l)
        ? `grad` wants one number. Each image's depends on itself only: which number has all their gradients?
    """,
    by=GRADIENTS,
)
GRADIENT_OF += mistakes(
    ARGUMENTS,
    GIVEN,
    """
    right, but the sampler's own x has a gradient from now on
        of(lambda l: l.sum(), x.requires_grad_())
        ? The sampler goes on using x. Which tensor could you use instead?
        @ the argument `x`
    """,
    by=(*GRADIENTS, LEFT),
)
GRADIENT_OF += mistakes(
    ARGUMENTS,
    GIVEN,
    """
    right, but the result keeps its graph: memory grows with every step
        of(lambda l: l.sum()).requires_grad_()
        ? What does `create_graph` keep, and who needs it here?
    """,
    by=(*GRADIENTS, KEEPS),
)
GRADIENT_OF += mistakes(
    ARGUMENTS,
    GIVEN,
    """
    right, but gradients stay switched on for the sampler
        (torch.set_grad_enabled(True), of(lambda l: l.sum()))[1]
        ? Within what are they switched on, so that they are off again afterwards?
        @ the text of `gradient_of`
    """,
    by=(*GRADIENTS, ON),
)
NOISE, FACTOR = "noise, gradient, alpha_bar, s", "r = (1 - alpha_bar) ** 0.5\n"
GUIDED_NOISE = mistakes(
    NOISE,
    FACTOR,
    """
    a plus, which steers away from the class
        noise + s * r * gradient
        ? The score points towards the data; in which direction does the noise point?

    the factor of the score forgotten
        noise - s * gradient
        ? By which factor do noise and score differ?
        @ `003` 11, "Connection to Noise Prediction"

    the factor forgotten, and a plus
        noise + s * gradient
        ? By which factor do noise and score differ, and with which sign?
        @ `003` 11, "Connection to Noise Prediction"

    the scale forgotten
        noise - r * gradient
        noise + r * gradient
        ? What should change if s is twice as large?

    1 - alpha-bar where its root belongs
        noise - s * (1 - alpha_bar) * gradient
        noise - s * (1 - alpha_bar) ** 2 * gradient
        ? Is the noise in x_t scaled by a variance or by a standard deviation?

    the signal's rate where the noise's belongs
        noise - s * alpha_bar**0.5 * gradient
        noise - s * alpha_bar * gradient
        noise - s * (1 - alpha_bar**0.5) * gradient
        ? How strong should guidance be where there is no noise left?

    the signal's rate where the noise's belongs, and a plus
        noise + s * alpha_bar**0.5 * gradient
        ? How strong should guidance be where there is no noise left, and towards what?

    the gradient as the result
        gradient
        ? What does the network predict without a class?

    divided by the noise's rate instead of multiplied
        noise - s / r * gradient
        noise - s * gradient / (1 - alpha_bar)
        ? score = -epsilon / rate; solve it for epsilon.
        @ `003` 11

    a plus under the root
        noise - s * (1 + alpha_bar) ** 0.5 * gradient
        ? How strong should guidance be where there is no noise left?

    the gradient alone, without the network's prediction
        -s * r * gradient
        s * r * gradient
        -r * gradient
        ? What does the network predict without a class?

    the noise multiplied as well
        s * (noise - r * gradient)
        r * (noise - s * gradient)
        r * noise - s * gradient
        noise * r - s * r * gradient
        s * noise - r * gradient
        (1 - s) * noise - s * r * gradient
        (1 + s) * noise - s * r * gradient
        ? At scale 0, what should the guided prediction be?

    the score, where the noise belongs
        -noise / r + s * gradient
        noise / r - s * gradient
        noise / r + s * gradient
        ? Which of the two does the sampler expect?
        @ `003` 11

    noise and gradient exchanged
        gradient - s * r * noise
        ? Which of the two is the network's own prediction?

    the scale squared, or in the wrong place
        noise - s**2 * r * gradient
        noise - s**0.5 * r * gradient
        noise - r * gradient / s
        noise - (s * (1 - alpha_bar)) ** 0.5 * gradient
        noise - (1 - s * alpha_bar) ** 0.5 * gradient
        noise - (1 - alpha_bar) ** (0.5 * s) * gradient
        noise - (1 + s) * r * gradient
        ? What should change if s is twice as large?

    the gradient multiplied with the noise
        noise - s * r * gradient * noise
        noise * (1 - s * r * gradient)
        ? What is subtracted: something from the noise, or a part of it?

    guidance from the noise, as without a classifier
        noise + s * (gradient - noise)
        noise + s * (noise - gradient)
        ? That is part 3's formula. What is `gradient` here: another prediction?

    the minus in front of everything
        -(noise - s * r * gradient)
        -noise - s * r * gradient
        ? At scale 0, what should the guided prediction be?
    """,
)
