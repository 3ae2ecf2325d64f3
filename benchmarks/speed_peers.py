"""Designs of others, re-made after their descriptions, as other losses of an SFT trainer.

None of their code is here. Each is one function of a trainer and a probe, which adds its own to
the trainer's loss, puts its own in the loss's place (circuit breakers), or hooks the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, relu

from emoreg.blocks import find_backbone
from emoreg.losses import readings
from emoreg.probe import Probe

Loss = Callable[..., Tensor]


def steer(trainer: Any, probe: Probe, strength: float = 1.0) -> None:
    """Persona Vectors: a multiple of one direction is added at one block, to every token."""
    block = probe.blocks[len(probe.blocks) // 2]
    device = next(trainer.model.parameters()).device
    added = (strength * probe.directions[len(probe.blocks) // 2, 0]).to(device)

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + added.to(output[0]), *output[1:])
        return output + added.to(output)

    find_backbone(trainer.model).blocks[block].register_forward_hook(hook)


def hidden(trainer: Any, probe: Probe) -> None:
    """A penalty on one direction at every block, from the model's own `output_hidden_states`."""
    compute = _with_states(trainer)

    def loss(model: Any, inputs: Any, **kwargs: Any) -> Tensor:
        own, states = compute(model, inputs, **kwargs)
        found: Tensor = own + sum(_penalty(h, probe) for h in states[1:])
        return found

    trainer.compute_loss = loss


def reference(trainer: Any, probe: Probe) -> None:
    """Obfuscation Atlas: whole forwards without gradients, adapters off and on, beside the step."""
    compute = _with_states(trainer)

    def loss(model: Any, inputs: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            with trainer.model.disable_adapter():
                base = _states(model, inputs)
            before = _states(model, inputs)
        _trained(trainer)
        own, states = compute(model, inputs, **kwargs)
        at = probe.blocks[-1] + 1
        beyond = _penalty(states[at] - base[at], probe)
        moved = (states[at] - before[at]).float().square().mean()
        found: Tensor = own + beyond + 0.0 * moved
        return found

    trainer.compute_loss = loss


def breakers(trainer: Any, probe: Probe) -> None:
    """Circuit breakers: some texts keep all hidden states, on others those of the base repel."""
    at = [b + 1 for b in probe.blocks]

    def loss(model: Any, inputs: Any, *_args: Any, **_kwargs: Any) -> Tensor:
        with torch.no_grad(), trainer.model.disable_adapter():
            kept = torch.stack(_states(model, inputs)).detach()
            broken = torch.stack(_states(model, inputs))[at].detach()
        _trained(trainer)
        now = torch.stack(_states(model, inputs))
        retain = (now - kept).float().norm(dim=-1).mean()
        turned = torch.stack(_states(model, inputs))[at]
        repel = relu(cosine_similarity(turned.float(), broken.float(), dim=-1)).mean()
        return retain + repel

    trainer.compute_loss = loss


PEERS: dict[str, Callable[..., None]] = {
    "steer": steer, "hidden": hidden, "reference": reference, "breakers": breakers,
}  # fmt: skip


def _with_states(trainer: Any) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]]:
    """The trainer's own loss, and all hidden states of its forward.

    Its fused head gives none back, so they are asked of the model below the head.
    """
    compute, seen = trainer.compute_loss, list[tuple[Tensor, ...]]()
    below = trainer.model.get_base_model().model

    def loss(model: Any, inputs: Any, **kwargs: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        asks = below.register_forward_pre_hook(
            lambda _m, args, own: (args, {**own, "output_hidden_states": True}), with_kwargs=True
        )
        keeps = below.register_forward_hook(lambda _m, _a, out: seen.append(out.hidden_states))
        own = compute(model, inputs, **kwargs)
        asks.remove()
        keeps.remove()
        return own, seen.pop()

    return loss


def _states(model: Any, inputs: Any) -> tuple[Tensor, ...]:
    """All hidden states, with logits that nobody reads, as these designs have it."""
    inputs = {k: v for k, v in inputs.items() if k != "labels"}
    found: tuple[Tensor, ...] = model(
        **inputs, use_cache=False, output_hidden_states=True
    ).hidden_states
    return found


def _penalty(h: Tensor, probe: Probe) -> Tensor:
    one = (probe.directions[-1, :1], probe.mu[-1], probe.sigma[-1, :1])
    found: Tensor = relu(readings(h, *(x.to(h.device) for x in one))).square().mean()
    return found


def _trained(trainer: Any) -> None:
    """PEFT switches every parameter of its adapters to trained; the base's never were."""
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
