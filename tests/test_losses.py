"""Every term against its definition: values by hand, finite differences, zero when satisfied."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from models import WIDTH, vector_set
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import normalize

from emoreg.config import EmoRegConfig
from emoreg.losses import keep, penalty, pooled_sum, readings, reward
from emoreg.terms import EmotionTerms
from emoreg.tokens import Counted

SEQUENCE = torch.tensor([0] * 23 + [2] * 4 + [3] + [5] * 30)  # sequences 1 and 4 count no token


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


def by_definition(acts: Tensor, directions: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Readings in float64, one number at a time."""
    rows = [
        [
            sum((h - m) * v for h, m, v in zip(token, mu, d, strict=True)) / s
            for d, s in zip(directions, sigma, strict=True)
        ]
        for token in acts.double()
    ]
    return torch.tensor(rows, dtype=torch.float64)


def calibration(emotions: int = 3, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Directions, mu and sigma in float32."""
    directions = normalize(draw(emotions, width, dtype=torch.float32), dim=-1)
    return (
        directions,
        draw(width, dtype=torch.float32),
        draw(emotions, dtype=torch.float32).abs() + 0.5,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("autocast", [True, False])
def test_readings_are_their_definition_in_float32_whatever_the_models_dtype(
    dtype: torch.dtype, autocast: bool
) -> None:
    acts = draw(5, 8).to(dtype) * 30  # far from zero, where bfloat16 has few digits
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = readings(acts, *calibration())
    assert found.dtype == torch.float32
    oracle = by_definition(acts, *calibration())
    torch.testing.assert_close(found.double(), oracle, atol=1e-5, rtol=1e-5)
    rough = readings(acts.bfloat16(), *calibration()).double()
    assert dtype == torch.bfloat16 or (rough - oracle).abs().max() > 1e-2  # control: digits matter


def test_readings_are_zero_at_the_mean_and_count_sigmas() -> None:
    directions, mu, sigma = calibration()
    assert readings(mu, directions, mu, sigma).abs().max() == 0
    found = readings(mu + 2 * sigma[1] * directions[1], directions, mu, sigma)
    assert found[1].item() == pytest.approx(2, abs=1e-5)


# reading, anchor, margin -> penalty, reward
BY_HAND = [
    (3.0, 0.0, 1.0, 4.0, 0.0),
    (0.5, 0.0, 1.0, 0.0, 0.25),
    (1.0, 0.0, 1.0, 0.0, 0.0),
    (-2.0, 0.0, 0.0, 0.0, 4.0),
    (3.0, 2.5, 0.0, 0.25, 0.0),
    (3.0, 2.5, 1.0, 0.0, 0.25),
    (-1.0, -4.0, 1.0, 4.0, 0.0),
]


@pytest.mark.parametrize(("r", "anchor", "margin", "penalised", "rewarded"), BY_HAND)
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_hinge_anchor_and_margin_agree_with_a_calculation_by_hand(
    r: float, anchor: float, margin: float, penalised: float, rewarded: float, kind: Any
) -> None:
    assert penalty(torch.tensor(r), kind(anchor), margin).item() == penalised
    assert reward(torch.tensor(r), kind(anchor), margin).item() == rewarded


def test_keep_is_the_mean_squared_excess() -> None:
    assert keep(torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])).tolist() == [3.0, 0.0]


TERMS: dict[str, Callable[[Tensor], Tensor]] = {
    "penalty": partial(penalty, anchor=0.3, margin=0.2),
    "penalty, anchor of each token": partial(penalty, anchor=draw(58) / 2, margin=0.1),
    "reward": partial(reward, anchor=0.3, margin=0.2),
    "keep": lambda x: keep(x.reshape(29, 2)),
    "mean": lambda x: pooled_sum(x, SEQUENCE, "mean"),
    "top": lambda x: pooled_sum(x, SEQUENCE, "top"),
    "top of penalty": lambda x: pooled_sum(penalty(x, 0.0, 0.1), SEQUENCE, "top"),
}


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_the_gradient_of_every_term_is_its_finite_difference(term: Any) -> None:
    values = draw(58).requires_grad_()
    assert gradcheck(term, (values,))
    (gradient,) = torch.autograd.grad(term(values).sum(), values)
    assert gradient.abs().max() > 0  # control: the term does act


@pytest.mark.parametrize("pool", ["mean", "top"])
@pytest.mark.parametrize(
    ("term", "satisfied", "violated"),
    [
        (penalty, -1.0, 0.6),
        (penalty, 0.0, 2.0),
        (penalty, 0.5, 0.51),
        (reward, 0.5, 0.49),
        (reward, 7.0, -1.0),
    ],
)
def test_a_satisfied_term_is_exactly_zero_with_exactly_zero_gradient(
    term: Any, satisfied: float, violated: float, pool: Any
) -> None:
    def loss_and_gradient(value: float) -> tuple[float, float]:
        reading = torch.full((58,), value, requires_grad=True)
        loss = pooled_sum(term(reading, 0.0, 0.5), SEQUENCE, pool)
        (gradient,) = torch.autograd.grad(loss, reading)
        return loss.item(), gradient.abs().max().item()

    assert loss_and_gradient(satisfied) == (0, 0)
    assert min(loss_and_gradient(violated)) > 0  # control


def top_by_sequence(values: Tensor, sequence: Tensor) -> float:
    """One sequence at a time: its number of tokens times the mean of its highest tenth."""
    total = 0.0
    for number in set(sequence.tolist()):
        own = sorted(values[sequence == number].tolist(), reverse=True)
        kept = own[: math.ceil(len(own) / 10)]
        total += len(own) * sum(kept) / len(kept)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_top_is_the_highest_tenth_of_each_sequence_and_mean_for_equal_values(seed: int) -> None:
    order = torch.randperm(58, generator=torch.Generator().manual_seed(seed))
    values, sequence = draw(58).roll(seed), SEQUENCE[order]  # sequences may interleave
    top = pooled_sum(values, sequence, "top")
    assert top.item() == pytest.approx(top_by_sequence(values, sequence), rel=1e-6)
    assert top > pooled_sum(values, sequence, "mean") + 1  # control: the pools differ
    equal = torch.full((58,), 1.5)
    assert pooled_sum(equal, sequence, "top").item() == pytest.approx(87, abs=1e-4)
    assert pooled_sum(equal, sequence, "mean") == 87


@pytest.mark.parametrize("length", [1, 9, 10, 11, 30, 70, 990, 1000])
def test_the_highest_tenth_is_rounded_up(length: int) -> None:
    values = torch.arange(length, dtype=torch.float32).requires_grad_()
    pooled_sum(values, torch.zeros(length, dtype=torch.long), "top").backward()
    assert values.grad is not None
    assert int((values.grad > 0).sum()) == math.ceil(length / 10)


@pytest.mark.parametrize("pool", ["mean", "top"])
def test_where_nothing_counts_the_sum_is_zero(pool: Any) -> None:
    nothing = torch.empty(0, requires_grad=True)
    assert pooled_sum(nothing, torch.empty(0, dtype=torch.long), pool).item() == 0


COUNTED = Counted(
    torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]]).bool(), torch.tensor([[0] * 4, [1] * 4])
)


def terms_and_gradient(acts: Tensor, **knobs: Any) -> tuple[float, Tensor]:
    """The loss of one batch at block 1, (batch, tokens, width), and its gradient."""
    config = EmoRegConfig.of(
        **{"penalize": {"desperate": 0.7}, "reward": {}, "blocks": [1], **knobs}
    )
    leaf = acts.clone().requires_grad_()
    base = {1: torch.zeros_like(acts)} if config.needs_base else None
    terms = EmotionTerms(vector_set(), config)({1: leaf}, COUNTED, base)
    (gradient,) = torch.autograd.grad(terms.loss, leaf)
    return terms.loss.item(), gradient


@pytest.mark.parametrize("facets", [["stories"], ["stories", "transcripts"]], ids="+".join)
def test_the_gradient_of_the_penalty_lies_in_the_span_of_the_penalised_directions(
    facets: list[str],
) -> None:
    acts = 3 * draw(2, 4, WIDTH, dtype=torch.float32)
    _, gradient = terms_and_gradient(acts, facets=facets)
    probe = vector_set().probe(facets, [1])
    span = probe.directions[0, probe.of("desperate")]
    outside = gradient - gradient @ span.mT @ span
    assert len(span) == len(facets)
    assert outside.abs().max() < 1e-6
    assert (gradient @ span.mT).abs().amax(
        (0, 1)
    ).min() > 1e-3  # control: it acts along each of them


EVERY_TERM = {"reward": {"calm": 0.3}, "keep": 0.2, "anchor": "base", "margin": 0.1}


@pytest.mark.parametrize("pool", ["mean", "top"])
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_what_stands_in_tokens_that_do_not_count_never_reaches_loss_or_gradient(
    garbage: float, pool: str
) -> None:
    acts = 3 * draw(2, 4, WIDTH, dtype=torch.float32)
    spoilt = acts.masked_fill(~COUNTED.mask.unsqueeze(-1), garbage)
    clean = terms_and_gradient(acts, pool=pool, **EVERY_TERM)
    dirty = terms_and_gradient(spoilt, pool=pool, **EVERY_TERM)
    assert clean[0] == dirty[0] > 0
    assert torch.equal(clean[1], dirty[1])
    assert (dirty[1].abs().amax(-1) > 0).equal(COUNTED.mask)  # zero there, and only there
    counts = acts.masked_fill(COUNTED.mask.unsqueeze(-1), garbage)
    assert not math.isfinite(terms_and_gradient(counts, pool=pool, **EVERY_TERM)[0])  # control


def test_the_loss_of_a_batch_is_its_definition_token_by_token() -> None:
    acts = 3 * draw(2, 4, WIDTH, dtype=torch.float32)
    vectors, probe = vector_set(), vector_set().probe(None, [1])
    oracle = 0.0
    for token in acts[COUNTED.mask]:
        r, base = (
            by_definition(h.unsqueeze(0), probe.directions[0], probe.mu[0], probe.sigma[0])[0]
            for h in (token, torch.zeros_like(token))
        )
        mean: dict[str, list[float]] = {"desperate": [], "calm": [], "happy": []}
        for (_, emotion), now, before in zip(probe.rows, r.tolist(), base.tolist(), strict=True):
            value = {
                "desperate": max(now - before - 0.1, 0) ** 2,
                "calm": max(before + 0.1 - now, 0) ** 2,
                "happy": (now - before) ** 2,
            }
            mean[emotion].append(value[emotion])
        for emotion, weight in (("desperate", 0.7), ("calm", 0.3), ("happy", 0.2)):
            oracle += weight * sum(mean[emotion]) / len(mean[emotion])
    assert [len(vectors.facet(f).emotions) for f in ("stories", "transcripts")] == [3, 2]
    assert terms_and_gradient(acts, **EVERY_TERM)[0] == pytest.approx(oracle, rel=1e-5)


def test_a_bfloat16_model_gets_a_bfloat16_gradient_of_a_float32_loss() -> None:
    acts = 3 * draw(2, 4, WIDTH).bfloat16()
    config = EmoRegConfig.of(penalize={"desperate": 0.7}, blocks=[1])
    leaf = acts.clone().requires_grad_()
    terms = EmotionTerms(vector_set(), config)({1: leaf}, COUNTED)
    terms.loss.backward()
    loss, gradient = terms_and_gradient(acts.float())
    assert terms.loss.dtype == torch.float32
    assert terms.loss.item() == loss
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, gradient.bfloat16())
