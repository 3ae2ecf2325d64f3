"""What a step does, counted and not timed: products, bytes that live, bytes kept, waits.

On `fake` tensors a step of any shape runs without its values or its memory: what is counted is
exact for the shapes, dtypes and kernels of the CPU build of PyTorch, and no time.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

aten: Any = torch.ops.aten
WAITS = (aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.equal)
PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm)


class Live(TorchDispatchMode):
    """Follows the storages that operations make, until they are freed.

    Attributes:
        peak: Most bytes of theirs that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = WeakIdKeyDictionary()  # storages that are known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._seen and not self.now:
            self.know(args)
        given = {
            id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)
        }
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                self._meet(leaf.untyped_storage())
        return found

    def know(self, tensors: Any) -> None:
        """These are there already, and are not counted."""
        for leaf in tree_leaves(tensors):
            if isinstance(leaf, Tensor):
                self._seen[leaf.untyped_storage()] = True

    def _meet(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen[storage] = True
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


class Ops(TorchDispatchMode):
    """How often operations run, by name.

    Attributes:
        calls: Of every operation, with the shapes of the tensors it was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[torch.Size, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = tuple(x.shape for x in tree_leaves(args) if isinstance(x, Tensor))
        self.calls.append((func.overloadpacket, shapes))
        return func(*args, **(kwargs or {}))

    def number(self, *kinds: Any) -> int:
        """How many calls are of these kinds."""
        return sum(call in kinds for call, _ in self.calls)


@dataclass
class Saved:
    """What autograd keeps for the backward pass, each storage once."""

    known: set[int] = field(default_factory=set)  # storages of parameters
    sizes: dict[int, int] = field(default_factory=dict)
    most: int = 0
    wide: dict[int, tuple[torch.dtype, torch.Size]] = field(default_factory=dict)
    _held: list[Any] = field(default_factory=list)  # so that no identity is used twice

    def pack(self, tensor: Tensor) -> Tensor:
        """Take note of a tensor that is saved."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.known and key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.wide[key] = (tensor.dtype, tensor.shape)
            self._held.append(storage)
        return tensor

    @property
    def bytes(self) -> int:
        """Of all storages."""
        return sum(self.sizes.values())


@contextmanager
def saved_bytes(parameters: Any) -> Iterator[Saved]:
    """Counts what is saved while the context is open, parameters left out."""
    found = Saved({p.untyped_storage()._cdata for p in parameters})
    with saved_tensors_hooks(found.pack, lambda tensor: tensor):
        yield found


ANSWERS: dict[str, Any] = {
    "item": 1, "__bool__": True, "__int__": 1, "__float__": 1.0, "__index__": 1,
}  # fmt: skip


class _Unknown(TorchFunctionMode):
    """Answers for values that fake tensors do not have: 1, true, and every element."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ANSWERS and isinstance(args[0], FakeTensor):
            return ANSWERS[name]
        masked = name == "__getitem__" and isinstance(args[1], FakeTensor)
        if masked and args[1].dtype == torch.bool:
            return args[0].flatten(0, args[1].dim() - 1)
        return func(*args, **(kwargs or {}))


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], _recurse: bool = True) -> Any:
    """`nn.Module._apply` by new parameters, for fake ones can be neither swapped nor set."""
    for child in module.children():
        child._apply(change)
    for name, held in module._parameters.items():
        if held is not None and (found := change(held.detach())).dtype != held.dtype:
            module._parameters[name] = nn.Parameter(found, held.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else change(buffer)
    return module


@contextmanager
def fake() -> Iterator[FakeTensorMode]:
    """Within, tensors have shapes and no values; what is real outside may go in."""
    with (
        patch.object(nn.Module, "_apply", _apply),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        _Unknown(),
    ):
        yield mode


def with_values(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same method, run with real tensors in the midst of fake ones."""

    def outside(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return method(*args, **kwargs)

    return outside


def blindfold(bench: Any) -> None:
    """Let a bench of fake tensors tell its tokens by those of its batch, which are real."""
    if bench.regularizer is None:
        return
    reader = bench.regularizer._reader
    counting, forwards = reader.counting, reader.forwards
    counting.begin = with_values(counting.begin)
    counting.foresee = with_values(counting.foresee)
    if bench.setting.trainer != "grpo":
        return
    kept: list[Tensor] = []
    shape = bench.setting.shape
    every = torch.arange(shape.rows * shape.tokens)

    def keep(call: Any) -> None:  # for `Rollout.add`: nothing is padded
        kept[:] = [forwards.read(call.acts, every)]

    def of(_batch: Any, counted: Any) -> Tensor:  # for `Rollout.of`
        return kept[0][:, counted.positions]

    forwards.host.done = keep
    forwards._rollouts[True].of = of


@dataclass(frozen=True)
class Count:
    """One step, counted."""

    flops: int
    peak: int  # bytes that live at most, with the weights, gradients and optimizer states
    saved: int  # bytes kept for the backward pass

    def over(self, other: Count) -> dict[str, float]:
        """As ratios to another one."""
        return {
            "flops": self.flops / other.flops,
            "peak": self.peak / other.peak,
            "saved": self.saved / max(other.saved, 1),
        }


def _attention(query: Any, key: Any, *_args: Any, **_kwargs: Any) -> int:
    """Two products, of all pairs of tokens as PyTorch counts them elsewhere, masked or not."""
    rows, heads, tokens, width = query
    return 4 * int(rows * heads * tokens * key[-2] * width)


def _attention_backward(_grad: Any, query: Any, key: Any, *_args: Any, **_kwargs: Any) -> int:
    """Five products: one is made again."""
    return _attention(query, key) * 5 // 2


# PyTorch's counter does not know what runs on a CPU.
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@contextmanager
def no_collection() -> Iterator[None]:
    """Within, cyclic garbage stays: else it would go at moments that other objects decide."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def count(bench: Any) -> Count:
    """One step of a bench, real or fake."""
    model = bench.trainer.model
    if isinstance(next(model.parameters()), FakeTensor):
        blindfold(bench)
    live, flops = Live(), FlopCounterMode(display=False, custom_mapping=ATTENTION)
    live.know([list(model.parameters()), list(model.buffers()), list(bench.inputs.values())])
    with ExitStack() as stack:
        stack.enter_context(no_collection())
        saved = stack.enter_context(saved_bytes(model.parameters()))
        stack.enter_context(flops)
        stack.enter_context(live)
        bench.step()
    return Count(flops.get_total_flops(), bench.own_bytes() + live.peak, saved.bytes)
