"""What a model answers, greedily, whatever it and its trainer are set to."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import GenerationConfig

from emoreg.blocks import unwrap
from emoreg.errors import CaptureError
from emoreg.tap import evaluating, sharded

BATCH_TOKENS = 24576  # padded, prompts and responses: the own prompts in one batch
METHOD = "_emoreg_generate"  # on a sharded model, for as long as it answers
TOUCHED = ("generation_config", "prepare_inputs_for_generation", METHOD)
Ids = list[int]

log = logging.getLogger(__name__)


def can_answer(model: nn.Module) -> bool:
    """Whether the model has a head that generates; a classifier has none."""
    asked = getattr(unwrap(model), "can_generate", None)
    return bool(asked and asked())


def answers(model: nn.Module, tokenizer: Any, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
    """The likeliest next token, again and again, after each prompt.

    No randomness is drawn; the model's mode, generation settings and attributes are given back.
    Every process of a sharded model must call it with the same prompts.

    Args:
        model: As it stands, adapters included.
        tokenizer: Knows which token ends a response, beside the model's own settings.
        prompts: Token ids.
        tokens: Length of a response, unless it ends before.

    Returns:
        Token ids of each response without the token that ends it; that alone if it is the first.

    Raises:
        CaptureError: Out of memory with a single prompt.
    """
    inner, alike = unwrap(model), _learns_prompt(model)
    stops = ends(inner, tokenizer)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[Ids] = [[] for _ in prompts]
    with torch.no_grad(), evaluating(model), _generating(model, inner) as generate:
        start, budget = 0, BATCH_TOKENS
        while start < len(order):
            group = _batch(order[start:], prompts, tokens, budget, alike)
            rows = [prompts[i] for i in group]
            try:
                new = _generate(generate, rows, tokens, next(model.parameters()).device)
            except torch.OutOfMemoryError as e:
                if len(group) == 1 or sharded(model):  # other processes go on with the whole batch
                    raise CaptureError(
                        f"Out of memory while the model answers a batch of {len(group)} drift "
                        f"prompts of up to {len(rows[-1])} tokens. Ask for shorter responses "
                        "(drift_response_tokens), for none (0), or give shorter prompts."
                    ) from e
                budget = len(group) * (len(rows[-1]) + tokens) // 2
                log.warning("Out of memory: going on with batches of %d tokens.", budget)
            else:
                for i, row in zip(group, new, strict=True):
                    found[i] = _until(row, stops)
                start += len(group)
    return found


def _batch(
    order: Sequence[int], prompts: Sequence[Ids], tokens: int, budget: int, alike: bool
) -> Sequence[int]:
    """The first prompts of those sorted by length that fit into a batch, at least one.

    If `alike`, all of one length.
    """
    number = 1
    while number < len(order):
        length = len(prompts[order[number]])
        fits = (number + 1) * (length + tokens) <= budget
        if not fits or (alike and length != len(prompts[order[0]])):
            break
        number += 1
    return order[:number]


def _learns_prompt(model: nn.Module) -> bool:
    """Whether PEFT puts virtual tokens in front, and then counts padding as text."""
    config = getattr(model, "active_peft_config", None)
    return bool(getattr(config, "is_prompt_learning", False))


def _generate(
    generate: Callable[..., Tensor], rows: Sequence[Ids], tokens: int, device: torch.device
) -> list[Ids]:
    """As many new tokens after each row, which is padded on the left."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = torch.tensor(row), 1
    # Nothing ends a response here: so all processes of a sharded model run as many forwards.
    settings = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, use_cache=True, pad_token_id=0
    )
    found = generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
    )
    new: list[Ids] = found[:, width:].tolist()
    return new


def ends(inner: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a response."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    owners = (tokenizer, getattr(inner, "generation_config", None), inner.config)
    found: set[int] = set()
    for ids in (getattr(owner, "eos_token_id", None) for owner in owners):
        found |= {ids} if isinstance(ids, int) else set(ids or ())
    return found


def _until(row: Ids, ends: set[int]) -> Ids:
    stop = next((i for i, token in enumerate(row) if token in ends), len(row))
    return row[: max(stop, 1)]


@contextmanager
def _generating(model: nn.Module, inner: Any) -> Iterator[Callable[..., Tensor]]:
    """The model's `generate`, without its own settings, which may sample or punish repetition."""
    outer: Any = model
    with ExitStack() as stack:
        for module in {id(m): m for m in (model, inner, getattr(inner, "model", None))}.values():
            if isinstance(module, nn.Module):
                stack.enter_context(_as_before(module))
        inner.generation_config = GenerationConfig()
        if _learns_prompt(model):  # the wrapper puts the virtual tokens in front
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Position ids are not supported")  # there are none
            yield outer.generate
        elif isinstance(outer, FSDPModule) and outer is not inner:
            # The wrapper's forward, which is not called here, would gather what no block owns.
            setattr(outer, METHOD, inner.generate)
            register_fsdp_forward_method(model, METHOD)
            yield getattr(outer, METHOD)
        else:
            yield inner.generate


@contextmanager
def _as_before(module: nn.Module) -> Iterator[None]:
    """Give a module back what is set on it here, and by PEFT's own `generate`."""
    own = vars(module)
    before = {name: own[name] for name in TOUCHED if name in own}
    try:
        yield
    finally:
        for name in TOUCHED:
            own.pop(name, None)
        own.update(before)
