"""Part 4: what often goes wrong with a word's attention map."""

from exercise.grader.table import mistakes

MAPS = "`002` 7.4 and the text of this part"
WORD_MAP = mistakes(
    "q, k, places, height, width",
    """
    scores = q @ k.mT / q.shape[-1] ** 0.5
    w = scores.softmax(-1)  # b heads n m
    def page(flat): return flat.reshape(len(q), height, width)
    """,
    """
    height and width exchanged
        w.mean(1)[..., places].sum(-1).reshape(len(q), width, height).mT
        w.mean(1)[..., places].sum(-1).reshape(len(q), width, height)
        ? The positions run row by row; which axis comes first?

    the map of each position not laid out as an image
        w.mean(1)[..., places].sum(-1)
        ? What are height and width for?

    a mean over the word's tokens, where a sum belongs
        page(w.mean(1)[..., places].mean(-1))
        page(w[..., places].mean((1, -1)))
        ? The weights sum to 1 over the tokens; how much do both tokens of a word get together?

    the largest of the word's tokens, where the sum belongs
        page(w.mean(1)[..., places].amax(-1))
        ? The weights sum to 1 over the tokens; how much do both tokens of a word get together?

    the product of the word's tokens, where the sum belongs
        page(w.mean(1)[..., places].prod(-1))
        ? The weights sum to 1 over the tokens; how much do both tokens of a word get together?

    only the first or the last of the word's tokens
        page(w.mean(1)[..., places[0]])
        page(w.mean(1)[..., places[-1]])
        ? A word may have several tokens; where are the others?

    a slice from the first to the last token
        page(w.mean(1)[..., places[0] : places[-1]].sum(-1))
        page(w.mean(1)[..., places[0] : places[-1] + 1].sum(-1))
        page(w.mean(1)[..., places[0] : places[0] + len(places)].sum(-1))
        page(w.mean(1)[..., : len(places)].sum(-1))
        ? `places` lists the tokens one by one: which are they, for [1, 3]?

    a sum over the heads, where a mean belongs
        page(w.sum(1)[..., places].sum(-1))
        page(w.sum(1)[..., places].mean(-1))
        ? Can the weights of a position sum to more than 1?
        @ `002` 1.4

    the largest weight of all heads, where their mean belongs
        page(w.amax(1)[..., places].sum(-1))
        page(w[..., places].sum(-1).amax(1))
        ? A map is the mean over the heads.
        @ `002` 1.4

    only one of the heads
        page(w[:, 0][..., places].sum(-1))
        page(w[:, -1][..., places].sum(-1))
        ? Do the other heads look at the same places?
        @ `002` 1.4

    the heads' scores averaged before the softmax
        page(scores.mean(1).softmax(-1)[..., places].sum(-1))
        page((q.mean(1) @ k.mean(1).mT / q.shape[-1] ** 0.5).softmax(-1)[..., places].sum(-1))
        ? Heads are independent: what comes first, each head's weights or the mean?
        @ `002` 1.4

    the token before or behind: its place off by one
        page(w.mean(1)[..., [place - 1 for place in places]].sum(-1))
        page(w.mean(1)[..., [place + 1 for place in places]].sum(-1))
        ? `places` already counts the beginning-of-text token, and from 0.

    scores, where weights belong: there is no softmax
        page(scores.mean(1)[..., places].sum(-1))
        page((q @ k.mT).mean(1)[..., places].sum(-1))
        page(scores.mean(1)[..., places].mean(-1))
        ? What do a position's numbers for all tokens sum to?
        @ `002` 1.3, "Key equation"

    a softmax among the word's tokens only
        page(scores[..., places].softmax(-1).mean(1).sum(-1))
        page(scores[..., places].softmax(-1).mean(1).mean(-1))
        ? What do the other tokens of the prompt get?

    softmax over the positions, where the tokens belong
        page(scores.softmax(-2).mean(1)[..., places].sum(-1))
        ? Over what do the weights of a query sum to 1?
        @ `002` 1.3, "Key equation"

    softmax over the heads
        page(scores.softmax(1).mean(1)[..., places].sum(-1))
        ? Over what do the weights of a query sum to 1?
        @ `002` 1.4

    the scores not divided by the root of d
        page((q @ k.mT).softmax(-1).mean(1)[..., places].sum(-1))
        ? Are these the weights that your `attention` has?
        @ `002` 1.3, "Key equation"

    the scores divided by d, where its root belongs
        page((scores / q.shape[-1] ** 0.5).softmax(-1).mean(1)[..., places].sum(-1))
        ? Are these the weights that your `attention` has?
        @ `002` 1.3, "Key equation"

    the map stretched, so that its numbers are no weights any more
        page(w.mean(1)[..., places].sum(-1) / w.mean(1)[..., places].sum(-1).amax(-1, keepdim=True))
        page(w.mean(1)[..., places].sum(-1) / w.mean(1)[..., places].sum(-1).amax())
        page(w.mean(1)[..., places].sum(-1) / w.mean(1)[..., places].sum(-1).sum(-1, keepdim=True))
        ? Could two words' maps still be compared?

    the heads not averaged
        page(w[..., places].sum(-1))
        w[..., places].sum(-1).reshape(*w.shape[:2], height, width)
        ? How many maps has a word, for each image?
        @ `002` 1.4

    the smallest weight of all heads, where their mean belongs
        page(w.amin(1)[..., places].sum(-1))
        ? A map is the mean over the heads.
        @ `002` 1.4

    the word's places taken from the positions, not from the tokens
        page(w.mean(1)[:, places].sum(1))
        ? Which axis of the weights counts the tokens?

    all tokens from the word's first on
        page(w.mean(1)[..., places[0] :].sum(-1))
        ? Where does the word end?

    all tokens but the word's
        page(1 - w.mean(1)[..., places].sum(-1))
        ? Whose weights are wanted?

    the batch averaged as well, or only its first image
        page(w.mean((0, 1), keepdim=True)[0][..., places].sum(-1).expand(len(q), -1))
        w.mean((0, 1))[..., places].sum(-1).reshape(height, width)
        w[0].mean(0)[..., places].sum(-1).reshape(height, width)
        ? Each image of the batch has a map of its own.
    """,
)
