"""What the README and docs/ show is run: commands on the embedded model, Python, the diff.

Flags are appended that make a command cheap. What needs a model of the hub is parsed, in
test_readme.py, and run with stand-ins, in test_readme_whole.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from markdown_pages import ROOT, pages
from peft import LoraConfig
from shown import BANK, BLOCKS, NOT_RUN, RUN, clone, enter, hub, kind, run
from trainers import PROMPT_FILE
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from emoreg import AuditCallback, EmotionRegularizer, EmotionVectors, bank
from emoreg.tiny import EPISODES, MODEL

ARGS: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "max_steps": 2, "per_device_train_batch_size": 2,
    "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no",
}  # fmt: skip
RECIPE = [
    *(part for name, value in ARGS.items() for part in (f"--{name}", str(value))),
    "--eval_strategy", "no", "--eval_on_start", "false", "--emoreg_drift_response_tokens", "0",
    "--emoreg_drift_on_policy", "never", "--emoreg_drift_prompts", str(PROMPT_FILE),
    "--emoreg_bank", BANK,
]  # fmt: skip
READ = ["--prompts", str(PROMPT_FILE)]
CHEAP: dict[str, list[str]] = {  # flags that are appended to a command
    "accelerate": RECIPE, "train": RECIPE, "audit": [*READ, "--bank", BANK],
    "drift": [*READ, "--response-tokens", "0", "--no-on-policy"],
    "plain_loop.py": ["--steps", "1"], "grpo_rewards.py": ["--steps", "1"],
}  # fmt: skip
SLOW = {"train", "grpo_rewards.py", "extract", "validate", "steer"}
KINDS = {name: {kind(words) for words in block} for name, block in RUN.items()}


@pytest.fixture(name="root", scope="module")
def _root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone holds, and what the commands before have left in it."""
    root = clone(tmp_path_factory.mktemp("clone"))
    for place in ("vectors/my-model", "runs/demo/vectors/tiny"):
        shutil.copytree(ROOT / "vectors/tiny", root / place)
    return root


@pytest.fixture(autouse=True)
def _in_the_clone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(root, monkeypatch)


@pytest.fixture(name="tuned", scope="module")
def _tuned(root: Path) -> Path:
    """The README's recipe, trained for two steps; the demo's two arms are copies of that."""
    words = next(w for block in RUN.values() for w in block if w[0] == "accelerate")
    with pytest.MonkeyPatch.context() as patch:
        enter(root, patch)
        run(words, RECIPE)
    for arm in ("baseline", "emoreg"):
        shutil.copytree(root / "runs/tiny/sft/emoreg", root / "runs/demo" / arm)
    return root / "runs/tiny/sft/emoreg"


def test_every_command_in_a_block_is_run_or_left_for_a_reason() -> None:
    assert set().union(*KINDS.values()) == {*CHEAP, *SLOW, "report"}
    left = [w for name, block in BLOCKS.items() for w in block if w not in RUN.get(name, [])]
    assert {kind(words) for words in left if not hub(words)} == {*NOT_RUN}
    assert len(RUN) >= 6


def test_the_recipe_trains_and_leaves_what_is_promised(tuned: Path) -> None:
    names = {path.name for path in tuned.iterdir()}
    assert names >= {"adapter_model.safetensors", "report.html", "emoreg.jsonl"}


@pytest.mark.usefixtures("tuned")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if kinds & SLOW else ())
        for name, kinds in KINDS.items()
        if "accelerate" not in kinds  # run by `tuned`
    ],
)
def test_a_block_of_commands_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in RUN[name]:
        run(words, CHEAP.get(kind(words), []))
        assert capsys.readouterr().out
        if "--out" in words:
            assert any(Path(words[words.index("--out") + 1]).iterdir())


def test_a_command_that_fails_is_found() -> None:
    with pytest.raises(SystemExit):
        run(["emoreg", "report", "runs/nothing"])


# --- Python and the diff -----------------------------------------------------------------------


@pytest.fixture(name="small")
def _small(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few texts in place of emoreg's own bank."""
    for module in ("auditing", "control"):
        monkeypatch.setattr(f"emoreg.{module}.OWN_BANK", root / BANK)
    for module in ("callbacks", "prompts"):
        monkeypatch.setattr(f"emoreg.{module}.OWN_PROMPTS", PROMPT_FILE)
    monkeypatch.setattr(bank.load_bank, "__defaults__", (root / BANK,))


def rows() -> Any:
    return load_dataset("json", data_files=str(EPISODES / "train.jsonl"))["train"].select(range(4))


def names(out: Path) -> dict[str, Any]:
    """What the pages speak of: a model, its trainer, its vectors."""
    lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    vectors = EmotionVectors.load("vectors/tiny")
    more = {"num_generations": 2, "max_completion_length": 4}
    args = GRPOConfig(str(out), **ARGS, **more)  # first, as it resets what trainers share
    trainer = SFTTrainer(
        model=str(MODEL), args=SFTConfig(str(out), **ARGS), train_dataset=rows(),
        eval_dataset=rows(), peft_config=lora,
    )  # fmt: skip
    return {
        "model": AutoModelForCausalLM.from_pretrained(MODEL), "vectors": vectors, "lora": lora,
        "tokenizer": AutoTokenizer.from_pretrained(MODEL), "trainer": trainer, "rows": rows(),
        "regularizer": EmotionRegularizer(trainer, vectors), "AuditCallback": AuditCallback,
        "prompts": rows().select_columns("prompt"), "args": args,
        "task": lambda completions, **_: [float(i) for i, _ in enumerate(completions)],
        "GRPOTrainer": GRPOTrainer,
    }  # fmt: skip


PYTHON = [
    pytest.param(block, id=f"{page.path.name} {number}")
    for page in pages()
    for number, block in enumerate(page.blocks("python"), 1)
]


def test_python_blocks_were_found() -> None:
    assert len(PYTHON) >= 4


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("block", PYTHON)
def test_a_python_block_runs(block: str, tmp_path: Path) -> None:
    exec(block, names(tmp_path))


def applied(diff: str) -> tuple[str, str]:
    """A diff's script before, and after."""
    lines = [(line[:1], line[1:]) for line in diff.splitlines()]
    assert {mark for mark, _ in lines} <= {" ", "+", "-"}
    before, after = (
        "\n".join(text for mark, text in lines if mark in kept) for kept in (" -", " +")
    )
    return before, after


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("changed", [False, True])
def test_the_script_runs_before_and_after_the_diff(changed: bool, root: Path) -> None:
    (diff,) = pages()[0].blocks("diff")
    script = applied(diff)[changed]
    assert 'SFTConfig(output_dir="runs/mine")' in script
    quick = script.replace('output_dir="runs/mine"', 'output_dir="runs/mine", **quick')
    shutil.rmtree(root / "runs/mine", ignore_errors=True)
    lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    space: dict[str, Any] = {"model": str(MODEL), "rows": rows(), "lora": lora, "quick": ARGS}
    exec(quick, space)
    logged = {name for row in space["trainer"].state.log_history for name in row}
    assert space["trainer"].state.global_step == 2
    for name in ("emoreg/loss", "emoreg/drift/desperate", "emoreg/audit_verdict"):
        assert (name in logged) == changed  # control: nothing of emoreg in the script before
    assert (root / "runs/mine/report.html").exists() == changed
