"""Part 3: what often goes wrong with classifier-free guidance and its cost."""

from exercise.grader.table import mistakes

SCALE, COST = '`002` 7.4, "Combine them using guidance scale"; `003` 6', "the text of this part; `000` question 2"
GUIDED = mistakes(
    "uncond, cond, scale",
    "",
    """
    the two predictions exchanged
        cond + scale * (uncond - cond)
        ? Which prediction should remain at scale 1?

    w taken for the guidance scale s = w + 1
        cond + scale * (cond - uncond)
        ? Papers count in two ways: which one gives the prompt's prediction at scale 1?
        @ `002` 15, "At generation time, the outputs"

    the scale on the prompt's prediction only
        uncond + scale * cond
        ? What does the scale multiply, in this part's formula?

    a bracket is missing: the scale multiplies the prompt's prediction only
        uncond + scale * cond - uncond
        ? What does your formula give at scale 0, and does it use `uncond` at all?

    the difference alone, from nowhere
        scale * (cond - uncond)
        ? Which prediction is the difference added to?

    s - 1 in the formula that has s
        uncond + (scale - 1) * (cond - uncond)
        ? Which of the two formulas has w, and to which prediction does it add the difference?
        @ `002` 15, "At generation time, the outputs"

    the sign the other way round: away from the prompt
        uncond + scale * (uncond - cond)
        ? From which prediction to which one does the difference lead?

    a plus inside the bracket
        uncond + scale * (cond + uncond)
        cond + scale * (cond + uncond)
        ? How far is it from one prediction to the other?

    the roles of the two exchanged, in the sum as well
        cond + scale * uncond
        scale * uncond + cond - uncond
        ? Which prediction should remain at scale 1, and which one at scale 0?

    weights that do not sum to one
        scale * cond - uncond
        cond - scale * uncond
        (1 + scale) * cond - uncond
        ? If both predictions are the same, what should guidance change?

    the scale not used
        cond
        cond - uncond
        uncond + (cond - uncond)
        ? What is `scale` for?

    no guidance at all: only the empty prompt's prediction
        uncond
        ? What is `cond` for?

    a special case for small scales
        cond if scale <= 1 else uncond + scale * (cond - uncond)
        cond if scale < 1 else uncond + scale * (cond - uncond)
        cond if scale == 0 else uncond + scale * (cond - uncond)
        uncond + max(scale, 1.0) * (cond - uncond)
        ? What does the formula give at scale 0, and at one half?

    a scale cut off at 1
        uncond + min(scale, 1.0) * (cond - uncond)
        ? Guidance extrapolates: may it go beyond `cond`?

    both predictions returned, one behind the other
        torch.cat([uncond, cond])
        (uncond, cond)
        ? How many predictions does a step need?

    the unconditional prediction added twice
        uncond + scale * cond + uncond
        ? If both predictions are the same, what should guidance change?

    the mean of both
        (uncond + scale * cond) / (1 + scale)
        (uncond + cond) / 2
        ? Does a mean of two predictions ever go beyond them?

    the result divided by the scale
        (uncond + scale * (cond - uncond)) / scale
        uncond / scale + (cond - uncond)
        uncond + (cond - uncond) / scale
        ? What does the formula divide by?
    """,
)

EVALUATIONS = mistakes(
    "pictures, steps, scale, every",
    """
    def up(n, k): return -(-n // k)
    off = scale == 1
    """,
    """
    the unconditional prediction not counted
        pictures * steps
        ? How often does the network see each image, in a step?

    scale 1 counted like any other
        pictures * (steps + up(steps, every))
        ? Which prediction has weight 0 there?

    scale 1 counted as if nothing were predicted
        0 if off else pictures * (steps + up(steps, every))
        pictures * up(steps, every) if off else pictures * (steps + up(steps, every))
        ? Which of the two predictions remains at scale 1, and in how many steps?

    a special case for scale 0, or for scales below 1
        pictures * (steps if scale <= 1 else steps + up(steps, every))
        pictures * (steps if scale < 1 else steps + up(steps, every))
        pictures * (steps if scale == 0 else steps + up(steps, every))
        pictures * (up(steps, every) if scale == 0 else steps if off else steps + up(steps, every))
        pictures * (steps if scale in (0, 1) else steps + up(steps, every))
        ? At which scale has the unconditional prediction weight 0? At which others is it needed?

    steps divided by k and rounded down: the first step computes it, too
        pictures * (steps + (0 if off else steps // every))
        pictures * (steps + steps // every)
        pictures * (steps if scale <= 1 else steps + steps // every)
        pictures * (steps + (0 if off else max(1, steps // every)))
        ? Of 7 steps with k = 4, in which ones is it computed? Count from the first.

    steps divided by k and rounded to the nearest
        pictures * (steps + (0 if off else round(steps / every)))
        pictures * (steps + round(steps / every))
        pictures * (steps + (0 if off else int(steps / every + 0.5)))
        pictures * (steps + (0 if off else max(1, round(steps / every))))
        ? Of 9 steps with k = 4, in which ones is it computed? Count from the first.

    steps divided by k and not rounded
        pictures * (steps if off else steps + steps / every)
        pictures * (steps + steps / every)
        int(pictures * (steps if off else steps + steps / every))
        ? Can a network be evaluated in half a step?

    steps divided by k, and one more
        pictures * (steps + (0 if off else steps // every + 1))
        pictures * (steps + steps // every + 1)
        pictures * (steps + (0 if off else up(steps, every) + 1))
        ? Of 8 steps with k = 4, in which ones is it computed? Count from the first.

    the first step left out of the unconditional ones
        pictures * (steps + (0 if off else up(steps, every) - 1))
        pictures * (steps + up(steps, every) - 1)
        ? What would the steps before step k reuse?

    one unconditional prediction in the whole run
        pictures * (steps if off else steps + 1)
        pictures * (steps + 1)
        ? Do the latents, on which it depends, stay the same?

    the steps that reuse the prediction counted, and not those that compute it
        pictures * (steps if off else 2 * steps - up(steps, every))
        pictures * (steps if off else steps + steps - steps // every)
        pictures * (steps if off else steps * every)
        ? With a larger k, should there be more evaluations or fewer?

    one unconditional prediction for all images
        pictures * steps + (0 if off else up(steps, every))
        pictures * steps + up(steps, every)
        ? It depends on the latents, too, and after the first step no two images share those.

    the number of images left out
        steps if off else steps + up(steps, every)
        steps + up(steps, every)
        steps if off else 2 * steps
        ? Does the network see one image in each step, or a batch?

    the number of images on the unconditional predictions only
        steps + (0 if off else pictures * up(steps, every))
        ? Does the network see one image in each step, or a batch?

    the steps alone, or the images alone
        steps
        pictures
        pictures + steps
        ? How many images does the network see in one step?

    k added or multiplied, where one divides
        pictures * (steps + (0 if off else every))
        pictures * steps * every
        pictures * (steps + every)
        ? With a larger k, should there be more evaluations or fewer?

    the scale as a number of evaluations
        int(pictures * steps * scale)
        ? Is there more to compute at a larger scale?

    steps and images rounded together
        pictures * steps + (0 if off else up(pictures * steps, every))
        ? In how many steps is it computed, and of how many images each time?

    the conditional predictions left out
        pictures * up(steps, every)
        pictures * (steps if off else up(steps, every))
        0 if off else pictures * up(steps, every)
        ? And how often is there a prediction with the prompt?

    both predictions in every step, whatever k is
        pictures * steps * (1 if off else 2)
        pictures * steps * 2
        pictures * steps * (1 if scale <= 1 else 2)
        ? In which steps is the unconditional one computed anew?

    both predictions only in every k-th step
        2 * pictures * up(steps, every)
        pictures * up(steps, every) * (1 if off else 2)
        ? Is the prediction with the prompt reused as well?
    """,
)
