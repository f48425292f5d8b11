"""Part 5: what often goes wrong with the diffusion loss."""

from exercise.grader.mistakes.latents import SAME
from exercise.grader.table import mistakes

PLACE = "`002` 4.3; `000`, task 1; `003` 26"
CALLS, NOISY = "how often the network is called", "the noisy latents that the network gets"
TOLD, PROMPTS = "the timesteps that the network gets", "the network gets the embeddings as they came"
GRADIENT = "the gradient of the embeddings"
OFF = {0.5: "two images, the prediction 0.5 too large: the loss", -2.0: "the same, 2 too small: the loss"}
ARGUMENTS = "wrapper, latents, t, embeddings, generator"
GIVEN = """
def draw(kind=torch.randn, shape=latents.shape, generator=generator): return kind(shape, generator=generator)
def anew(): return torch.Generator().manual_seed(generator.initial_seed())
def net(x, t=t, c=embeddings): return wrapper.unet(x, t, c)
def noisy(n, x=latents, t=t): return wrapper.scheduler.add_noise(x, n, t)
def mse(a, b): return ((a - b) ** 2).mean()
"""
DIFFUSION_LOSS = mistakes(
    ARGUMENTS,
    GIVEN,
    """
    the network not asked
        mse(noisy(n := draw()), n)
        ? What has to predict the noise?
    """,
    by=(CALLS,),
)
DIFFUSION_LOSS += mistakes(
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
DIFFUSION_LOSS += mistakes(
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
DIFFUSION_LOSS += mistakes(
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
DIFFUSION_LOSS += mistakes(
    ARGUMENTS,
    GIVEN,
    """
    the prompt kept from the network
        net(noisy(draw()), c=embeddings * 0).mean()
        ? What is the argument `embeddings` for?
    """,
    by=(PROMPTS,),
)
DIFFUSION_LOSS += mistakes(
    ARGUMENTS,
    GIVEN,
    """
    the noise drawn twice
        mse(net(noisy(draw())), draw())
        ? Can the network predict noise that is not in the image?

    the clean latents as the target
        mse(net(noisy(draw())), latents)
        ? What does this network predict?

    the noisy latents as the target
        mse(net(x := noisy(draw())), x)
        ? What does this network predict?

    the noise taken out of the noisy latents, and compared with the clean ones
        mse((x := noisy(draw())) - net(x), latents)
        ? What does this network predict, and what is compared with it?

    a difference of noise and latents as the target, or the velocity
        mse(net(noisy(n := draw())), latents - n)
        mse(net(noisy(n := draw())), n - latents)
        mse(net(noisy(n := draw())), wrapper.scheduler.velocity(latents, n, t))
        ? That is another model's target. What does this network predict?

    a plus, where prediction and noise are compared
        mse(net(noisy(n := draw())), -n)
        ? What should the loss be for a perfect prediction?

    the prediction alone, compared with nothing
        (net(noisy(draw())) ** 2).mean()
        net(noisy(draw())).mean()
        ? What should the loss be for a perfect prediction?

    a sum of squares, where a mean belongs
        ((net(noisy(n := draw())) - n) ** 2).sum()
        ((net(noisy(n := draw())) - n) ** 2).sum() / len(latents)
        ((net(noisy(n := draw())) - n) ** 2).flatten(1).mean(1).sum()
        ? Should a larger image or batch need a smaller learning rate?

    differences that are not squared
        (net(noisy(n := draw())) - n).mean()
        -(net(noisy(n := draw())) - n).mean()
        ? Can an error that is too large make up for one that is too small?

    the square of the mean, where the mean of the squares belongs
        (net(noisy(n := draw())) - n).mean() ** 2
        ? What comes first, the square or the mean?

    absolute differences, where squares belong
        (net(noisy(n := draw())) - n).abs().mean()
        F.smooth_l1_loss(net(noisy(n := draw())), n)
        F.huber_loss(net(noisy(n := draw())), n, delta=0.1)
        ? That is another loss. Which power is in this part's formula?

    the root of the mean, where the mean belongs
        mse(net(noisy(n := draw())), n) ** 0.5
        (net(noisy(n := draw())) - n).norm()
        ? Is there a root in this part's formula?

    half of the loss
        mse(net(noisy(n := draw())), n) / 2
        ? Which factor is in front of this part's formula?

    the sign of the loss the other way round
        -mse(net(noisy(n := draw())), n)
        ? An optimizer makes the loss smaller. Should the error grow?

    a loss for each image, where one number belongs
        ((net(noisy(n := draw())) - n) ** 2).flatten(1).mean(1)
        ((net(noisy(n := draw())) - n) ** 2).mean(-1)
        ? Over which axes is the mean?

    the squares themselves: the mean forgotten
        (net(noisy(n := draw())) - n) ** 2
        ? Over which axes is the mean?

    a number, where a tensor is needed
        mse(net(noisy(n := draw())), n).item()
        ? What does the optimizer need besides the loss?

    right as a number, but without a gradient, so that nothing could be learned
        mse(net(noisy(n := draw())), n).detach()
        ? What does the optimizer need besides the loss?

    only the first image of the batch
        ((net(noisy(n := draw())) - n) ** 2)[0].mean()
        ? Over which axes is the mean?
    """,
)
