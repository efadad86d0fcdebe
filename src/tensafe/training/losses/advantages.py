"""Advantages of completions that were sampled in groups, one group per prompt: what the policy losses are given.

They are plain functions of tensors, for the code that makes a batch out of rewards; no loss calls them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from tensafe._lazy import torch

from .errors import LossInputError, make_error

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["group_advantages", "leave_one_out_advantages"]


def group_advantages(
    rewards: Tensor,
    groups: Tensor | None = None,
    *,
    group_size: int | None = None,
    normalise: Literal["group", "batch", "none"] = "group",
    epsilon: float = 1e-4,
) -> Tensor:
    r"""Return how much better each completion did than its group on average, in standard deviations (GRPO).

    .. math:: A_i = \frac{r_i - \bar r}{\sigma + \epsilon}

    Args:
        rewards: Reward :math:`r` of each completion, float, int or bool `[batch]`.
        groups: Id of the group of each completion, int `[batch]`, in any order; or else `group_size`.
        group_size: Completions per group, where those of a group follow each other; it divides batch.
        normalise: Whose :math:`\sigma`, the unbiased standard deviation of rewards: that of the `group`, of the whole
            `batch`, or `none`, which leaves the difference as it is (Dr. GRPO).
        epsilon: :math:`\epsilon` > 0, which bounds the advantages where rewards hardly differ.

    Returns:
        Advantages `[batch]`, float32 (float64 for float64 rewards). Exactly 0 in a group whose rewards are all equal,
        and so in one of a single completion. A reward of NaN makes those of its group NaN (with `batch`, all).

    Raises:
        LossInputError: The shapes do not fit, or not exactly one of `groups` and `group_size` is given.

    Note:
        Equal to TRL's GRPOTrainer with scale_rewards of the same name, for rewards without NaN.

    Example:
        >>> import torch
        >>> group_advantages(torch.tensor([1.0, 0.0, 5.0, 5.0]), group_size=2, normalise="none")
        tensor([ 0.5000, -0.5000,  0.0000,  0.0000])

    References:
        Shao et al., DeepSeekMath, 2024, arXiv:2402.03300, section 4.1. Without the division: Liu et al., Understanding
        R1-Zero-Like Training, 2025, arXiv:2503.20783.
    """
    group = _grouped(rewards, groups, group_size)
    centred = group.centred
    if normalise == "group":
        centred = centred / (group.deviation + epsilon)
    elif normalise == "batch":
        centred = centred / (_whole(group.rewards).deviation + epsilon)
    return torch.where(group.differs, centred, 0.0).reshape(-1)


def leave_one_out_advantages(rewards: Tensor, groups: Tensor | None = None, *, group_size: int | None = None) -> Tensor:
    r"""Return how much better each completion did than the others of its group on average (RLOO).

    .. math:: A_i = r_i - \frac{1}{n - 1} \sum_{j \ne i} r_j = \frac{n}{n - 1} (r_i - \bar r)

    Args:
        rewards: As in `group_advantages`.
        groups: Likewise.
        group_size: Likewise.

    Returns:
        Advantages `[batch]`, float32 (float64 for float64 rewards). Exactly 0 in a group whose rewards are all equal,
        and so in one of a single completion, which has no others.

    Raises:
        LossInputError: The shapes do not fit, or not exactly one of `groups` and `group_size` is given.

    Note:
        Equal to TRL's RLOOTrainer, for rewards without NaN and without its normalisation over the batch.

    Example:
        >>> import torch
        >>> leave_one_out_advantages(torch.tensor([1.0, 0.0, 5.0, 5.0]), group_size=2)
        tensor([ 1., -1.,  0.,  0.])

    References:
        Ahmadian et al., Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in
        LLMs, 2024, arXiv:2402.14740.
    """
    group = _grouped(rewards, groups, group_size)
    scaled = group.centred * group.size / (group.size - 1).clamp(min=1)
    return torch.where(group.differs, scaled, 0.0).reshape(-1)


class _Grouped(NamedTuple):
    """Rewards beside those of their groups.

    Attributes:
        rewards: Floats; each row belongs to one group.
        members: All rewards of the group of each row.
        present: Which of `members` are meant; the others belong to other groups.
    """

    rewards: Tensor
    members: Tensor
    present: Tensor

    @property
    def size(self) -> Tensor:
        return self.present.sum(1, keepdim=True)

    @property
    def mean(self) -> Tensor:
        return torch.where(self.present, self.members, 0.0).sum(1, keepdim=True) / self.size

    @property
    def centred(self) -> Tensor:
        return self.rewards - self.mean

    @property
    def differs(self) -> Tensor:
        """Whether two rewards of a group differ: where none do, the mean may still be off by a rounding error."""
        return (self.present & (self.members != self.rewards[:, :1])).any(1, keepdim=True)

    @property
    def deviation(self) -> Tensor:
        squares = torch.where(self.present, self.members - self.mean, 0.0).square().sum(1, keepdim=True)
        return (squares / (self.size - 1).clamp(min=1)).sqrt()


def _whole(rewards: Tensor) -> _Grouped:
    row = rewards.reshape(1, -1)
    return _Grouped(row, row, torch.ones_like(row, dtype=torch.bool))


def _grouped(rewards: Tensor, groups: Tensor | None, group_size: int | None) -> _Grouped:
    if (groups is None) is (group_size is None):
        raise _wrong("give one of groups and group_size, and not both", "groups")
    if rewards.ndim != 1:
        raise _wrong(f"rewards must be [batch]; got {list(rewards.shape)}", "rewards")
    rewards = rewards if rewards.dtype is torch.float64 else rewards.to(torch.float32)
    if groups is not None:
        if groups.shape != rewards.shape:
            raise _wrong(
                f"groups must be [batch], {list(rewards.shape)} like rewards; got {list(groups.shape)}", "groups"
            )
        # one row per completion: a table of batch by batch, but no scatter, whose order of adding would not be fixed
        return _Grouped(
            rewards.unsqueeze(1),
            rewards.unsqueeze(0).expand(len(rewards), -1),
            groups.unsqueeze(1) == groups.unsqueeze(0),
        )
    assert group_size is not None
    if group_size < 1 or len(rewards) % group_size:
        raise _wrong(f"group_size must divide the {len(rewards)} rewards; got {group_size}", "group_size")
    rows = rewards.reshape(-1, group_size)
    return _Grouped(rows, rows, torch.ones_like(rows, dtype=torch.bool))


def _wrong(message: str, argument: str) -> LossInputError:
    return make_error(LossInputError, f"{message}.", code="invalid-rewards", loc=(argument,))
