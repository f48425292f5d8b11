"""Part 8: what often goes wrong with the similarity of samples and training images."""

from exercise.grader.table import mistakes

SIMILAR = "arXiv 2208.01618, section 5; `000`, task 3c"
LIKENESS = mistakes(
    "x, y",
    """
    a, b = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    cosines = a @ b.T
    """,
    """
    a tensor, where a number belongs
        cosines.mean()
        ? Which method returns a tensor's number?
        @ what `likeness` returns

    vectors that are not of length one
        (x @ y.T).mean().item()
        (x @ y.T).mean().item() / x.shape[1]
        ? A cosine does not depend on how long the vectors are.

    only one of the two normalised
        (a @ y.T).mean().item()
        (x @ b.T).mean().item()
        ? A cosine does not depend on how long the vectors are: neither of the two.

    normalised over the wrong axis: over the batch
        (F.normalize(x, dim=0) @ F.normalize(y, dim=0).T).mean().item()
        ? Which axis of (n, d) is one image's vector?

    divided by the length of the whole matrix
        (x / x.norm() @ (y / y.norm()).T).mean().item()
        ? How long is each row now?

    divided by the square of the length, or by its root
        ((x / x.norm(dim=-1, keepdim=True) ** 2) @ (y / y.norm(dim=-1, keepdim=True) ** 2).T).mean().item()
        ((x / x.norm(dim=-1, keepdim=True) ** 0.5) @ (y / y.norm(dim=-1, keepdim=True) ** 0.5).T).mean().item()
        ? How long is each row now?

    divided by the sum of the numbers, where the length belongs
        (F.normalize(x, p=1, dim=-1) @ F.normalize(y, p=1, dim=-1).T).mean().item()
        (x / x.sum(-1, keepdim=True) @ (y / y.sum(-1, keepdim=True)).T).mean().item()
        ? The length of a vector is a root of what?

    only image i with image i, where all pairs belong
        (a[: min(len(a), len(b))] * b[: min(len(a), len(b))]).sum(-1).mean().item()
        cosines.trace().item() / len(cosines)
        F.cosine_similarity(x, y).mean().item()
        ? Is there a reason to compare sample i with training image i only?

    the cosine of two means, where the mean of the cosines belongs
        F.cosine_similarity(x.mean(0), y.mean(0), dim=0).item()
        F.cosine_similarity(a.mean(0), b.mean(0), dim=0).item()
        ? What comes first, comparing or averaging?

    the most similar pair, where all pairs belong
        cosines.max().item()
        cosines.amax(1).mean().item()
        cosines.amax(0).mean().item()
        ? Does one training image that is like a sample make all of them alike?

    the least similar pair, where all pairs belong
        cosines.min().item()
        ? How many pairs are there, and which of them count?

    a sum, where the mean belongs
        cosines.sum().item()
        cosines.sum().item() / len(a)
        cosines.sum().item() / len(b)
        cosines.sum().item() / (len(a) + len(b))
        ? How many pairs are there?

    a distance, where the similarity belongs
        1 - cosines.mean().item()
        torch.cdist(a, b).mean().item()
        torch.cdist(x, y).mean().item()
        ? Which number have two equal images?

    the sign or the scale of the cosines changed
        cosines.abs().mean().item()
        cosines.clamp(min=0).mean().item()
        (cosines**2).mean().item()
        (cosines.mean().item() + 1) / 2
        100 * cosines.mean().item()
        100 * cosines.clamp(min=0).mean().item()
        cosines.softmax(-1).mean().item()
        cosines.arccos().mean().item()
        ? A cosine is between -1 and 1. What do you do with it before the mean?

    the samples compared with themselves
        (a @ a.T).mean().item()
        (b @ b.T).mean().item()
        ? Which two sets of images are compared?

    the median, where the mean belongs
        cosines.median().item()
        ? Which of the two do all pairs have a part in?

    the pairs (i, i) left out
        ((cosines.sum() - cosines.trace()) / (cosines.numel() - min(cosines.shape))).item()
        ? Samples and training images are different images: is any of these pairs an image with itself?

    the mean of the batch taken away first
        (F.normalize(x - x.mean(0), dim=-1) @ F.normalize(y - y.mean(0), dim=-1).T).mean().item()
        ? From where does a cosine measure its angle?

    only the first image
        cosines[0].mean().item()
        cosines[:, 0].mean().item()
        cosines[0, 0].item()
        ? How many pairs are there?

    the transpose forgotten
        (a @ b).mean().item()
        ? (n, d) and (k, d): over which axis is the sum of the products?
    """,
)
