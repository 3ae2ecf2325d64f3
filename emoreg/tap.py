"""Read or edit the output of decoder blocks for as long as a context is open.

The tap is the only thing that touches a user's model. Two hooks on the backbone open and close a
window; a hook on each watched block keeps a reference to its output while the window is open.
Gradient mode is tested at the backbone, not at the block: under re-entrant checkpointing a block
may run without gradients although its output gets one afterwards. A hook on the model around the
backbone notes what that was given: a wrapper may turn tokens into embeddings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from emoreg.blocks import check_blocks, find_backbone, unwrap

Edit = Callable[[int, Tensor], Tensor]


class Call(NamedTuple):
    """One forward of a backbone."""

    backbone: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: Mapping[str, Any]  # to the model around the backbone, if that was called
    acts: dict[int, Tensor]  # block -> output, (batch, tokens, width), by reference

    @property
    def ids(self) -> Tensor | None:
        """Token ids, (batch, tokens), if the forward had any."""
        named = self.kwargs.get("input_ids")
        first = self.args[0] if self.args and named is None else named
        return first if isinstance(first, Tensor) else self.given.get("input_ids")


def every_forward(_call: Call) -> bool:
    """Window test: every forward."""
    return True


def policy_forward(call: Call) -> bool:
    """Window test: the forward that is trained, not a generation, reference or teacher pass."""
    return torch.is_grad_enabled() and call.backbone.training


class Tap:
    """Reads the output of blocks, (batch, tokens, width), or edits it.

    Args:
        model: A causal language model, bare or wrapped.
        blocks: Decoder blocks, counted from 0.
        edit: If given, the output of each watched block is replaced by ``edit(block, output)``;
            what is read is the block's own.
        when: Asked at each forward of the backbone: whether this one is seen.
        done: Handed each forward that was seen when it ends, after which it is forgotten.

    Forwards in other threads than the one that opened the tap are never seen.

    Attributes:
        calls: The forwards seen since `clear`, each with its outputs.
        armed: While false no forward is seen; the hooks stay, as compiled models need.

    Raises:
        BlocksNotFoundError: The model has no such blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[int],
        edit: Edit | None = None,
        when: Callable[[Call], bool] = every_forward,
        done: Callable[[Call], None] | None = None,
    ) -> None:
        self.model, self.backbone = model, find_backbone(model)
        self.blocks = check_blocks(blocks, self.backbone)
        self.edit, self.when, self.done = edit, when, done
        self.armed = True
        self.calls: list[Call] = []
        self._given: Mapping[str, Any] = {}
        self._window = False
        self._thread = get_ident()
        self._stop_after: int | None = None
        self._handles: list[RemovableHandle] = []

    def open(self) -> Tap:
        """Put the hooks in place; `close` takes them away, whatever happens between."""
        if self._handles:
            raise RuntimeError("This tap is open already; close it first.")
        self._thread = get_ident()
        try:
            module = self.backbone.module
            if self.model is not module:
                around = self.model.register_forward_pre_hook(self._around, with_kwargs=True)
                self._handles.append(around)
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
        self._given = {}
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self.calls = []

    @property
    def acts(self) -> dict[int, Tensor]:
        """Block -> output of the last forward that was seen, by reference."""
        return self.calls[-1].acts if self.calls else {}

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

    def _elsewhere(self) -> bool:
        """Whether this is another thread; not asked while compiling, which has one."""
        return not torch.compiler.is_compiling() and get_ident() != self._thread

    def _around(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._elsewhere():
            return
        first = args[0] if args else None
        self._given = {"input_ids": first, **kwargs} if isinstance(first, Tensor) else kwargs

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._elsewhere():
            return
        call = Call(module, args, kwargs, self._given, {})
        self._window = self.armed and self.when(call)
        if self._window:
            # A list, not a counter, which would make compiled models recompile.
            self.calls.append(call)

    def _leave(self, _module: nn.Module, _args: object, output: object) -> None:
        if self._elsewhere():
            return
        self._given = {}
        seen, self._window = self._window, False
        if seen and self.done is not None:
            if output is not None:  # else the forward raised, or was truncated
                self.done(self.calls[-1])
            self.clear()

    def _at_block(self, block: int, _module: nn.Module, _args: object, output: Any) -> Any:
        if not self._window or self._elsewhere():
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        self.calls[-1].acts[block] = hidden
        if self.edit is not None:
            hidden = self.edit(block, hidden)
            output = (hidden, *output[1:]) if isinstance(output, tuple) else hidden
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
        width = inputs["input_ids"].shape[1]  # the virtual tokens of a learned prompt come first
        return {block: h[:, -width:] for block, h in tap.acts.items()}


def run_truncated(tap: Tap, forward: Callable[[], Any]) -> None:
    """Run a forward that ends after the tap's deepest block, or after all if it is sharded."""
    if sharded(tap.model):
        forward()  # the other blocks' hooks gather and free weights; none may be left out
        return
    with tap.truncated():
        try:
            forward()
        except _DeepEnough:
            return


def forward_backbone(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Call the backbone alone, for no logits; virtual tokens and shards need the whole model."""
    inner = unwrap(model)
    if sharded(model):
        takes = "logits_to_keep" in inspect.signature(inner.forward).parameters
        return model(**inputs, use_cache=False, **({"logits_to_keep": 1} if takes else {}))
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return model(**inputs)
    return find_backbone(inner).module(**inputs, use_cache=False)


def sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of the weights: DeepSpeed ZeRO-3, or FSDP 2."""
    return any(hasattr(p, "ds_id") or isinstance(p, DTensor) for p in model.parameters())
