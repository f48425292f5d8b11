"""Part 5: what often goes wrong with what the network is given."""

from exercise.grader.mistakes.latents import SAME
from exercise.grader.table import mistakes

ANOTHER = "another seed gives another noise"
CALLS, NOISY = "how often the network is called", "the noisy latents that the network gets"
TOLD, PROMPTS = "the timesteps that the network gets", "the network gets the embeddings as they came"
ARGUMENTS = "wrapper, latents, t, embeddings, generator"
GIVEN = """
def draw(kind=torch.randn, shape=latents.shape, generator=generator): return kind(shape, generator=generator)
def anew(): return torch.Generator().manual_seed(generator.initial_seed())
def net(x, t=t, c=embeddings): return wrapper.unet(x, t, c)
def noisy(n, x=latents, t=t): return wrapper.scheduler.add_noise(x, n, t)
def mse(a, b): return ((a - b) ** 2).mean()
"""
GIVEN_TO_THE_NETWORK = mistakes(
    ARGUMENTS,
    GIVEN,
    """
    the network not asked
        mse(noisy(n := draw()), n)
        ? What has to predict the noise?

    the network asked twice
        (net(latents), net(latents))[0].mean()
        ? How many predictions does a loss need? Guidance comes later, in sampling.
    """,
    by=(CALLS,),
)
GIVEN_TO_THE_NETWORK += mistakes(
    ARGUMENTS,
    GIVEN,
    """
    noise that does not come from the generator
        mse(net(noisy(n := torch.randn_like(latents))), n)
        ? Would another run with the same seed get the same noise?
        @ the argument `generator`
    """,
    by=(SAME,),
)
GIVEN_TO_THE_NETWORK += mistakes(
    ARGUMENTS,
    GIVEN,
    """
    the noise drawn twice
        net(noisy((draw(), draw())[1])).mean()
        ? Can the network predict noise that is not in the image?

    the clean latents shown to the network
        net(latents).mean()
        ? Which latents is the network to find the noise in?

    the noise alone shown to the network
        net(draw()).mean()
        ? Which latents is the network to find the noise in?

    noise added without the schedule
        net(latents + draw()).mean()
        ? How much noise belongs to timestep t? `wrapper.scheduler` knows.

    latents and noise exchanged in `add_noise`
        net(noisy(latents, draw())).mean()
        ? In which order does `add_noise` take its arguments?

    noise from `torch.rand`, where normal numbers belong
        net(noisy(draw(torch.rand))).mean()
        net(noisy(2 * draw(torch.rand) - 1)).mean()
        ? What are the mean and the variance of the noise that is added?

    one noise for the whole batch
        net(noisy(draw(shape=latents.shape[1:]).expand_as(latents))).mean()
        ? Are the images of a batch to learn from the same noise?

    the noise taken away, not added
        net(noisy(-draw())).mean()
        ? What does `add_noise` do with the noise that it is given?

    the noise added at another timestep, off by one
        net(noisy(draw(), t=t + 1)).mean()
        net(noisy(draw(), t=(t - 1).clamp(min=0))).mean()
        ? Which timestep is the network told, and at which was the noise added?

    the noise added at one timestep for the whole batch
        net(noisy(draw(), t=t[:1].expand_as(t))).mean()
        ? Is each image at a timestep of its own?

    the latents scaled once more
        net(noisy(draw(), latents * 0.18215)).mean()
        net(noisy(draw(), latents / 0.18215)).mean()
        ? The argument `latents` is clean, and what else?
        @ the argument `latents`

    noise added twice
        net(noisy(n := draw(), noisy(n))).mean()
        ? How many calls of `add_noise` does a timestep need?

    the same noise at every call: the generator started anew
        net(noisy(draw(generator=anew()))).mean()
        ? A generator goes on from where it is; what does its seed say about that?
        @ the argument `generator`
    """,
    by=(NOISY,),
)
GIVEN_TO_THE_NETWORK += mistakes(
    ARGUMENTS,
    GIVEN,
    """
    the same noise from every generator
        net(noisy(draw(generator=torch.Generator().manual_seed(0)))).mean()
        net(noisy(torch.ones_like(latents))).mean()
        ? What is the argument `generator` for?
        @ the argument `generator`
    """,
    by=(ANOTHER,),
)
GIVEN_TO_THE_NETWORK += mistakes(
    ARGUMENTS,
    GIVEN,
    """
    the network told another timestep, off by one
        net(noisy(draw()), t + 1).mean()
        net(noisy(draw()), t - 1).mean()
        ? At which timestep was the noise added?

    the network told timestep 0, whichever it is
        net(noisy(draw()), t * 0).mean()
        ? At which timestep was the noise added?

    the network told timesteps between 0 and 1
        net(noisy(draw()), t / 1000).mean()
        net(noisy(draw()), t / 999).mean()
        ? How are the timesteps of this schedule counted?

    the network told one timestep for the whole batch
        net(noisy(draw()), t[:1].expand_as(t)).mean()
        ? Is each image at a timestep of its own?
    """,
    by=(TOLD,),
)
GIVEN_TO_THE_NETWORK += mistakes(
    ARGUMENTS,
    GIVEN,
    """
    the prompt kept from the network
        net(noisy(draw()), c=embeddings * 0).mean()
        ? What is the argument `embeddings` for?
    """,
    by=(PROMPTS,),
)
