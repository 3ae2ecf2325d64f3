"""Rewards in runs of GRPO and RLOO: weights, logs, screens, other forms and models, and the KL."""

from __future__ import annotations

import asyncio
import re
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from models import counting, hooks
from test_generation import WRITTEN, by_vllm
from test_rewards import READ, bound, make, readings, vectors
from trainers import logged, weights

from emoreg.errors import CaptureError, ConfigError
from emoreg.regularizer import EmotionRegularizer
from emoreg.rewards import CalmReward, DesperationPenalty, EmotionScreen
from emoreg.rewards_kl import MOST_NATS, weak_kl

ROOT = Path(__file__).parents[1]
WIDE: dict[str, Any] = {"threshold": -2.0, "width": 4.0, **READ}  # about half, everywhere


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
@pytest.mark.parametrize("rows", ["plain", "chat"])
def test_two_steps_pay_what_is_read_by_weight(kind: str, rows: str, tmp_path: Path) -> None:
    columns = {"prompt": zoo.chats(zoo.PROMPTS) if rows == "chat" else list(zoo.PROMPTS)}
    made = [DesperationPenalty(vectors(), **WIDE), CalmReward(vectors(), **WIDE, scale=2.0)]
    trainer = make(
        tmp_path, [zoo.reward, *made], kind, rows=columns, reward_weights=[1.0, 0.5, 0.25],
        beta=0.2,
    )  # fmt: skip
    before = hooks(trainer.model)
    for reward in made:
        reward.bind(trainer)
    start = weights(trainer.model)
    trainer.train()
    assert hooks(trainer.model) == before
    assert any(not torch.equal(start[n], w) for n, w in weights(trainer.model).items())
    task, taken, added, whole = (
        logged(trainer, key)
        for key in ("rewards/reward/mean", "rewards/DesperationPenalty/mean",
                    "rewards/CalmReward/mean", "reward")
    )  # fmt: skip
    assert len(whole) == 2
    for t, d, c, w in zip(task, taken, added, whole, strict=True):
        assert -1 < d < 0 < c < 2
        assert w == pytest.approx(t + 0.5 * d + 0.25 * c, rel=1e-4)
    for emotion, paid, scale in (("desperate", taken, -1.0), ("calm", added, 2.0)):
        read = logged(trainer, f"emoreg/reward_reading/{emotion}")
        assert paid == pytest.approx([scale * (r + 2) / 4 for r in read], rel=1e-4)
        assert logged(trainer, f"emoreg/reward_over/{emotion}") == [1.0, 1.0]
    extra = trainer._logs["extra"]["CalmReward (σ)"]
    assert len(extra) == len(trainer._logs["prompt"]) > 0


def test_the_async_form_pays_the_same_beside_others(tmp_path: Path) -> None:
    """And the model is read by one at a time, in another thread than the one that waits."""
    threads: list[Any] = []

    async def judge(completions: Any, **_: Any) -> list[float]:
        await asyncio.sleep(0.001)
        return [0.5] * len(completions)

    def forms(is_async: bool, folder: Path) -> Any:
        made = [
            DesperationPenalty(vectors(), **WIDE),
            DesperationPenalty(vectors(), **WIDE, read_from="policy", name="policy"),
            CalmReward(vectors(), **WIDE),
        ]
        funcs = [m.as_async() if is_async else m for m in made]
        trainer = make(folder, [judge, *funcs], beta=0.2)
        for func in funcs:
            func.bind(trainer)
        layer = trainer.model.get_base_model().model.layers[0]

        def seen(module: Any, *_: object) -> None:
            if not torch.is_grad_enabled() and not module.training:
                threads.append(threading.current_thread())

        handle = layer.register_forward_hook(seen)
        trainer.train()
        handle.remove()
        return trainer

    one, two = forms(False, tmp_path / "a"), forms(True, tmp_path / "b")
    assert len({t is threading.main_thread() for t in threads}) == 2
    names = ("judge", "DesperationPenalty", "policy", "CalmReward")
    for key in (*(f"rewards/{name}/mean" for name in names), "loss", "emoreg/reward_reading/calm"):
        assert logged(two, key) == logged(one, key)
    paid = [logged(one, f"rewards/{name}/mean") for name in names[1:3]]
    assert paid[0] != paid[1]  # control: adapters off and on, at the same time


def test_completions_by_vllm_are_read_by_the_trainers_model(tmp_path: Path) -> None:
    reward = DesperationPenalty(vectors(), **WIDE)
    trainer = make(tmp_path, [zoo.reward, reward], max_steps=1, beta=0.2)
    by_vllm("server", lambda _: None)(trainer)
    generate = trainer.model.generate
    trainer.model.generate = lambda *_a, **_k: pytest.fail("the policy was asked to generate")
    reward.bind(trainer)
    trainer.train()
    trainer.model.generate = generate
    assert trainer.vllm_generation.synced == 1  # control: it was asked
    prompts = [text for text in zoo.PROMPTS[:2] for _ in range(2)]
    wanted = reward(prompts=prompts, completions=["x"] * 4, completion_ids=WRITTEN[:4])
    assert logged(trainer, "rewards/DesperationPenalty/mean") == pytest.approx(
        [sum(wanted) / 4], rel=1e-5
    )


@pytest.mark.slow
def test_the_example_runs_on_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    log = import_module("grpo_rewards").main(["--steps", "2"])
    assert len(log) == 2
    for row in log:
        assert -1 <= row["rewards/DesperationPenalty/mean"] <= 0 <= row["rewards/CalmReward/mean"]
        assert row["emoreg/reward_reading/calm"] != row["emoreg/reward_reading/desperate"]


EIGHT: dict[str, Any] = {"prompts": [zoo.PROMPTS[0]] * 8, "completion_ids": WRITTEN}
TASK = zoo.reward(["x"] * 8, WRITTEN)


def screened(tmp_path: Path, kind: str = "GRPO", **knobs: Any) -> tuple[Any, Any, list[int]]:
    """A trainer whose only reward is a screen, that screen, and which of EIGHT it lets through."""
    before = make(tmp_path / "before", [zoo.reward])
    read = readings(bound(before), EIGHT["prompts"], WRITTEN)
    middle = sum(sorted(read)[4:6]) / 2
    screen = EmotionScreen(vectors(), zoo.reward, threshold=middle, **{**READ, **knobs})
    eight = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 1}
    trainer = make(tmp_path / "run", [screen], kind, **eight, num_generations=8, beta=0.0)
    screen.bind(trainer)
    return trainer, screen, [i for i, r in enumerate(read) if r <= middle]


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_a_screened_rollout_is_left_out_of_training(kind: str, tmp_path: Path) -> None:
    trainer, _, kept = screened(tmp_path, kind)
    by_vllm("server", lambda _: None)(trainer)
    trainer.train()
    pay = torch.tensor([TASK[i] for i in kept])
    wanted = torch.zeros(8)
    others = (pay.sum() - pay) / (len(kept) - 1)
    group = (pay - pay.mean()) / (pay.std() + 1e-4)
    wanted[kept] = group if kind == "GRPO" else pay - others
    assert len(kept) == 5
    assert list(trainer._logs["advantages"]) == pytest.approx(wanted.tolist(), abs=1e-4)
    assert logged(trainer, "emoreg/reward_screened/desperate") == [3 / 8]
    assert logged(trainer, "rewards/EmotionScreen/mean") == pytest.approx([float(pay.mean())])


def test_a_screen_pays_the_task_or_its_floor(tmp_path: Path) -> None:
    for floor in (None, -3.0):
        _, screen, kept = screened(tmp_path / str(floor), floor=floor)
        found = screen(completions=["x"] * 8, **EIGHT)
        assert found == [TASK[i] if i in kept else floor for i in range(8)]


def test_a_screen_takes_an_async_task_in_its_async_form_only(tmp_path: Path) -> None:
    async def task(**batch: Any) -> list[float]:
        await asyncio.sleep(0)
        return zoo.reward(**batch)

    _, plain, _ = screened(tmp_path / "plain")
    _, screen, _ = screened(tmp_path / "async")
    screen.task = task
    with pytest.raises(ConfigError, match="EmotionScreen is async; put its as_async"):
        screen(completions=["x"] * 8, **EIGHT)
    found = asyncio.run(screen.as_async()(completions=["x"] * 8, **EIGHT))
    assert found == plain(completions=["x"] * 8, **EIGHT)
    plain.task = lambda **_: [1.0]
    with pytest.raises(ConfigError, match="gave 1 rewards for 8 rollouts"):
        plain(completions=["x"] * 8, **EIGHT)


def test_a_reward_of_nothing_changes_nothing(tmp_path: Path) -> None:
    """Beside a regularizer, whose forwards are not those of the reward."""

    def trained(folder: Path, scale: float | None) -> tuple[Any, Any]:
        made = [] if scale is None else [DesperationPenalty(vectors(), **WIDE, scale=scale)]
        trainer = make(folder, [zoo.reward, *made])
        for reward in made:
            reward.bind(trainer)
        knobs: dict[str, Any] = {"penalize": {"desperate": 0.1}, **READ}
        trainer.add_callback(EmotionRegularizer(trainer, vectors(), **knobs))
        trainer.train()
        return trainer, weights(trainer.model)

    (alone, wanted), (beside, found), (_, other) = (
        trained(tmp_path / str(scale), scale) for scale in (None, 0.0, 1.0)
    )
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert any(not torch.equal(other[n], wanted[n]) for n in wanted)  # control
    for key in ("loss", "emoreg/loss", "emoreg/reading/desperate"):
        assert logged(beside, key) == logged(alone, key)


def test_several_adapters_are_off_for_the_base(tmp_path: Path) -> None:
    trainer = make(tmp_path, [zoo.reward])
    base, policy = bound(trainer), bound(trainer, read_from="policy")
    before = readings(base), readings(policy)
    model = trainer.model
    model.add_adapter("second", zoo.LoraConfig(**{**zoo.LORA, "r": 3}))
    model.base_model.set_adapter(["default", "second"])
    trained = [p.requires_grad for p in model.parameters()]
    assert readings(base) == before[0]
    assert readings(policy) != pytest.approx(before[1], abs=1e-4)
    assert model.active_adapters == ["default", "second"]
    assert [p.requires_grad for p in model.parameters()] == trained


def test_without_adapters_the_base_is_the_trainers_reference(tmp_path: Path) -> None:
    trainer = make(tmp_path / "beta", [zoo.reward], lora=False, beta=0.1)
    base, policy = bound(trainer), bound(trainer, read_from="policy")
    before = readings(base)
    assert before == pytest.approx(readings(policy), abs=1e-6)
    for weight in trainer.model.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    assert readings(base) == before
    assert readings(policy) != pytest.approx(before, abs=1e-4)
    with pytest.raises(ConfigError, match=r"has no adapters.*with beta.*read_from to 'policy'"):
        bound(make(tmp_path / "none", [zoo.reward], lora=False, beta=0.0))


def test_every_process_of_a_sharded_model_runs_as_many_forwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(tmp_path, [zoo.reward], per_device_train_batch_size=2)
    wanted = readings(bound(trainer), EIGHT["prompts"], WRITTEN)
    monkeypatch.setattr("emoreg.rewards_reader.sharded", lambda _model: True)
    for written in (WRITTEN, [[70] * 60, *WRITTEN[1:]]):
        with counting([trainer.model.get_base_model().model.layers[0]]) as calls:
            found = readings(bound(trainer), EIGHT["prompts"], written)
        assert calls == [4]
        assert found[1:] == pytest.approx(wanted[1:], abs=1e-5)


def test_what_cannot_be_read_is_told(tmp_path: Path, caplog: Any) -> None:
    trainer = make(tmp_path, [zoo.reward])
    reward, said = bound(trainer), [[{"role": "tool", "content": "4"}]]
    caplog.clear()
    for _ in range(2):
        reward(prompts=["Tea?"], completions=list(said), completion_ids=[[70]])
    assert [r.message for r in caplog.records if "what tools put out" in r.message] != []
    assert len(caplog.records) == 1
    trainer.model.get_base_model().config.image_token_id = 90
    with pytest.raises(CaptureError, match="Rollout 2 has an image"):
        readings(reward)


@pytest.mark.parametrize(
    ("knobs", "weight", "beta", "says"),
    [
        ({}, 1.0, 0.0, "by up to 1 .*beta is 0, so no KL .*Set beta to 0.04 or more"),
        ({}, 1.0, 0.001, "beta is 0.001: worth 1000 nats .*more than 25.*at most 0.025"),
        ({"scale": 2.0}, -0.5, 0.02, "by up to 1 .*beta is 0.02: worth 50 nats"),
        ({"scale": 2.0}, 0.25, 0.02, None),
        ({}, 1.0, 0.04, None),
        ({"scale": 0.0}, 1.0, 0.0, None),
    ],
)
def test_weak_kl_is_warned_of_by_its_numbers(
    knobs: Any, weight: float, beta: float, says: str | None, tmp_path: Path, caplog: Any
) -> None:
    reward = DesperationPenalty(vectors(), **READ, **knobs)
    trainer = make(tmp_path, [zoo.reward, reward], beta=beta, reward_weights=[1.0, weight])
    reward.bind(trainer)
    found = [r.message for r in caplog.records if "KL" in r.message]
    assert len(found) == (says is not None)
    assert says is None or re.search(says, found[0])


def test_a_screen_is_warned_of_where_there_is_no_kl_at_all() -> None:
    assert "all that its task pays, and the trainer's beta is 0" in str(weak_kl("s", None, 0.0))
    assert weak_kl("s", None, 1e-6) is None


def test_a_reward_of_so_many_nats_moves_the_best_policy_no_further() -> None:
    """What the warning counts by: KL and log-odds of the optimum move by pull / beta at most."""
    draw = torch.Generator().manual_seed(0)
    for nats in (0.5, 4.0, MOST_NATS):
        reference = torch.rand(1000, generator=draw, dtype=torch.float64).log()
        reward = -(torch.rand(1000, generator=draw, dtype=torch.float64) > 0.3).double()
        best = (reference + nats * reward).log_softmax(0)
        kl = (best.exp() * (best - reference.log_softmax(0))).sum()
        assert 0.02 < kl <= nats  # control: it moves
        odds = (best - best.roll(1)) - (reference - reference.roll(1))
        assert float(odds.abs().max()) == pytest.approx(nats)
