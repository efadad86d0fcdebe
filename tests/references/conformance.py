"""What the conformance checks compare built-in losses with: the formulas of this folder, called as a loss is."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import reference
from reference import Rows, reduced
from references import distillation, embedding, policy, preference, ranking, regression, rewards, tokens
from tensafe.training.losses.testing import LossInfo

Side = Mapping[str, Any]
Kwargs = Mapping[str, Any]


def _tokens(value: Callable[[Kwargs], tokens.Value], *, known: tuple[str, ...] = ()) -> LossInfo:
    """A loss of logits and labels, perhaps with weights; `value(kwargs)` is that of one position."""

    def refer(outputs: Side, batch: Side, **kwargs: Any) -> float:
        given = {**batch, **outputs}
        allowed = {"logits", "labels", "shift_labels", "token_weights", "sample_weights", *known}
        if not given.keys() <= allowed or kwargs.get("ignore_index", -100) != -100:
            raise NotImplementedError
        aligned = given.get("shift_labels")
        drawn = tokens.Weighted(
            given["logits"],
            given["labels"] if aligned is None else aligned,
            _shifted_back(given.get("token_weights"), aligned),
            given.get("sample_weights"),
        )
        return _total(drawn.rows(value(kwargs), shift=kwargs.get("shift", True) and aligned is None), kwargs)

    return LossInfo(reference=refer)


def _shifted_back(weights: Tensor | None, aligned: Tensor | None) -> Tensor | None:
    if weights is not None and aligned is not None:
        raise NotImplementedError
    return weights


def _total(rows: Rows, kwargs: Kwargs) -> float:
    return reduced(rows, kwargs["reduction"], max_length=kwargs.get("max_length"))


def _cross_entropy(kwargs: Kwargs) -> tokens.Value:
    if kwargs.get("class_weights") is not None:
        raise NotImplementedError
    formula = {name: kwargs[name] for name in ("z_loss", "softcap", "logit_scale") if name in kwargs}

    def value(scores: Sequence[float], label: int) -> float:
        smoothing = kwargs["label_smoothing"]
        if kwargs.get("smoothing_formula") == "megatron":
            smoothing *= len(scores) / (len(scores) - 1)
        return reference.cross_entropy(scores, label, smoothing, **formula)

    return value


def _linear_ce(outputs: Side, batch: Side, **kwargs: Any) -> float:
    given = {**batch, **outputs}
    logits = given.pop("hidden_states") @ given.pop("lm_head_weight").T + given.pop("lm_head_bias", 0.0)
    refer = INFOS["token_ce"].reference
    assert refer is not None
    return refer({"logits": logits}, given, **kwargs)


def _divergence(name: str) -> LossInfo:
    def refer(outputs: Side, batch: Side, **kwargs: Any) -> float:
        aligned = batch.get("shift_labels")
        labels = batch.get("labels") if aligned is None else aligned
        pair = distillation.Pair(outputs["logits"], batch["teacher_logits"], labels)
        own = {key: kwargs[key] for key in ("temperature", "scale_tau2", "beta", "alpha", "ratio") if key in kwargs}
        formula = distillation.formula_of(name, **own)

        def at(place: tuple[int, ...]) -> float:
            return formula(pair.logits[place].tolist(), pair.teacher[place].tolist())

        return _total(distillation.rows_of(at, pair.counts(kwargs["shift"] and aligned is None)), kwargs)

    return LossInfo(reference=refer)


def _policy(formula: Callable[[Kwargs], policy.Formula]) -> LossInfo:
    def refer(outputs: Side, batch: Side, **kwargs: Any) -> float:
        if "segment_ids" in batch:
            outputs, batch = _in_rows_of_their_own(outputs, batch)
        logps = outputs["logps"]
        others = [batch.get(name, logps) for name in ("old_logps", "ref_logps", "rollout_logps")]
        drawn = policy.Sampled(logps, batch["advantages"], batch["mask"], *others)
        names = ("kl_coef", "kl_estimator", "rollout_ratio_max", "kl_rollout_weighted")
        common = {name: kwargs[name] for name in names}
        normed = kwargs["reduction"] == "sequence_sum_norm"
        mode = "sequence_sum" if normed else kwargs["reduction"]
        value = policy.expected(drawn, formula(kwargs), mode, **common)[0].item()
        return value / kwargs["max_length"] if normed else value

    return LossInfo(reference=refer)


def _in_rows_of_their_own(outputs: Side, batch: Side) -> tuple[Side, Side]:
    """Unpack rows of several sequences; what fills up does not count, since that is what the mask becomes there."""
    batch = dict(batch)
    ids = batch.pop("segment_ids")
    places = [row == number for row in ids for number in row.unique()]
    rows = [index for index, row in enumerate(ids) for _ in row.unique()]

    def apart(tensor: Tensor) -> Tensor:
        pieces = [tensor[row][place] for row, place in zip(rows, places, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)

    return {key: apart(value) for key, value in outputs.items()}, {key: apart(value) for key, value in batch.items()}


def _clipped(kwargs: Kwargs) -> policy.Formula:
    low, high, dual = kwargs["epsilon_low"], kwargs["epsilon_high"], kwargs["dual_clip"]
    return lambda _, log_ratio, advantage: policy.ppo(math.exp(log_ratio), advantage, low, high, dual)


def _pairs(formula: preference.Formula) -> LossInfo:
    """A loss of pairs, of log-probabilities alone."""

    def refer(outputs: Side, batch: Side, **kwargs: Any) -> float:
        given = {**batch, **outputs}
        if "chosen_nll" in given:
            raise NotImplementedError
        for side in ("chosen", "rejected"):
            if f"{side}_logits" in given:
                given |= _scored(side, given[f"{side}_logits"], given[f"{side}_labels"], shift=kwargs["shift"])
        count = len(given["chosen_logps"])
        columns = [
            (given[f"{name}_{what}"].tolist() if f"{name}_{what}" in given else [default] * count)
            for what, default, names in (
                ("logps", 0.0, ("chosen", "rejected", "ref_chosen", "ref_rejected")),
                ("lengths", 1, ("chosen", "rejected")),
            )
            for name in names
        ]
        pairs = [preference.Pair(*row) for row in zip(*columns, strict=True)]
        own = {key: value for key, value in kwargs.items() if key not in preference._SHARED}
        return _total(reference.elements(list(formula(pairs, **own))), kwargs)

    return LossInfo(reference=refer)


def _scored(side: str, logits: Tensor, labels: Tensor, *, shift: bool) -> dict[str, Tensor]:
    """Log-probability and length of each completion."""
    drawn = tokens.Weighted(logits, labels, None, None)
    rows = drawn.rows(lambda scores, label: -reference.cross_entropy(scores, label), shift=shift)
    sums = [math.fsum(value for value, _ in row) for row in rows]
    lengths = [int(math.fsum(weight for _, weight in row)) for row in rows]
    return {f"{side}_logps": torch.tensor(sums, dtype=torch.float64), f"{side}_lengths": torch.tensor(lengths)}


def _regression(predictions: str, formula: Callable[..., float], *names: str) -> LossInfo:
    def refer(outputs: Side, batch: Side, **kwargs: Any) -> float:
        ours, targets = outputs[predictions], batch["targets"]
        mask = batch.get("mask", torch.ones_like(ours, dtype=torch.bool))
        drawn = regression.Drawn(ours, targets, mask)
        return _total(drawn.rows(formula, **{name: kwargs[name] for name in names}), kwargs)

    return LossInfo(reference=refer)


def _ranked(relevance: str | None) -> LossInfo:
    def refer(outputs: Side, batch: Side, **kwargs: Any) -> float:
        scores = outputs["scores"]
        mask = batch.get("mask", torch.ones_like(scores, dtype=torch.bool))
        drawn = ranking.Lists(scores, scores if relevance is None else batch[relevance], mask)
        return _total(drawn.rows(ranked=relevance is None, top_k=kwargs["top_k"]), kwargs)

    return LossInfo(reference=refer)


def _embeddings(values: Callable[[Side, Kwargs], Sequence[float]]) -> LossInfo:
    def refer(outputs: Side, batch: Side, **kwargs: Any) -> float:
        return _total(reference.elements(values({**batch, **outputs}, kwargs)), kwargs)

    return LossInfo(reference=refer)


def _contrastive(given: Side, kwargs: Kwargs) -> list[float]:
    sides = (given["embeddings_a"], given["embeddings_b"], given.get("embeddings_negative"))
    return embedding.info_nce(*sides, scale=1 / kwargs["temperature"], margin=kwargs["margin"], symmetric=True)


def _multiple_negatives(given: Side, kwargs: Kwargs) -> list[float]:
    sides = (given["embeddings_a"], given["embeddings_b"], given.get("embeddings_negative"))
    own = {name: kwargs[name] for name in ("scale", "similarity", "symmetric")}
    return embedding.info_nce(*sides, **own)


def _triplet(given: Side, kwargs: Kwargs) -> list[float]:
    sides = (given["anchor"], given["positive"], given["negative"])
    return embedding.triplet(*sides, margin=kwargs["margin"], kind=kwargs["distance"])


def _nt_xent(given: Side, kwargs: Kwargs) -> list[float]:
    return embedding.nt_xent(given["embeddings_a"], given["embeddings_b"], temperature=kwargs["temperature"])


def _margin_ranking(given: Side, kwargs: Kwargs) -> list[float]:
    return reference.margin_ranking(given["chosen_scores"], given["rejected_scores"], margin=kwargs["margin"])


def _bradley_terry(given: Side, kwargs: Kwargs) -> list[float]:
    own = {name: kwargs[name] for name in ("margin", "center_rewards", "label_smoothing")}
    sides = [given["chosen_rewards"].tolist(), given["rejected_rewards"].tolist()]
    margins = given["margins"].tolist() if "margins" in given else [0.0] * len(sides[0])
    return [rewards.bradley_terry(*row, **own) for row in zip(*sides, margins, strict=True)]


_PAIRS: dict[str, Callable[..., float]] = {
    "dpo": preference.dpo,
    "cdpo": preference.cdpo,
    "robust_dpo": preference.robust_dpo,
    "ipo": preference.ipo,
    "hinge_dpo": preference.hinge_dpo,
    "sigmoid_norm": preference.sigmoid_norm,
    "simpo": preference.simpo,
    "orpo": preference.orpo,
    "apo_zero": preference.apo_zero,
    "apo_down": preference.apo_down,
    "bco_pair": preference.bco_pair,
    "nca": preference.nca,
    "sppo": preference.sppo,
    "exo": preference.exo,
    "f_dpo": preference.f_dpo,
}

INFOS: dict[str, LossInfo] = {
    "token_ce": _tokens(_cross_entropy),
    "prm_ce": _tokens(_cross_entropy),
    "linear_ce": LossInfo(reference=_linear_ce),
    "dft": _tokens(lambda _: tokens.dft),
    "focal": _tokens(
        lambda kwargs: lambda scores, label: tokens.focal(scores, label, kwargs["gamma"], kwargs["alpha"])
    ),
    **{name: _divergence(name) for name in distillation.DIVERGENCES},
    **{name: _policy(_clipped) for name in ("ppo", "grpo", "dapo", "dr_grpo")},
    **{name: _pairs(preference.each(formula)) for name, formula in _PAIRS.items()},
    "aot": _pairs(preference.aot),
    "aot_unpaired": _pairs(preference.aot_unpaired),
    "mse": _regression("predictions", lambda prediction, target: (prediction - target) ** 2),
    "l1": _regression("predictions", regression.l1),
    "huber": _regression("predictions", regression.huber, "delta"),
    "bce": _regression("logits", regression.bce, "pos_weight", "label_smoothing"),
    "plackett_luce": _ranked(None),
    "listmle": _ranked("relevance"),
    "contrastive": _embeddings(_contrastive),
    "multiple_negatives": _embeddings(_multiple_negatives),
    "triplet": _embeddings(_triplet),
    "nt_xent": _embeddings(_nt_xent),
    "margin_ranking": _embeddings(_margin_ranking),
    "bradley_terry": _embeddings(_bradley_terry),
}
"""By name of a built-in loss; an independent value, where this folder has one."""
