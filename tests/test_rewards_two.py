"""Two processes, however they share the model, read each its own rollouts like a single one.

As a script: ``torchrun --nproc_per_node 2 test_rewards_two.py FOLDER CASE`` trains one step of GRPO
with rewards of a base and of a policy, and writes every rollout and reading of both processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import conftest  # noqa: F401 - offline before anything is imported
import hand
import pytest
import torch
from accelerate.utils import gather_object
from cases import CASES, clean, talkative, trainer_of
from launch import launch
from models import hooks, tokenizer, vector_set, with_lora
from torch import distributed

from emoreg.identity import identity
from emoreg.rewards import CalmReward, DesperationPenalty

WIDE: dict[str, Any] = {"threshold": -1000.0, "width": 2000.0, "scale": 2000.0}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ddp", "fsdp2", "native", "zero3"])
def test_every_process_reads_its_own_rollouts(case: str, tmp_path: Path) -> None:
    if case.startswith("zero"):
        pytest.importorskip("deepspeed")
    said = launch("test_rewards_two.py", str(tmp_path), case, processes=2)
    path = tmp_path / "told.json"
    assert path.exists(), said
    told = json.loads(path.read_text())
    model = with_lora(talkative(), task_type="CAUSAL_LM")
    assert told["left"] == [[], []]
    assert len(told["rows"]) == 8  # of two processes
    assert len({len(ids) for _, ids, _ in told["rows"]}) > 1  # control: of unlike lengths
    for prompt, ids, found in told["rows"]:
        before = tokenizer()(prompt)["input_ids"]
        row = hand.Row((*before, *ids), frozenset())
        at = [len(before) + i for i, each in enumerate(ids) if each != 1 or len(ids) == 1]
        with torch.no_grad():
            base = hand.adapters_off(model)(row, at)["desperate"].mean(0).max()
            policy = hand.read(model, row.ids, at)["calm"].mean(0).max()
        assert found == pytest.approx([float(base), float(policy)], abs=1e-4)


def trained(folder: Path, case: str) -> dict[str, Any]:
    """A step with two rewards, and what they read."""
    trainer = trainer_of("GRPO", folder, CASES[case])
    assert trainer.accelerator.num_processes == 2
    vectors = vector_set(card={"model": identity(trainer.model, tokenizer())})
    knobs: dict[str, Any] = {"pool": "max", "blocks": hand.READ, "check_name": False, **WIDE}
    made = [
        DesperationPenalty(vectors, **knobs),
        CalmReward(vectors, read_from="policy", **knobs),
    ]
    rows: list[Any] = []

    def task(**batch: Any) -> list[float]:
        batch = {name: batch[name] for name in ("prompts", "completions", "completion_ids")}
        before = hooks(trainer.model)
        paid = [reward(**batch) for reward in made]
        read = [[-a - 1000, b - 1000] for a, b in zip(*paid, strict=True)]
        rows.extend(zip(batch["prompts"], batch["completion_ids"], read, strict=True))
        left.extend(set(hooks(trainer.model)) - set(before))
        return [float(sum(ids) % 7) for ids in batch["completion_ids"]]

    left: list[str] = []
    trainer.reward_funcs[0] = task
    for reward in made:
        reward.bind(trainer)
    trainer.train()
    return {"rows": gather_object(rows), "left": gather_object([left])}


def main(folder: Path, case: str) -> None:
    """Train, and let the first process write."""
    with clean():
        told = trained(folder / f"run-{distributed.is_initialized()}", case)
    if distributed.get_rank() == 0:
        (folder / "told.json").write_text(json.dumps(told))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
