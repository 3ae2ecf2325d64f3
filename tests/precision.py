"""One step with Liger's kernels, without a GPU: in Triton's interpreter, seconds per kernel.

    python precision.py FOLDER SFT …

For each trainer `FOLDER` gets a `.pt` with the gradients of the added term by Liger's kernels and
without them, and the kernels that ran, with how often.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import conftest  # noqa: F401 - offline before anything is imported
import torch
from cases import Case, checkpointing, trainer_of
from ways import step

ROWS = 2  # of the data, in one micro-batch
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "liger": {"use_liger_kernel": True},
    "liger_checkpoint": {"use_liger_kernel": True, **checkpointing(reentrant=False)},
}


def interpret_liger() -> Counter[str]:
    """Make Liger's kernels run in Triton's interpreter (Liger 0.8.5, Triton 3.9.0); count them.

    It hands floats to kernels as they are, where compiled kernels get Triton's scalars; and it does
    not know the GPU library that RMSNorm takes its `rsqrt` from.
    """
    import liger_kernel.ops.rms_norm as rms_norm
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    before, execute = interpreter._implicit_cvt, interpreter.GridExecutor.__call__
    ran: Counter[str] = Counter()

    def convert(arg: Any) -> Any:
        if not isinstance(arg, float):
            return before(arg)
        value = np.array([arg], dtype=np.float32)
        return tl.tensor(interpreter.TensorHandle(value, tl.float32), tl.float32)

    def executing(self: Any, *args: Any, **kwargs: Any) -> Any:
        ran[self.fn.__name__] += 1
        return execute(self, *args, **kwargs)

    interpreter._implicit_cvt = convert
    interpreter.GridExecutor.__call__ = executing
    rms_norm.rsqrt = lambda x: tl.rsqrt(x)  # looked up late: running kernels have their own `tl`
    return ran


def main() -> None:
    """Run every trainer that is named, without Liger first: it changes the classes of models."""
    folder, *columns = sys.argv[1:]
    kernels = interpret_liger()
    found: dict[str, dict[str, Any]] = {column: {} for column in columns}
    for name, options in OPTIONS.items():
        for column in columns:
            kernels.clear()
            with tempfile.TemporaryDirectory() as out:
                done = step(trainer_of(column, Path(out), Case(size=ROWS, options=options)))
            found[column][name] = {"grads": done.grads, "kernels": dict(kernels)}
    for column in columns:
        torch.save(found[column], Path(folder) / f"{column}.pt")


if __name__ == "__main__":
    main()
