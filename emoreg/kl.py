"""KL from the base on texts of a bank: holds what the model says where nothing is trained.

The divergence is that of whole next-token distributions, so its logits would be the largest tensor
of a step. Here the backbone runs once, and the head on a few tokens at a time, again in backward.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import product
from random import Random
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from torch.utils.checkpoint import checkpoint

from emoreg.bank import Text
from emoreg.base import adapters_off, has_adapters
from emoreg.blocks import unwrap
from emoreg.encode import encode
from emoreg.errors import ConfigError
from emoreg.identity import context_length
from emoreg.sweep import pad
from emoreg.tap import evaluating, forward_backbone, sharded

CHUNK = 256  # tokens that have logits at once: 0.16 GB in float32 for 152 000 words
# What families call a factor on their logits, which some multiply by and some divide by, and a cap.
FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "logits_mup_width_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
PROBED = 64  # tokens on which the logits are compared with the model's own
SAME = 1e-3  # of the largest logit, or a few roundings of a narrower dtype

log = logging.getLogger(__name__)


class KLAnchor:
    """KL(base ‖ policy) of next-token distributions on texts, in nats, with gradient.

    Texts are cut into batches of like length, which come in another order each time around. The
    model runs without dropout, so no random state is touched; gradient checkpointing of
    Transformers, which acts in training mode alone, therefore does not act here, and the
    activations of one batch are kept. The base's are read once and kept on the CPU: for each token
    as many bytes as the model's width in its dtype.

    Under mixed precision call it within the trainer's autocast, as the loss is.

    Args:
        model: With adapters, none of them on its output head; not wrapped by a data parallel.
        tokenizer: Its tokenizer; conversations are left out if it has no chat template.
        texts: Neutral ones, say.
        batch_size: Texts in a step.
        max_tokens: Longer texts are read up to there.
        seed: Of the order.

    Raises:
        ConfigError: The base cannot be read, the head has an adapter or is trained, the logits
            cannot be computed outside the model's forward, or there is nothing to read.
        BankError: A text that cannot be read.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        texts: Sequence[Text],
        batch_size: int = 4,
        max_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        _check_model(model)
        chat = bool(getattr(tokenizer, "chat_template", None))
        kept = [t for t in texts if chat or t.text]
        if len(kept) < len(texts):
            log.warning("No chat template: %d dialogues are left out.", len(texts) - len(kept))
        if not kept or batch_size < 1 or max_tokens < 2:
            raise ConfigError(
                "KL to the base wanted a text, batch_size >= 1 and max_tokens >= 2; got "
                f"{len(kept)} texts, {batch_size} and {max_tokens}."
            )
        self.model, self.seed = model, seed
        most = min(max_tokens, context_length(model) or max_tokens)
        items = [e.within(most) for e in encode(tokenizer, kept, skip=1)]
        self._groups = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
        self._base: dict[int, Tensor] = {}  # group -> (counted, width), on the CPU
        self._factor, self._cap = self._scaling(items[0].ids[:PROBED])

    def texts(self, step: int) -> tuple[Text, ...]:
        """The texts of a step."""
        return tuple(e.text for e in self._groups[self._group(step)])

    def __call__(self, step: int) -> Tensor:
        """Mean over every token but the first of each text, which sees nothing.

        Args:
            step: Whose texts: the same at each call, so that a run may be resumed. Processes that
                share the work give numbers of their own.

        Returns:
            Scalar, float32, in nats.

        Raises:
            ConfigError: The model was sharded meanwhile.
        """
        _check_whole(self.model)
        group = self._group(step)
        ids, mask = pad(self._groups[group])
        counted = mask.bool()
        counted[:, 0] = False
        at = counted.flatten().nonzero().squeeze(1)  # here, lest a device is waited for
        with evaluating(self.model):
            if group not in self._base:
                with torch.no_grad(), adapters_off(self.model):
                    self._base[group] = self._hidden(ids, mask, at).cpu()
            hidden = self._hidden(ids, mask, at)
        total = hidden.new_zeros((), dtype=torch.float32)
        for policy, base in zip(hidden.split(CHUNK), self._base[group].split(CHUNK), strict=True):
            total = total + checkpoint(
                self._divergence,
                policy,
                base.to(policy),
                use_reentrant=False,
                preserve_rng_state=False,  # nothing is drawn
            )
        return total / len(at)

    def _group(self, step: int) -> int:
        """Which group of texts comes at a step."""
        around, place = divmod(step, len(self._groups))
        order = list(range(len(self._groups)))
        Random(f"{self.seed} {around}").shuffle(order)
        return order[place]

    def _hidden(self, ids: Tensor, mask: Tensor, at: Tensor) -> Tensor:
        """What the head is given at flat positions of a batch, (positions, width)."""
        device = next(self.model.parameters()).device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        found: Tensor = forward_backbone(self.model, inputs)[0].flatten(0, 1)
        return found[at.to(found.device)]

    def _divergence(self, policy: Tensor, base: Tensor) -> Tensor:
        """Sum over tokens of KL(base ‖ policy), from what the head is given, (tokens, width)."""
        with torch.no_grad():
            wanted = self._logits(base)
        found = self._logits(policy)
        with torch.autocast(policy.device.type, enabled=False):
            p, q = (log_softmax(x, -1) for x in (wanted, found))
            return kl_div(q, p, reduction="sum", log_target=True)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits as the model scales them, float32, (tokens, vocabulary)."""
        return _scaled(_head(self.model)(hidden).float(), self._factor, self._cap)

    @torch.no_grad()
    def _scaling(self, ids: list[int]) -> tuple[float, float | None]:
        """The factor and the cap that make the model's own logits out of the head's.

        Raises:
            ConfigError: None do.
        """
        device = next(self.model.parameters()).device
        row = torch.tensor([ids], device=device)
        with evaluating(self.model):
            hidden = self._hidden(row, torch.ones_like(row), torch.arange(len(ids)))
            raw = _head(self.model)(hidden).float()
            inner = unwrap(self.model)
            own = inner(input_ids=row, use_cache=False).logits[0].to(raw.device)
        config = inner.config.get_text_config(decoder=True)
        named = [float(x) for x in (getattr(config, n, None) for n in FACTORS) if x]
        factors = [1.0, *named, *(1 / x for x in named)]
        caps = [None, *(float(x) for x in (getattr(config, n, None) for n in CAPS) if x)]
        errors = {
            way: float((_scaled(raw, *way) - own.float()).abs().max())
            for way in product(factors, caps)
        }
        best = min(errors, key=lambda way: errors[way])
        allowed = max(SAME, 4 * torch.finfo(own.dtype).eps) * float(own.abs().max())
        if not errors[best] <= allowed:
            raise ConfigError(
                f"The logits of {type(inner).__name__} are not its output head's on what its "
                f"backbone gives, times a factor or under a cap of its configuration: they differ "
                f"by {errors[best]:.3g}, wanted {allowed:.3g} at most. KL to the base cannot be "
                "computed in parts for it; leave it out."
            )
        return best


def _scaled(logits: Tensor, factor: float, cap: float | None) -> Tensor:
    logits = logits * factor
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _head(model: nn.Module) -> Any:
    return unwrap(model).get_output_embeddings()


def _check_model(model: nn.Module) -> None:
    """Check that base and logits can be had.

    Raises:
        ConfigError: They cannot.
    """
    if not has_adapters(model):
        raise ConfigError(
            f"{type(model).__name__} has no adapters to switch off, so KL to the base has no base: "
            "use LoRA or another PEFT adapter that changes weights (peft_config), or leave it out."
        )
    _check_whole(model)
    head = _head(model)
    if head is None:
        raise ConfigError(
            f"{type(unwrap(model)).__name__} has no output head (get_output_embeddings() gives "
            "None), so there are no next tokens to compare; leave KL to the base out."
        )
    adapted = any(isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper) for m in head.modules())
    if adapted or any(p.requires_grad for p in head.parameters()):
        raise ConfigError(
            f"The output head, a {type(head).__name__}, has an adapter or is trained, and KL to "
            "the base needs the base's own in backward too, where adapters cannot be switched. "
            "Take it out of target_modules and modules_to_save, or leave KL to the base out."
        )


def _check_whole(model: nn.Module) -> None:
    if sharded(model):
        raise ConfigError(
            "The weights are sharded (DeepSpeed ZeRO-3 or FSDP 2), and the head alone, which KL to "
            "the base runs in parts, is only gathered within a forward of the whole model. Use "
            "data parallel or ZeRO-2, or leave KL to the base out."
        )
