"""The terms by hand: over unpadded sequences, one by one, with no code of emoreg."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from models import vector_set
from torch import Tensor, nn
from trainers import gradients

READ = [0, 1]  # blocks; the last one is left out, so that it tells whole forwards from cut ones
KNOBS: dict[str, Any] = {
    "penalize": {"desperate": 1.0}, "reward": {"calm": 0.5}, "blocks": READ, "check_name": False,
}  # fmt: skip
SCOPE = ("completion", "colon")
VECTORS = vector_set()

Readings = dict[str, Tensor]  # emotion -> in σ, (facets and blocks, counted)


@dataclass(frozen=True)
class Row:
    """One sequence, without padding."""

    ids: tuple[int, ...]
    own: frozenset[int]  # places of its completion
    side: str = ""
    tool: frozenset[int] = frozenset()  # places of what a tool put out

    def counted(self, scope: Sequence[str] = SCOPE) -> list[int]:
        """The places that count; the first token is an attention sink."""
        parts = {
            "completion": self.own,
            "colon": {i - 1 for i in self.own if i} - self.own,
            "tool": self.tool,
            "prompt": set(range(len(self.ids))) - self.own - self.tool,
        }
        return sorted(set().union(*(parts[name] for name in scope)) - {0})


Base = Callable[[Row, list[int]], Readings]


def blocks_of(model: Any) -> Sequence[nn.Module]:
    return list(getattr(model, "get_base_model", lambda: model)().model.layers)


def read(model: Any, ids: Sequence[int], at: Sequence[int]) -> Readings:
    """Readings of a sequence at some of its places, by a forward of it alone."""
    seen: list[Tensor] = []
    handles = [b.register_forward_hook(lambda *a: seen.append(a[-1])) for b in blocks_of(model)]
    model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    found: dict[str, list[Tensor]] = {emotion: [] for emotion in VECTORS.emotions}
    for facet in VECTORS.facets:
        for e, emotion in enumerate(facet.emotions):
            for b in READ:
                along = (seen[b][0, at] - VECTORS.mu[b]) @ facet.directions[e, b]
                found[emotion].append(along / facet.sigma[e, b])
    return {emotion: torch.stack(rows) for emotion, rows in found.items()}


def adapters_off(model: Any) -> Base:
    """Readings of the base, which is the model with its adapters off."""

    def base(each: Row, at: list[int]) -> Readings:
        with torch.no_grad(), model.disable_adapter():
            return read(model, each.ids, at)

    return base


def by_hand(
    model: Any, rows: Iterable[Row], unit: str, sides: Sequence[str] = (),
    scope: Sequence[str] = SCOPE, base: Base | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """The loss of `KNOBS` over a window and what is logged of it, from first principles.

    Args:
        model: As it is in training, without dropout.
        rows: The window.
        unit: ``tokens``: a mean over tokens; ``sequences``: over sequences of each one's mean.
        sides: Of which sequences; of all if there are none.
        scope: Which of their tokens.
        base: What readings are compared with; 0 if there is none.
    """
    terms: dict[str, list[Tensor]] = {"penalty/desperate": [], "reward/calm": []}  # of each row
    logs: dict[str, list[Tensor]] = {}  # of each row, a value for each token
    for each in rows:
        at = each.counted(scope)
        reading = read(model, each.ids, at)
        before = base(each, at) if base else {e: torch.zeros_like(r) for e, r in reading.items()}
        beyond = {e: r - before[e] for e, r in reading.items()}
        for emotion, value in reading.items():
            logs.setdefault(f"reading/{emotion}", []).append(value.mean(0))
            logs.setdefault(f"excess/{emotion}", []).append(beyond[emotion].mean(0))
            logs.setdefault(f"reading_{each.side}/{emotion}", []).append(value.mean(0))
        if not sides or each.side in sides:
            terms["penalty/desperate"].append(beyond["desperate"].clamp(min=0).square().mean(0))
            terms["reward/calm"].append(beyond["calm"].clamp(max=0).square().mean(0))
    found = {name: torch.cat(values).mean() for name, values in logs.items()}
    for name, values in terms.items():
        each_mean = torch.stack([value.mean() for value in values])
        found[name] = torch.cat(values).mean() if unit == "tokens" else each_mean.mean()
    found["loss"] = found["penalty/desperate"] + 0.5 * found["reward/calm"]
    return found


def gradient_of(
    model: nn.Module, means: Callable[[], Mapping[str, Tensor]]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Means as numbers, and the gradient of the loss among them."""
    model.zero_grad()
    found = means()
    found["loss"].backward()
    return {name: value.item() for name, value in found.items()}, gradients(model)


def error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """How far a gradient is from another, as a share of it."""
    assert found.keys() == wanted.keys()
    f, w = (torch.cat([g[n].flatten() for n in wanted]) for g in (found, wanted))
    assert w.norm() > 1e-3  # control: there is something
    return float((f - w).norm() / w.norm())
