"""What one slip of the hand makes of a name, as regular expressions: so a schema can say which name was meant."""

from __future__ import annotations

__all__ = ["slips"]

_SHORTEST = 5  # one slip away from dpo are ipo, cpo, ppo and cdpo, so none of them is the one that was meant


def slips(name: str) -> list[str]:
    """Return what matches a name with one letter missing, wrong or too many, or with two neighbours swapped.

    The name itself matches too. A short name has no slips: they could be those of many another.

    Example:
        >>> slips("focal")
        ['.?f?ocal', 'f.?o?cal', 'fo.?c?al', 'foc.?a?l', 'foca.?l?', 'focal.', 'ofcal', 'fcoal', 'foacl', 'focla']
    """
    if len(name) < _SHORTEST:
        return []
    edited = [f"{name[:at]}.?{letter}?{name[at + 1 :]}" for at, letter in enumerate(name)]
    swapped = [name[:at] + name[at + 1] + name[at] + name[at + 2 :] for at in range(len(name) - 1)]
    return [*edited, f"{name}.", *(slip for slip in swapped if slip != name)]
