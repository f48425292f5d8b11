"""Part 10: what often goes wrong with prior preservation."""

from exercise.grader.table import mistakes

SUBJECT, BALANCE = '`001`, "How Does DreamBooth Personalize Models?"', '`001`, "We use a special loss to balance"'
CALLS, GRADIENT = "how often `loss` is called", "the gradient"
PROMPTS = mistakes(
    "template, rare, kind",
    """
    def put(*words): return tuple(template.replace("{}", each) for each in words)
    both = f"{rare} {kind}"
    """,
    """
    the rare word in the class's prompt as well
        put(both, both)
        put(both, rare)
        put(rare, rare)
        put(rare, both)
        ? What do the class's images show?
        @ `001`, "How Does DreamBooth Avoid Forgetting?"

    the thing called by the rare word alone
        put(rare, kind)
        ? What tells the model which kind of thing it is?

    the thing called by its class alone
        put(kind, kind)
        put(kind, rare)
        ? What is this one subject told apart by?

    the two prompts exchanged
        put(kind, both)
        ? Which one is expected first, the subject's or the class's?

    the class before the rare word
        put(f"{kind} {rare}", kind)
        put(f"{kind} {rare}", rare)
        ? In which order are they in the text of this part?

    another template than the one that is given
        (f"a photo of a {both}", f"a photo of a {kind}")
        (f"a photo of {both}", f"a photo of {kind}")
        (f"a {both}", f"a {kind}")
        ? Training uses a different template in every step; which one is this?
        @ the argument `template`

    no template at all
        (both, kind)
        ? What is the argument `template` for?
        @ the argument `template`

    no space between the two words, or something else
        put(rare + kind, kind)
        put(f"{rare}-{kind}", kind)
        put(f"{rare}_{kind}", kind)
        put(f"{rare}, {kind}", kind)
        put(f"{rare}  {kind}", kind)
        ? What separates two words in the text of this part?

    a space too many
        put(f" {both}", kind)
        put(f"{both} ", kind)
        put(f" {both} ", f" {kind} ")
        put(f" {both}", f" {kind}")
        (put(both)[0] + " ", put(kind)[0])
        ? Compare both prompts letter by letter with the text of this part.

    the words behind the template, whose {} is left
        (f"{template} {both}", f"{template} {kind}")
        (template + both, template + kind)
        ? What is the {} in the template for?

    the template left as it is
        (template, template)
        ? Strings do not change: what does `template.format` or `template.replace` return?

    the {} taken out with nothing in it
        put("", "")
        ? What belongs in the template's {}?

    the class twice
        put(f"{rare} {kind} {kind}", kind)
        put(f"{both} {kind}", f"{kind} {kind}")
        ? How often is the class's word in each prompt?

    the words "rare_word" and "class_word" themselves
        put("rare_word class_word", "class_word")
        ? Are they names or texts, in your code?

    an example's words, where the arguments belong
        put("sks toy", "toy")
        put(f"sks {kind}", kind)
        put(f"{rare} toy", "toy")
        ? What are `rare_word` and `class_word` for?

    an article too many
        put(f"a {both}", f"a {kind}")
        ? What is in front of the {} already?

    words between the two
        put(f"{rare} the {kind}", kind)
        put(f"{kind} called {rare}", kind)
        put(f"{rare}, a {kind}", kind)
        put(f"{kind} named {rare}", kind)
        ? How is the subject called in the text of this part?

    another way of formatting than the {} needs
        (template % both, template % kind)
        ? Which method of a string fills in its {}?

    one prompt only
        put(both)[0]
        put(both)
        put(kind)[0]
        ? How many prompts are expected?
    """,
)
PRIOR_LOSS = mistakes(
    "loss, instance, prior, weight",
    "",
    """
    lambda forgotten
        loss(instance) + loss(prior)
        ? What should the loss be with lambda = 0?

    lambda on the thing's loss
        weight * loss(instance) + loss(prior)
        ? Which of the two losses should lambda = 0 switch off?

    lambda on both
        weight * (loss(instance) + loss(prior))
        ? How does lambda then change the balance of the two losses?

    a mean weighted by 1 - lambda and lambda
        (1 - weight) * loss(instance) + weight * loss(prior)
        weight * loss(instance) + (1 - weight) * loss(prior)
        ? With lambda = 1, as in the paper, would both be learned?

    the class's loss subtracted
        loss(instance) - weight * loss(prior)
        loss(instance) - loss(prior)
        ? Should training make the class's loss larger?
        @ `001`, "How Does DreamBooth Avoid Forgetting?"

    the class's loss without a gradient, so that it holds nothing back
        loss(instance) + weight * loss(prior).detach()
        loss(instance) + weight * loss(prior).item()
        ? Does a constant that is added to the loss change any gradient?
        @ `001`, "How Does DreamBooth Avoid Forgetting?"

    the thing's loss without a gradient, so that it is not learned
        loss(instance).detach() + weight * loss(prior)
        loss(instance).item() + weight * loss(prior)
        ? Does a constant that is added to the loss change any gradient?

    right as a number, but without a gradient
        (loss(instance) + weight * loss(prior)).detach()
        ? What does an optimizer need besides the loss?

    a number, where a tensor is needed
        (loss(instance) + weight * loss(prior)).item()
        ? What does an optimizer need besides the loss?

    the class's loss left out
        loss(instance)
        ? What holds the class in its place?
        @ `001`, "How Does DreamBooth Avoid Forgetting?"

    the thing's loss left out
        weight * loss(prior)
        loss(prior)
        ? What teaches the new subject?

    the same batch in both losses
        loss(instance) + weight * loss(instance)
        loss(prior) + weight * loss(prior)
        ? Which batch does each of the two losses belong to?

    divided by lambda
        loss(instance) + loss(prior) / weight
        loss(instance) / weight + loss(prior)
        ? A larger lambda should hold the class back more, or less?

    the mean of the two, where a sum belongs
        (loss(instance) + weight * loss(prior)) / 2
        (loss(instance) + weight * loss(prior)) / (1 + weight)
        (loss(instance) + loss(prior)) / 2
        ? What is divided in this part's formula?

    lambda added, where it multiplies
        loss(instance) + weight + loss(prior)
        ? Does a constant that is added to the loss change any gradient?

    the product of the losses, where their sum belongs
        loss(instance) * weight * loss(prior)
        ? What would the loss be, if one of the two is learned perfectly?

    losses weighted by how many images there are
        (len(instance) * loss(instance) + weight * len(prior) * loss(prior)) / (len(instance) + len(prior))
        ? `loss` is a mean already. What weighs the two means?

    one minus lambda
        loss(instance) + (1 - weight) * loss(prior)
        ? What should the loss be with lambda = 0?

    the losses squared
        loss(instance) ** 2 + weight * loss(prior) ** 2
        ? `loss` is a squared error already. What is added?

    lambda squared, or its root
        loss(instance) + weight**2 * loss(prior)
        loss(instance) + weight**0.5 * loss(prior)
        ? By which number is the class's loss multiplied?

    one loss of both batches together
        loss(torch.cat([instance, prior]))
        loss(torch.cat([instance, weight * prior]))
        ? Their sizes may differ: how much would each of them count?

    the batch multiplied by lambda, not its loss
        loss(instance) + loss(weight * prior)
        ? What does a scaled image show?

    the sum of the batches, where that of their losses belongs
        loss(instance + weight * prior)
        ? What would the sum of two images show?

    the larger of the two losses
        torch.maximum(loss(instance), weight * loss(prior))
        ? Do both count in this part's formula?
    """,
)
