"""A reward is the pooled reading of its rollout, whatever the batch, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hand
import pytest
import torch
import zoo
from models import counting, hooks, tokenizer, vector_set
from peft import LoraConfig
from trl import GRPOTrainer, RLOOTrainer

from emoreg import rewards_reader
from emoreg.errors import (
    CaptureError,
    ConfigError,
    TrainerError,
    UnknownEmotionError,
    VectorMismatchError,
)
from emoreg.identity import identity
from emoreg.rewards import CalmReward, DesperationPenalty, EmotionScreen

KINDS = {"GRPO": GRPOTrainer, "RLOO": RLOOTrainer}
END = 1
READ = {"blocks": hand.READ, "check_name": False}
# Of three lengths, one that ends, one cut off, one that ends at once.
WRITTEN = [[70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, END], [90, 91, 92], [END]]
ASKED = ["Tea?", "The lamp is out again, and so on.", "Why?"]


@cache
def vectors() -> Any:
    return vector_set(card={"model": identity(zoo.head(), tokenizer())})


def make(tmp_path: Path, funcs: Sequence[Any], kind: str = "GRPO", **args: Any) -> Any:
    """A trainer whose model has adapters that change it, unless `lora` is false."""
    lora = args.pop("lora", True)
    builder = zoo.TRAINERS[kind]
    rows = args.pop("rows", None) or dict(builder.columns)
    return KINDS[kind](
        model=zoo.at_home(zoo.head(), tmp_path / "policy"),
        args=builder.settings(tmp_path, **args),
        processing_class=tokenizer(),
        reward_funcs=list(funcs),
        train_dataset=zoo.Dataset.from_dict(rows),
        peft_config=LoraConfig(**zoo.LORA, task_type="CAUSAL_LM") if lora else None,
    )


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make(tmp_path_factory.mktemp("grpo"), [zoo.reward])


def bound(trainer: Any, kind: Any = DesperationPenalty, **knobs: Any) -> Any:
    """A reward that pays its reading as it is: from -1000 σ, over 2000."""
    wide = {} if kind is EmotionScreen else {"threshold": -1000.0, "width": 2000.0, "scale": 2000.0}
    made = kind(vectors(), **{**wide, **READ, **knobs})
    made.bind(trainer)
    return made


def readings(reward: Any, prompts: Any = ASKED, ids: Any = WRITTEN, **more: Any) -> list[float]:
    """What such a reward read."""
    completions = [[{"role": "assistant", "content": "x"}] for _ in ids]
    found = reward(prompts=prompts, completions=completions, completion_ids=ids, **more)
    return [reward.sign * pay - 1000 for pay in found]


def direct(trainer: Any, pool: str, emotion: str = "desperate", base: bool = True) -> list[float]:
    """The same by a forward of each rollout alone, unpadded, that knows nothing of emoreg."""
    found, model = [], trainer.model
    for prompt, written in zip(ASKED, WRITTEN, strict=True):
        before = tokenizer()(prompt)["input_ids"]
        after = written[:-1] if written[-1] == END and len(written) > 1 else written
        row = hand.Row((*before, *after), frozenset())
        at = list(range(len(before), len(before) + len(after)))
        with torch.no_grad():
            read = hand.adapters_off(model)(row, at) if base else hand.read(model, row.ids, at)
        tokens = read[emotion].mean(0).sort(descending=True).values
        number = {"mean": len(tokens), "top": -(-len(tokens) // 10), "max": 1}[pool]
        found.append(float(tokens[:number].mean()))
    return found


@pytest.mark.parametrize("pool", ["mean", "top", "max"])
@pytest.mark.parametrize("read_from", ["base", "policy"])
def test_a_reading_is_that_of_the_rollout_alone(trainer: Any, pool: str, read_from: str) -> None:
    trainer.model.eval()
    for kind, emotion in ((DesperationPenalty, "desperate"), (CalmReward, "calm")):
        found = readings(bound(trainer, kind, pool=pool, read_from=read_from))
        wanted = direct(trainer, pool, emotion, read_from == "base")
        assert found == pytest.approx(wanted, abs=1e-5)
        other = direct(trainer, pool, emotion, read_from == "policy")
        assert found != pytest.approx(other, abs=1e-4)  # control: the adapters change it
    assert len(set(wanted)) == 3  # control: rollouts differ


def test_pools_differ_where_there_are_tokens_enough(trainer: Any) -> None:
    by_pool = {p: readings(bound(trainer, pool=p)) for p in ("mean", "top", "max")}
    assert by_pool["mean"][0] < by_pool["top"][0] < by_pool["max"][0]
    assert by_pool["mean"][2] == by_pool["max"][2]  # of one token


@pytest.mark.parametrize("budget", [1, 70, 10_000])
def test_batches_do_not_matter(trainer: Any, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards_reader, "BATCH_TOKENS", budget)
    reward = bound(trainer)
    with counting([trainer.model.get_base_model().model.layers[0]]) as calls:
        found = readings(reward)
    assert calls == [{1: 3, 70: 2, 10_000: 1}[budget]]
    assert found == pytest.approx(direct(trainer, "top"), abs=1e-5)
    again = readings(reward, ASKED[::-1], WRITTEN[::-1])
    assert again == pytest.approx(found[::-1], abs=1e-5)


def test_no_side_that_a_tokenizer_pads_on_matters(trainer: Any) -> None:
    reward, sides = bound(trainer), []
    for side in ("left", "right"):
        trainer.processing_class.padding_side = side
        sides.append(readings(reward))
    assert sides[0] == sides[1]


def test_conversations_are_read_in_the_chat_template(trainer: Any) -> None:
    reward, chats = bound(trainer), [[{"role": "user", "content": text}] for text in ASKED]
    rendered = [f"<|user|>\n{text}<|end|><|assistant|>\n" for text in ASKED]
    assert readings(reward, chats) == pytest.approx(readings(reward, rendered), abs=1e-5)
    assert readings(reward, chats) != pytest.approx(readings(reward), abs=1e-4)  # control


def test_texts_are_tokenised_where_no_tokens_are_given(trainer: Any) -> None:
    reward = bound(trainer)
    found = reward(prompts=["Tea?"], completions=["Leaves."])
    said = [[{"role": "assistant", "content": "Leaves."}]]
    ids = tokenizer()(["Leaves."])["input_ids"]
    assert found == reward(prompts=["Tea?"], completions=["other"], completion_ids=ids)
    assert found == reward(prompts=["Tea?"], completions=said)
    assert found != reward(prompts=["Tea?"], completions=["other"])  # control


def test_a_rollout_without_a_token_has_no_reward(trainer: Any) -> None:
    found = bound(trainer)(prompts=ASKED[:2], completions=["", ""], completion_ids=[[], [70]])
    assert found[0] is None
    assert found[1] is not None


def test_everything_is_given_back_and_nothing_has_a_gradient(trainer: Any) -> None:
    model, reward = trainer.model, bound(trainer)
    model.train()
    model.get_base_model().lm_head.eval()  # a module with a mode of its own

    def state() -> Any:
        modes = [module.training for module in model.modules()]
        return modes, [p.requires_grad for p in model.parameters()], hooks(model)

    before = state()
    assert any(before[1])  # control
    seen: list[bool] = []
    layer = model.get_base_model().model.layers[1]
    handle = layer.register_forward_hook(lambda *a: seen.append(a[-1].requires_grad))
    found = readings(reward)
    handle.remove()
    assert seen == [False]
    assert all(type(pay) is float for pay in found)
    assert state() == before
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(CaptureError):
        break_down(trainer, lambda: readings(reward))
    assert state() == before


def break_down(trainer: Any, do: Callable[[], Any]) -> None:
    """Do something while a weight is NaN."""
    weight = trainer.model.get_base_model().model.layers[0].mlp.down_proj.weight.data
    kept = weight.clone()
    weight.fill_(torch.nan)
    try:
        do()
    finally:
        weight.copy_(kept)


def test_a_reading_that_is_not_finite_says_where(trainer: Any) -> None:
    with pytest.raises(CaptureError, match=r"Block 0 gives NaN .* 'rollout \d'.*diverged"):
        break_down(trainer, lambda: readings(bound(trainer)))
    readings(bound(trainer))  # control


def test_rewards_of_one_batch_share_a_forward(trainer: Any) -> None:
    first, second = bound(trainer), bound(trainer, CalmReward)
    apart = bound(trainer, CalmReward, read_from="policy")
    batch = {"prompts": ASKED, "completions": ["x"] * 3, "completion_ids": WRITTEN}
    with counting([trainer.model.get_base_model().model.layers[0]]) as calls:
        found = [first(**batch), second(**batch)]
        assert calls == [1]
        apart(**batch)
        assert calls == [2]
        assert first(**batch) == found[0]  # asked again, read again: the policy may have moved
        assert calls == [3]
        second(**{**batch, "completions": ["x"] * 3})
        assert calls == [4]
    assert found[1] == pytest.approx(bound(trainer, CalmReward)(**batch))


@pytest.mark.parametrize("reading", [-50.0, 0.99, 1.5, 2.0, 3.0, 50.0])
def test_what_is_paid_is_bounded_and_as_documented(reading: float) -> None:
    share = {-50.0: 0, 0.99: 0, 1.5: 0.25, 2.0: 0.5, 3.0: 1, 50.0: 1}[reading]
    for kind, sign in ((DesperationPenalty, -1), (CalmReward, 1)):
        graded = kind(vectors(), threshold=1.0, width=2.0, scale=0.5)
        assert graded._settle([reading, None], None, {}) == [sign * 0.5 * share, None]
        whole = kind(vectors(), mode="threshold", threshold=1.0, scale=0.5)
        assert whole._settle([reading], None, {}) == [sign * 0.5 * (reading > 1)]


def test_every_problem_of_a_configuration_is_told() -> None:
    wrong = {"threshold": float("nan"), "width": 0, "scale": -1, "pool": "last", "mode": "soft"}
    with pytest.raises(ConfigError) as told:
        DesperationPenalty(vectors(), **wrong, read_from="reference")
    assert all(f"\n  - {name} must be" in str(told.value) for name in [*wrong, "read_from"])
    with pytest.raises(ConfigError, match=r"task must be .*\n.*floor must be"):
        EmotionScreen(vectors(), "not a function", floor=float("inf"))  # type: ignore[arg-type]
    with pytest.raises(UnknownEmotionError, match=r"No emotion 'desparate'.*desperate"):
        DesperationPenalty(vectors(), emotion="desparate")
    with pytest.raises(UnknownEmotionError, match="None of the facets"):
        DesperationPenalty(vectors(), emotion="happy", facets=["transcripts"])
    with pytest.raises(UnknownEmotionError, match="Blocks"):
        DesperationPenalty(vectors(), blocks=[7])


def test_an_unbound_reward_says_which_line_is_missing() -> None:
    reward = DesperationPenalty(vectors())
    with pytest.raises(TrainerError, match=r"\n    reward\.bind\(trainer\)"):
        reward(prompts=["a"], completions=["b"])
    with pytest.raises(TrainerError, match=r"reward\.bind\(trainer\)"):
        asyncio.run(reward.as_async()(prompts=["a"], completions=["b"]))


def test_another_emotion_has_another_name() -> None:
    assert DesperationPenalty(vectors()).__name__ == "DesperationPenalty"
    assert DesperationPenalty(vectors(), emotion="happy").__name__ == "DesperationPenalty_happy"
    assert CalmReward(vectors(), name="mine").as_async().__name__ == "mine"


def test_what_a_reward_cannot_be_bound_to_is_refused(trainer: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="Wanted a GRPOTrainer or RLOOTrainer, got str"):
        DesperationPenalty(vectors()).bind("trainer")
    with pytest.raises(TrainerError, match="got SFTTrainer"):
        DesperationPenalty(vectors()).bind(zoo.make("SFT", tmp_path))
    with pytest.raises(VectorMismatchError, match="name"):
        DesperationPenalty(vectors()).bind(trainer)
    twins = [DesperationPenalty(vectors(), **READ) for _ in range(2)]
    with pytest.raises(ConfigError, match="2 reward functions are called DesperationPenalty"):
        twins[0].bind(make(tmp_path / "twins", twins))
