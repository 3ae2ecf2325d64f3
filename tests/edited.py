"""Steps of SFT with edits, and the same by hand with plain hooks and no code of emoreg."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hand import READ, SCOPE, blocks_of
from oracle import ids_and_labels
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from trainers import (
    Recorder,
    control,
    gradients,
    make_rows,
    make_trainer,
    make_vectors,
)

from emoreg.bank import Text

METHODS: dict[str, dict[str, Any]] = {
    "prevent": {"penalize": {"desperate": 2.0}, "reward": {"calm": 0.5}},
    "ablate": {"penalize": {"desperate": 0.7, "happy": 0.7}, "reward": {}},
    "cap": {"penalize": {"desperate": 0.8}, "reward": {}, "margin": 0.1},
}
TEXTS = [Text("neutral", text=text) for text in ("The lamp is out.", "Two miles, or three.")]
of_every_method = pytest.mark.parametrize("method", METHODS)
of_one_method = pytest.mark.parametrize(  # of the others when there is time
    "method", ["cap", *(pytest.param(m, marks=pytest.mark.slow) for m in ("prevent", "ablate"))]
)


def edited(h: Tensor, block: int, method: str, vectors: Any, share: float = 1.0) -> Tensor:
    """Activations after an edit, (tokens, width), by its definition and no code of emoreg."""
    knobs = METHODS[method]
    rows = {  # emotion -> directions and scales of all its facets
        emotion: [
            [x[f.emotions.index(emotion), block] for x in (f.directions, f.sigma)]
            for f in vectors.facets
            if emotion in f.emotions
        ]
        for emotion in vectors.emotions
    }  # fmt: skip
    mu = vectors.mu[block]
    if method == "prevent":
        signed = {**knobs["penalize"], **{e: -w for e, w in knobs["reward"].items()}}
        return h + share * sum(
            w / len(READ) * sigma * v for e, w in signed.items() for v, sigma in rows[e]
        )
    if method == "ablate":
        span = torch.stack([v for e in knobs["penalize"] for v, _ in rows[e]])
        q = torch.linalg.qr(span.T).Q  # the directions are random, so they are independent
        return h - share * 0.7 * (h - mu) @ q @ q.T
    for v, sigma in rows["desperate"]:
        beyond = ((h - mu) @ v - knobs["margin"] * sigma).clamp(min=0)
        h = h - share * 0.8 * beyond[:, None] * v
    return h


@contextmanager
def edits_by_hand(
    model: Any, method: str, at: Any, vectors: Any = None, share: float = 1.0
) -> Iterator[None]:
    """Plain hooks on the blocks that edit some tokens of forwards with gradients.

    Args:
        model: A LoRA of a Llama.
        method: Of `METHODS`.
        at: Gives the mask, bool, (batch, tokens), of those tokens.
        vectors: Those of `trainers` by default.
        share: Of the weights.
    """
    vectors, layers = vectors or make_vectors(), blocks_of(model)

    def hook(block: int) -> Any:
        def after(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            mask = at()
            found = output.clone()
            found[mask] = edited(output[mask], block, method, vectors, share)
            return found

        return after

    handles = [layers[b].register_forward_hook(hook(b)) for b in READ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def loss_by_hand(
    model: Any, method: str, scope: tuple[str, ...] = SCOPE, share: float = 1.0, virtual: int = 0
) -> Tensor:
    """The loss of SFT over all rows, one unpadded row at a time, with edits."""
    total, targets = torch.zeros(()), 0
    for ids, labels in ids_and_labels(make_rows()):
        first = next(i for i, label in enumerate(labels) if label != -100)
        parts = {
            "completion": range(first, len(ids)),
            "colon": [first - 1],
            "prompt": range(1, first),
        }
        mask = torch.zeros(1, virtual + len(ids), dtype=torch.bool)
        mask[0, sorted({virtual + i for name in scope for i in parts[name]})] = True
        row = torch.tensor([ids])
        with edits_by_hand(model, method, lambda mask=mask: mask, share=share):
            logits = model(input_ids=row).logits[0, virtual:]
        total = total + cross_entropy(logits[first - 1 : -1], row[0, first:], reduction="sum")
        targets += len(ids) - first
    return total / targets


def step(folder: Path, method: str = "", model: Any = None, **how: Any) -> tuple[Any, Recorder]:
    """One step of SFT, of no length, with or without edits; knobs begin with an underscore."""
    args = {k: v for k, v in how.items() if not k.startswith("_")}
    knobs = {k[1:]: v for k, v in how.items() if k.startswith("_")}
    trainer, recorder = make_trainer(folder, model, **{"learning_rate": 0.0, **args}), Recorder()
    if method:
        control(trainer, **{"method": method, "blocks": READ, **METHODS.get(method, {}), **knobs})
    trainer.add_callback(recorder)
    trainer.train()
    return trainer, recorder


def gradient_by_hand(model: Any, method: str, **how: Any) -> tuple[float, dict[str, Tensor]]:
    model.train()
    model.zero_grad()
    loss = loss_by_hand(model, method, **how)
    loss.backward()
    return loss.item(), gradients(model)
