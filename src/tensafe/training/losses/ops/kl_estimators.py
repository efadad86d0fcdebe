"""Estimates of a Kullback-Leibler divergence from the log-probabilities of sampled tokens alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["bounded_exp", "kl_estimate"]

_LARGEST_EXPONENT = 20.0  # e^20 is 4.9e8; float32 ends at e^88, and its square root at e^44


def bounded_exp(log_ratio: Float[Tensor, "*tokens"]) -> Float[Tensor, "*tokens"]:
    """Return the ratio of two probabilities, at most e^20.

    Above, there is no gradient: an infinite ratio that a loss then clips would have one of NaN.
    """
    return log_ratio.clamp(max=_LARGEST_EXPONENT).exp()


def kl_estimate(
    logps: Float[Tensor, "*tokens"], ref_logps: Float[Tensor, "*tokens"], estimator: str
) -> Float[Tensor, "*tokens"]:
    r"""Return an estimate of :math:`\mathrm{KL}(\pi \| \pi_{ref})` for each token, which was drawn from :math:`\pi`.

    .. math:: k_1 = D, \quad k_2 = \tfrac12 D^2, \quad k_3 = e^{-D} - 1 + D, \quad D = \log \pi - \log \pi_{ref}

    Args:
        logps: Log-probabilities :math:`\log \pi` of the tokens, in nats.
        ref_logps: Those under the reference, :math:`\log \pi_{ref}`.
        estimator: `k1`, `k2` or `k3`; `k3+`, the value of k3 with the gradient of k2; `abs`, :math:`|D|`.

    Returns:
        Estimates in nats. Where D < -20, k3 stays at its value at -20 and has no gradient.
    """
    difference = logps - ref_logps
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    if estimator == "abs":
        return difference.abs()
    bounded = difference.clamp(min=-_LARGEST_EXPONENT)
    k3 = torch.expm1(-bounded) + bounded
    if estimator == "k3":
        return k3
    k2 = 0.5 * difference.square()
    return k3.detach() + (k2 - k2.detach())
