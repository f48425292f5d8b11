"""Fréchet distance (FID), kernel distance (KID), precision and recall of two sets of images, by their features; and the
Inception Score of one, by a classifier.

With an Inception network's features of many thousands of images the Fréchet distance is the FID (lecture notes `002`,
chapter 15; questions `003`, 40); with other features it is comparable with itself alone."""

from typing import NamedTuple

import torch
from torch import Tensor

from minti.vae import DiagonalGaussian


class Gaussian(NamedTuple):
    """Mean (d,) and covariance (d, d), float64."""

    mean: Tensor
    covariance: Tensor


def fit_gaussian(features: Tensor) -> Gaussian:
    """Mean and unbiased covariance of (n, d) features, n >= 2."""
    features = features.double()
    return Gaussian(features.mean(dim=0), torch.cov(features.T).reshape(features.shape[1], -1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2))   (FID, arXiv 1706.08500, eq. 6).

    (S_a S_b)^(1/2) has the trace of (S_a^(1/2) S_b S_a^(1/2))^(1/2), whose inside is symmetric. The distance is biased
    upwards, the more the fewer images there are: compare sets of one size."""
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    inside = torch.linalg.eigvalsh(root @ b.covariance @ root)
    trace = a.covariance.trace() + b.covariance.trace() - 2 * inside.clamp(min=0).sqrt().sum()
    return max(0.0, ((a.mean - b.mean).square().sum() + trace).item())  # of a set with itself, rounding may be below


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """KID: the squared maximum mean discrepancy of (n, d) features with the kernel (x . y / d + 1)^3 (arXiv 1801.01401,
    eq. 4). Unbiased: 0 on average for two sets of one distribution, however small, and so often negative."""
    a, b = a.double(), b.double()
    (k_aa, k_ab, k_bb) = ((x @ y.T / x.shape[1] + 1) ** 3 for x, y in ((a, a), (a, b), (b, b)))
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (k_aa, k_bb)]  # all pairs of two images
    return (sum(within) - 2 * k_ab.mean()).item()


def inception_score(probabilities: Tensor) -> float:
    """exp(E KL(p(y | x) | p(y))) of a classifier's answers, (n, k): from 1 to k (arXiv 1606.03498; `002`, 6.6, 6.2)."""
    p = probabilities.double()
    return (torch.xlogy(p, p) - torch.xlogy(p, p.mean(dim=0))).sum(dim=1).mean().exp().item()


def precision_and_recall(real: Tensor, samples: Tensor, k: int = 3) -> tuple[float, float]:
    """Precision, the share of samples that look real, and recall, the share of real images that could be sampled (arXiv
    1904.06991, eq. 1 and 2). Each set of features, (n, d), stands for balls that reach to the k-th neighbour."""
    return _covered(real, samples, k), _covered(samples, real, k)


def _covered(centres: Tensor, points: Tensor, k: int) -> float:
    if len(centres) <= k:
        raise ValueError(f"{len(centres)} images have no {k}-th neighbour; take more than {k} of each")
    radii = torch.cdist(centres.double(), centres.double()).kthvalue(k + 1, dim=1).values  # the nearest is itself
    return (torch.cdist(points.double(), centres.double()) <= radii).any(dim=1).double().mean().item()


def kl_to_standard_normal(gaussian: DiagonalGaussian) -> Tensor:
    """KL divergence of the VAE's distributions to the standard normal, of each image: (b,) (arXiv 1312.6114, B)."""
    return 0.5 * torch.sum(gaussian.mean**2 + gaussian.logvar.exp() - 1.0 - gaussian.logvar, dim=(1, 2, 3))
