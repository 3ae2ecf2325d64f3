"""Read or edit the output of decoder blocks for as long as a context is open.

The tap is the only thing that touches a user's model. Two hooks on the backbone open and close a
window; a hook on each watched block keeps a reference to its output while the window is open.
Gradient mode is tested at the backbone, not at the block: under re-entrant checkpointing a block
may run without gradients although its output gets one afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from emoreg.blocks import check_blocks, find_backbone, unwrap

Edit = Callable[[int, Tensor], Tensor]


def every_forward(_backbone: nn.Module) -> bool:
    """Window test: every forward."""
    return True


def policy_forward(backbone: nn.Module) -> bool:
    """Window test: the forward that is trained, not a generation, reference or teacher pass."""
    return torch.is_grad_enabled() and backbone.training


class Tap:
    """Reads the output of blocks, (batch, tokens, width), or edits it.

    Args:
        model: A causal language model, bare or wrapped.
        blocks: Decoder blocks, counted from 0.
        edit: If given, the output of each watched block is replaced by ``edit(block, output)``.
        when: Asked with the backbone at each of its forwards: whether this one is seen.

    Attributes:
        acts: Block -> output of the last forward that was seen, by reference.
        calls: Arguments of the backbone, one entry for each forward seen since `clear`.
        armed: While false no forward is seen; the hooks stay, as compiled models need.

    Raises:
        BlocksNotFoundError: The model has no such blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[int],
        edit: Edit | None = None,
        when: Callable[[nn.Module], bool] = every_forward,
    ) -> None:
        self.backbone = find_backbone(model)
        self.blocks = check_blocks(blocks, self.backbone)
        self.edit, self.when = edit, when
        self.armed = True
        self.acts: dict[int, Tensor] = {}
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._window = False
        self._stop_after: int | None = None
        self._handles: list[RemovableHandle] = []

    def open(self) -> Tap:
        """Put the hooks in place; `close` takes them away, whatever happens between."""
        if self._handles:
            raise RuntimeError("This tap is open already; close it first.")
        try:
            module = self.backbone.module
            self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))
            for block in self.blocks:
                hook = partial(self._at_block, block)
                self._handles.append(self.backbone.blocks[block].register_forward_hook(hook))
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Remove every hook and let go of what was kept."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._window = False
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self.acts, self.calls = {}, []

    def __enter__(self) -> Tap:
        return self.open()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @contextmanager
    def truncated(self) -> Iterator[None]:
        """Within, a forward ends after the deepest watched block; see `run_truncated`."""
        self._stop_after = self.blocks[-1]
        try:
            yield
        finally:
            self._stop_after = None

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._window = self.armed and self.when(module)
        if self._window:
            # A list, not a counter, which would make compiled models recompile.
            self.calls.append((args, kwargs))

    def _leave(self, _module: nn.Module, _args: object, _output: object) -> None:
        self._window = False

    def _at_block(self, block: int, _module: nn.Module, _args: object, output: Any) -> Any:
        if not self._window:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        if self.edit is not None:
            hidden = self.edit(block, hidden)
            output = (hidden, *output[1:]) if isinstance(output, tuple) else hidden
        self.acts[block] = hidden
        if block == self._stop_after:
            raise _DeepEnough
        return output if self.edit is not None else None


class _DeepEnough(Exception):
    """Ends a forward after the deepest watched block; never leaves this module."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with every module's own mode given back afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def read(model: nn.Module, blocks: Sequence[int], **inputs: Any) -> dict[int, Tensor]:
    """Outputs of blocks in one forward without gradients, dropout or head, up to the deepest block.

    Args:
        model: A causal language model, bare or wrapped; adapters stay as they are.
        blocks: Decoder blocks, counted from 0.
        inputs: As for the model: ``input_ids`` and ``attention_mask``, (batch, tokens).

    Returns:
        Block -> output, (batch, tokens, width), in the model's dtype.

    Raises:
        BlocksNotFoundError: The model has no such blocks.
    """
    with evaluating(model), Tap(model, blocks) as tap:
        run_truncated(tap, lambda: forward_backbone(model, inputs))
        return dict(tap.acts)


def run_truncated(tap: Tap, forward: Callable[[], Any]) -> None:
    """Run a forward that ends after the tap's deepest block."""
    with tap.truncated():
        try:
            forward()
        except _DeepEnough:
            return


def forward_backbone(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Call the backbone alone, for no logits; PEFT's virtual tokens need the whole model."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return model(**inputs)
    return find_backbone(unwrap(model)).module(**inputs, use_cache=False)
