"""Part 8: what often goes wrong with the bounds of a similarity."""

from exercise.grader.table import mistakes

BOUNDS = "the text of this part"
AMONG_THEMSELVES = mistakes(
    "x",
    """
    a, n = F.normalize(x, dim=-1), len(x)
    cosines, dots = a @ a.T, x @ x.T
    """,
    """
    a tensor, where a number belongs
        (cosines.sum() - n) / (n * (n - 1))
        ? Which method returns a tensor's number?
        @ what `among_themselves` returns

    each image compared with itself as well
        cosines.mean().item()
        torch.triu(cosines).sum().item() / (n * (n + 1) / 2)
        ? What is on the diagonal, and does it say anything?

    the diagonal taken out of the sum but not out of the count
        ((cosines.sum() - n) / n**2).item()
        (cosines - torch.eye(n)).mean().item()
        ? How many pairs of different images are there?

    the diagonal taken out of the count but not out of the sum
        (cosines.sum() / (n * (n - 1))).item()
        ? Which pairs are in the sum, and how many of them are there?

    vectors that are not of length one
        ((dots.sum() - dots.trace()) / (n * (n - 1))).item()
        dots.mean().item()
        ((dots.sum() - n) / (n * (n - 1))).item()
        ? A cosine does not depend on how long the vectors are.
        @ arXiv 2208.01618, section 5; `000`, task 3c

    normalised over the wrong axis: over the batch
        ((F.normalize(x, dim=0) @ F.normalize(x, dim=0).T).sum().item() - n) / (n * (n - 1))
        (y := F.normalize(x, dim=0) @ F.normalize(x, dim=0).T)[~torch.eye(n, dtype=torch.bool)].mean().item()
        ? Which axis of (n, d) is one image's vector?

    divided by the length of the whole matrix
        (dots / x.norm() ** 2)[~torch.eye(n, dtype=torch.bool)].mean().item()
        ? How long is each row now?

    each pair once in the sum, and twice in the count
        (cosines.triu(1).sum() / (n * (n - 1))).item()
        ? How many pairs are above the diagonal?

    each pair once in the sum, and the whole matrix in the count
        cosines.triu(1).mean().item()
        cosines.tril(-1).mean().item()
        ? How many pairs are above the diagonal?

    each pair twice in the sum, and once in the count
        ((cosines.sum() - n) / (n * (n - 1) / 2)).item()
        ? How many pairs are above the diagonal, and how many beside it?

    one image too few taken out, or one too many
        ((cosines.sum() - 1) / (n**2 - 1)).item()
        ((cosines.sum() - n) / (n**2 - 1)).item()
        ((cosines.sum() - n) / (n - 1)).item()
        ((cosines.sum() - n) / n).item()
        ((cosines.sum() - n) / (n - 1) ** 2).item()
        ((cosines.sum() - n) / (n * (n + 1))).item()
        ? How many pairs of different images are there, for n = 2?

    the diagonal's ones taken from the mean, not from the sum
        cosines.mean().item() - 1
        ? How many ones are on the diagonal, and how many pairs are left?

    the diagonal's ones in a half of the matrix
        cosines.triu().mean().item()
        cosines.tril().mean().item()
        ? What is on the diagonal, and does it say anything?

    a sum, where the mean belongs
        (cosines.sum() - n).item()
        cosines.triu(1).sum().item()
        ? How many pairs of different images are there?

    only neighbours compared
        (a[:-1] * a[1:]).sum(-1).mean().item()
        (a * a.roll(1, 0)).sum(-1).mean().item()
        ? Is image 0 compared with image 2?

    only the first image compared with the others
        cosines[0, 1:].mean().item()
        (a[1:] @ a[0]).mean().item()
        cosines[0].mean().item()
        ? How many pairs of different images are there?

    each image compared with the mean of all
        F.cosine_similarity(x, x.mean(0, keepdim=True)).mean().item()
        ? What comes first, comparing or averaging?

    the most similar other image, where all others belong
        (cosines - 2 * torch.eye(n)).amax(1).mean().item()
        (cosines - 2 * torch.eye(n)).max().item()
        ? Which of the pairs count?

    a distance, where the similarity belongs
        1 - ((cosines.sum() - n) / (n * (n - 1))).item()
        ? Which number have two equal images?

    each image compared with itself only
        cosines.diagonal().mean().item()
        ? Which cosine has every image with itself?
    """,
)
POSITION = mistakes(
    "value, floor, ceiling",
    "",
    """
    floor and ceiling exchanged
        (value - ceiling) / (floor - ceiling)
        (value - ceiling) / (ceiling - floor)
        ? What should the result be at the floor?

    divided by the ceiling, where the room between the two belongs
        (value - floor) / ceiling
        value / ceiling
        ? What should the result be at the ceiling?

    divided by the floor, where the room between the two belongs
        (value - floor) / floor
        value / floor
        ? What should the result be at the ceiling?

    the floor not taken away from the value
        value / (ceiling - floor)
        ? What should the result be at the floor?

    not divided by the room between the two
        value - floor
        ceiling - value
        ? What should the result be at the ceiling?

    the sign the other way round
        (floor - value) / (ceiling - floor)
        ? Is a value above the floor better or worse?

    the room counted from the value, or a sum of both
        (value - floor) / (ceiling - value)
        (value - floor) / (ceiling + floor)
        (value - floor) / (value - ceiling)
        ? What does the formula divide by at the ceiling?

    a bracket is missing
        value - floor / (ceiling - floor)
        value - floor / ceiling - floor
        (value - floor) / ceiling - floor
        ? What is divided by what?

    upside down
        (ceiling - floor) / (value - floor)
        ? What should the result be at the floor?

    counted from the middle
        (value - (floor + ceiling) / 2) / (ceiling - floor)
        ? What should the result be at the floor?

    the square or the root of the position
        ((value - floor) / (ceiling - floor)) ** 2
        ? Linear: where is a value that is half way?

    cut off at 0 and 1
        min(max((value - floor) / (ceiling - floor), 0.0), 1.0)
        max((value - floor) / (ceiling - floor), 0.0)
        min((value - floor) / (ceiling - floor), 1.0)
        ? What should a word get that is worse than its initializer, and one that is above the ceiling?

    the amount without its sign
        abs(value - floor) / (ceiling - floor)
        ? What should a word get that is worse than its initializer?

    a percentage
        100 * (value - floor) / (ceiling - floor)
        ? What should the result be at the ceiling?

    the way from 0 to 1 taken the other way: a mixture of floor and ceiling
        floor + value * (ceiling - floor)
        (floor + ceiling) / 2
        ? Is `value` a similarity, or a position already?

    a whole number
        (value - floor) // (ceiling - floor)
        round((value - floor) / (ceiling - floor))
        int((value - floor) / (ceiling - floor))
        ? What lies between 0 and 1?
    """,
)
