"""Several guests, several trainers, several threads: nobody takes what is another's."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import (
    Do,
    InOrder,
    Recorder,
    assert_same,
    control,
    hooks,
    logged,
    make_base,
    make_model,
    make_rows,
    make_trainer,
    make_vectors,
    silence,
)

from emoreg.errors import ConfigError, TrainerError
from emoreg.host import Loan
from emoreg.regularizer import EmotionRegularizer
from emoreg.tap import Tap, every_forward

DESPERATE: dict[str, Any] = {"penalize": {"desperate": 0.3}, "reward": {}, "blocks": [1]}
CALM: dict[str, Any] = {"penalize": {}, "reward": {"calm": 0.2}, "blocks": [0, 2]}


def gradient(tmp_path: Path, *guests: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Any]:
    trainer, recorder = make_trainer(tmp_path), Recorder()
    silence(trainer)
    for knobs in guests:
        control(trainer, **knobs)
    trainer.add_callback(recorder)
    trainer.train()
    return recorder.grads[0], trainer


def test_two_regularizers_on_one_trainer_add_up_and_log_apart(tmp_path: Path) -> None:
    first, alone = gradient(tmp_path, DESPERATE)
    second, _ = gradient(tmp_path, CALM)
    both, trainer = gradient(tmp_path, DESPERATE, {**CALM, "name": "calmer", "scope": ["prompt"]})
    assert not torch.allclose(sum(g.norm() for g in second.values()), torch.zeros(()))
    wanted, _ = gradient(tmp_path, {**CALM, "scope": ["prompt"]})
    assert_same(both, {n: first[n] + wanted[n] for n in first})
    assert logged(trainer, "emoreg/loss") == logged(alone, "emoreg/loss")
    assert logged(trainer, "emoreg/calmer/reward/calm")[0] > 0
    assert logged(trainer, "emoreg/calmer/penalty/desperate") == []


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_loans_around_one_method_end_in_any_order(order: list[int]) -> None:
    class Owner:
        def speak(self, word: str) -> str:
            return word

    owner, loans = Owner(), [Loan(), Loan()]
    for mark, loan in zip("ab", loans, strict=True):
        loan.go_around(owner, "speak", lambda speak, word, mark=mark: mark + speak(word))
    assert owner.speak("x") == "bax"
    loans[order[0]].give_back()
    assert owner.speak("x") == "ba"[order[0]] + "x"
    loans[order[1]].give_back()
    loans[order[1]].give_back()
    assert owner.speak("x") == "x"
    assert vars(owner) == {}


def test_a_method_that_the_user_wraps_later_stays_the_users() -> None:
    class Owner:
        def speak(self, word: str) -> str:
            return word

    owner, loan = Owner(), Loan()
    loan.go_around(owner, "speak", lambda speak, word: "a" + speak(word))
    inner = owner.speak
    owner.speak = lambda word: "user " + inner(word)  # type: ignore[method-assign]
    loan.give_back()
    assert owner.speak("x") == "user x"


def test_two_trainers_of_one_process_do_not_see_each_other(tmp_path: Path) -> None:
    alone = []
    for knobs in (DESPERATE, CALM):
        trainer = make_trainer(tmp_path, make_model(), max_steps=2)
        control(trainer, **knobs)
        trainer.train()
        alone.append([row for row in trainer.state.log_history if "loss" in row])
    outer, inner = (make_trainer(tmp_path, make_model(), max_steps=2) for _ in range(2))
    control(outer, **DESPERATE)
    control(inner, **CALM)
    once: list[Any] = []

    def train_inner(**_kwargs: Any) -> None:
        if not once:
            once.append(inner.train())

    outer.add_callback(Do("on_step_begin", train_inner))
    outer.train()
    for trainer, wanted in zip((outer, inner), alone, strict=True):
        found = [row for row in trainer.state.log_history if "loss" in row]
        names = [k for k in wanted[0] if k.startswith("emoreg/") and k != "emoreg/seconds"]
        assert [[row[k] for k in names] for row in found] == [[r[k] for k in names] for r in wanted]


def test_a_model_that_two_trainers_share_is_read_by_the_one_that_trains(tmp_path: Path) -> None:
    model = make_model()
    first, second = (make_trainer(tmp_path, model) for _ in range(2))
    control(first, **DESPERATE)
    control(second, **CALM)
    first.train()
    assert logged(first, "emoreg/penalty/desperate") != []
    assert logged(second, "emoreg/reward/calm") == []
    second.train()
    assert len(logged(first, "emoreg/penalty/desperate")) == 1
    assert len(logged(second, "emoreg/reward/calm")) == 1


def test_adding_one_regularizer_twice_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    guest = control(trainer)
    trainer.add_callback(guest)
    with pytest.raises(TrainerError, match="added twice"):
        trainer.train()


def test_two_of_one_name_are_refused_even_if_made_before_either_was_added(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    guests = [EmotionRegularizer(trainer, make_vectors()) for _ in range(2)]
    for guest in guests:
        trainer.add_callback(guest)
    with pytest.raises(ConfigError, match="has an EmotionRegularizer already"):
        trainer.train()


def test_a_regularizer_detached_in_the_middle_acts_again_when_attached(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=3, learning_rate=0.0, per_device_train_batch_size=2)
    guest = control(trainer)
    plan = {0: guest.detach, 1: guest.attach}
    act = Do("on_step_end", lambda **_: plan.get(trainer.state.global_step - 1, lambda: None)())
    trainer.add_callback(act)
    trainer.train()
    steps = [row["step"] for row in trainer.state.log_history if "emoreg/loss" in row]
    assert steps == [3]
    assert not hooks(trainer.model)


def test_an_evaluation_outside_training_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, eval_rows=make_rows(3))
    guest = control(trainer)
    plain = trainer.evaluate()
    with guest:
        read = trainer.evaluate()
    assert read["eval_loss"] == plain["eval_loss"]
    assert "eval_emoreg/reading/calm" in read
    assert "eval_emoreg/reading/calm" not in plain
    assert not hooks(trainer.model)
    assert "compute_loss" not in vars(trainer)


def test_a_second_run_that_fails_gives_everything_back(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    control(trainer)
    trainer.train()
    before = set(vars(trainer)), hooks(trainer.model)

    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise OSError("the disk is full")

    for name in ("compute_loss", "get_batch_samples", "log"):
        setattr(trainer, name, fail)
        with pytest.raises(OSError, match="disk"):
            trainer.train()
        delattr(trainer, name)
        assert set(vars(trainer)) - {"_train_dataloader"} <= before[0]
        assert hooks(trainer.model) == before[1]
    trainer.train()  # control: it still can


@pytest.mark.parametrize("run", ["first", "second"])
def test_a_trainer_that_skips_a_batch_which_fails_goes_on_under_control(
    run: str, tmp_path: Path
) -> None:
    class Skipping(InOrder):
        """Takes a batch that does not fit into memory as one without a loss."""

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().training_step(*args, **kwargs)
            except MemoryError:
                return torch.zeros(())

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            if fails and self.state.global_step == 1:
                raise MemoryError
            return super().compute_loss(*args, **kwargs)

    fails = run == "first"
    trainer = make_trainer(
        tmp_path, kind=Skipping, max_steps=3, learning_rate=0.0, per_device_train_batch_size=2
    )
    control(trainer)
    trainer.train()
    if run == "second":
        fails = True
        trainer.train()
    steps = [row["step"] for row in trainer.state.log_history if "emoreg/loss" in row]
    assert steps == [1, 3]


def test_a_regularizer_that_was_never_added_leaves_with_its_last_name(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    guest = EmotionRegularizer(trainer, make_vectors())
    assert "train" in vars(trainer)  # control: it was there
    gone = weakref.ref(guest)
    del guest
    gc.collect()
    assert gone() is None
    assert "train" not in vars(trainer)


def test_the_arguments_of_a_trainer_can_be_pickled_while_it_trains(tmp_path: Path) -> None:
    trainer, copies = make_trainer(tmp_path), []
    control(trainer)
    dump = Do("on_step_end", lambda **_: copies.append(pickle.loads(pickle.dumps(trainer.args))))
    trainer.add_callback(dump)
    trainer.train()
    assert copies[0].learning_rate == trainer.args.learning_rate


def test_a_forward_in_another_thread_is_not_seen_and_closes_no_window() -> None:
    model, inside, done = make_base(), threading.Event(), threading.Event()
    here = threading.get_ident()

    def elsewhere() -> None:
        inside.wait(30)
        model(torch.tensor([[8, 9, 10, 11]]))
        done.set()

    def wait_for_the_other(*_args: Any) -> None:
        if threading.get_ident() == here:
            inside.set()
            assert done.wait(30)

    thread = threading.Thread(target=elsewhere)
    with Tap(model, [0, 2], when=every_forward) as tap:
        handle = model.model.layers[1].register_forward_pre_hook(wait_for_the_other)
        thread.start()
        model(torch.tensor([[5, 6, 7]]))
        thread.join()
        handle.remove()
        assert len(tap.calls) == 1
        assert {b: h.shape[1] for b, h in tap.acts.items()} == {0: 3, 2: 3}
