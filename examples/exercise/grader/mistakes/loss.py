"""Part 5: what often goes wrong with the diffusion loss, where the network is given what it should be."""

from exercise.grader.mistakes.noise import ARGUMENTS, GIVEN, GIVEN_TO_THE_NETWORK
from exercise.grader.table import mistakes

PLACE = "`002` 4.3; `000`, task 1; `003` 26"
GRADIENT = "the gradient of the embeddings"
OFF = {0.5: "two images, the prediction 0.5 too large: the loss", -2.0: "the same, 2 too small: the loss"}
DIFFUSION_LOSS = GIVEN_TO_THE_NETWORK + mistakes(
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

    `.sample` asked of the prediction, which is a tensor here
        mse(net(noisy(n := draw())).sample, n)
        ? In diffusers the UNet's output has a field of that name. What does `wrapper.unet` return?
        @ the argument `wrapper`

    arguments in another order
        mse(wrapper.unet(noisy(n := draw()), embeddings, t), n)
        mse(net(wrapper.scheduler.add_noise(latents, t, n := draw())), n)
        mse(net(wrapper.scheduler.add_noise(t, latents, n := draw())), n)
        ? In which order do `add_noise` and the network take theirs?
        @ the argument `wrapper`

    `backward` called here already
        (l := mse(net(noisy(n := draw())), n)).backward()
        ? Whose part is that? The loss's gradient is taken in part 7.

    the largest error, where the mean belongs
        ((net(noisy(n := draw())) - n) ** 2).max()
        ((net(noisy(n := draw())) - n) ** 2).median()
        ? Which of the errors count in this part's formula?

    the clean image predicted, where the noise belongs
        mse(noisy(n := draw()) - n, net(noisy(n)))
        ? What does this network predict?

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
