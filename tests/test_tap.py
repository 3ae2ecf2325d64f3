"""The tap sees exactly what the model computes, when it is asked to, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from models import DEPTH, FAMILIES, WIDTH, batch, causal_lm, counting, hooks, multimodal, with_lora
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from emoreg.blocks import find_backbone
from emoreg.tap import Tap, evaluating, policy_forward, read

LINEAR = {
    "gpt2": "c_attn", "gpt_neox": "query_key_value", "falcon": "query_key_value",
    "bloom": "query_key_value", "phi3": "qkv_proj",
}  # fmt: skip


def lora_lm(family: str) -> Any:
    target = [LINEAR.get(family, "q_proj")]
    return with_lora(causal_lm(family), target_modules=target, fan_in_fan_out=family == "gpt2")


MODELS: dict[str, Callable[[], Any]] = {
    **{f: partial(causal_lm, f) for f in FAMILIES},
    **{f"{f} lora": partial(lora_lm, f) for f in FAMILIES},
    **{f: partial(multimodal, f) for f in ("gemma3", "llava", "qwen2_5_vl")},
}
of_every_kind = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@of_every_kind
@torch.no_grad()
def test_captured_block_outputs_are_the_models_own_hidden_states(make: Any) -> None:
    model = make()
    with Tap(model, range(DEPTH)) as tap:
        own = model(**batch(), output_hidden_states=True).hidden_states
        same = [torch.equal(tap.acts[block], own[block + 1]) for block in range(DEPTH)]
    assert same == [True, True, False]  # control: the last hidden state is after the final norm
    assert not torch.equal(own[1], own[2])


@of_every_kind
@torch.no_grad()
def test_reading_gives_the_values_of_a_full_forward_and_stops_at_the_deepest_block(
    make: Any,
) -> None:
    model = make()
    modules = [*find_backbone(model).blocks, model.get_output_embeddings()]
    with counting(modules) as calls:
        acts = read(model, [0, 1], **batch())
        assert calls == [1, 1, 0, 0]
        own = model(**batch(), output_hidden_states=True).hidden_states
        assert calls == [2, 2, 1, 1]  # control: a full forward runs everything
    real = batch()["attention_mask"].bool()
    for block in (0, 1):
        torch.testing.assert_close(acts[block][real], own[block + 1][real], atol=1e-6, rtol=1e-6)


@of_every_kind
@torch.no_grad()
def test_an_edited_output_is_what_the_next_block_gets_and_a_zero_edit_changes_no_bit(
    make: Any,
) -> None:
    model = make()
    got: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        got.append(args[0] if args else kwargs["hidden_states"])

    direction = torch.linspace(-1, 1, WIDTH)
    find_backbone(model).blocks[1].register_forward_pre_hook(keep, with_kwargs=True)
    logits = {None: model(**batch()).logits}
    for by in (0.0, 1.0):
        with Tap(model, [0], edit=lambda _block, h, by=by: h + by * direction):
            logits[by] = model(**batch()).logits
    plain, zero, edited = got
    assert torch.equal(zero, plain)
    assert torch.equal(edited, plain + direction)
    assert torch.equal(logits[0.0], logits[None])
    assert (logits[1.0] - logits[None]).abs().max() > 1e-3


def test_an_edit_at_one_block_is_not_made_at_another() -> None:
    model, seen = causal_lm(), []
    with Tap(model, [0, 2], edit=lambda block, h: seen.append(block) or h):
        model(**batch())
    assert seen == [0, 2]


class Interrupted(Exception):
    """Raised on purpose."""


def interrupt(*_: object) -> None:
    raise Interrupted


def opens_and_closes(model: Any) -> None:
    with Tap(model, [0, 2]):
        assert len(hooks(model)) > 0  # control: hooks are there to be seen
        model(**batch())


def a_block_raises(model: Any) -> None:
    handle = model.model.layers[1].mlp.register_forward_hook(interrupt)
    try:
        with Tap(model, [0, 2]):
            model(**batch())
    finally:
        handle.remove()


def opening_fails_half_way(model: Any) -> None:
    model.model.layers[2].register_forward_hook = interrupt
    try:
        with Tap(model, [0, 2]):
            pytest.fail("this tap cannot open")
    finally:
        del model.model.layers[2].register_forward_hook


def reading_raises(model: Any) -> None:
    handle = model.model.layers[0].mlp.register_forward_hook(interrupt)
    try:
        read(model, [0], **batch())
    finally:
        handle.remove()


def reads(model: Any) -> None:
    read(model, [1], **batch())


@pytest.mark.parametrize(
    ("use", "raises"),
    [(opens_and_closes, False), (a_block_raises, True), (opening_fails_half_way, True),
     (reads, False), (reading_raises, True)],
)  # fmt: skip
def test_hooks_and_modes_are_the_same_before_and_after(use: Any, raises: bool) -> None:
    model = causal_lm().train()
    model.model.layers[1].eval()  # a mode of its own, as PEFT and freezing leave behind
    model.model.norm.register_forward_hook(lambda *_: None)  # someone else's hook
    before = hooks(model), [m.training for m in model.modules()], set(vars(model.model))
    if raises:
        with pytest.raises(Interrupted):
            use(model)
    else:
        use(model)
    assert (hooks(model), [m.training for m in model.modules()], set(vars(model.model))) == before
    assert len(model(**batch(), output_hidden_states=True).hidden_states) == DEPTH + 1


def test_a_forward_that_raises_closes_the_window() -> None:
    model = causal_lm("gpt2")
    backbone = find_backbone(model)
    hidden = torch.ones(1, 2, WIDTH)
    with Tap(model, [0]) as tap:
        handle = backbone.blocks[1].register_forward_pre_hook(interrupt)
        with pytest.raises(Interrupted):
            model(**batch())
        handle.remove()
        assert list(tap.acts) == [0]  # control: the window was open
        tap.clear()
        backbone.blocks[0](hidden)
        assert tap.acts == {}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_the_policy_window_is_open_for_training_forwards_with_gradients_only(
    training: bool, gradients: bool
) -> None:
    model = causal_lm().train(training)
    with Tap(model, [0], when=policy_forward) as tap, torch.set_grad_enabled(gradients):
        model(**batch())
        assert (len(tap.calls), list(tap.acts)) == ((1, [0]) if training and gradients else (0, []))


def test_a_reference_pass_and_generation_do_not_overwrite_the_policys_outputs() -> None:
    model = with_lora(causal_lm()).train()
    with Tap(model, [1], when=policy_forward) as tap:
        model(**batch())
        policy = tap.acts[1]
        with torch.no_grad(), model.disable_adapter():
            model(**batch())
        with torch.no_grad():
            model.generate(**batch(), max_new_tokens=2)
        assert tap.acts[1] is policy
        assert policy.requires_grad
        model(**batch())
        assert tap.acts[1] is not policy  # control: the next policy pass is seen
        assert len(tap.calls) == 2


def test_an_output_is_kept_by_reference() -> None:
    model, returned = causal_lm(), []
    with Tap(model, [1]) as tap:
        model.model.layers[1].register_forward_hook(lambda *args: returned.append(args[-1]))
        model(**batch())
        assert tap.acts[1] is returned[0]  # re-entrant checkpointing gives it its gradient later


def test_a_disarmed_tap_sees_nothing_and_a_cleared_one_forgets() -> None:
    model = causal_lm()
    with Tap(model, [0]) as tap:
        tap.armed = False
        model(**batch())
        assert (tap.acts, tap.calls) == ({}, [])
        tap.armed = True
        model(**batch())
        call, acts = tap.calls[0], tap.acts
        assert torch.equal(call.kwargs["attention_mask"], batch()["attention_mask"])
        tap.clear()
        assert (tap.acts, tap.calls) == ({}, [])
        assert list(acts) == [0]
        with pytest.raises(RuntimeError, match="open already"):
            tap.open()


@pytest.mark.parametrize("adapters", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_captured_output_has_the_same_gradient_with_and_without_checkpointing(
    adapters: bool, reentrant: bool
) -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        model = with_lora(causal_lm()) if adapters else causal_lm()
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with Tap(model, [1], when=policy_forward) as tap:
            loss = model(**batch(), labels=batch()["input_ids"]).loss
            (loss + tap.acts[1].square().mean()).backward()
            assert len(tap.calls) == 1
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain, checkpointed = gradients(False), gradients(True)
    assert len(plain) == len(checkpointed) > 0
    torch.testing.assert_close(plain, checkpointed, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config", [PrefixTuningConfig, PromptTuningConfig])
@torch.no_grad()
def test_reading_a_model_that_learns_a_prompt_is_of_the_texts_own_tokens(config: type) -> None:
    base = causal_lm()
    without = read(base, [0], **batch())[0]
    torch.manual_seed(2)
    model = get_peft_model(base, config(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with Tap(model, [0]) as tap:
        model(**batch())
        full = tap.acts[0]
    own = full[:, -without.shape[1] :]  # virtual tokens of prompt tuning come first
    assert torch.equal(read(model, [0], **batch())[0], own)
    assert not torch.allclose(own, without)  # control: the prompt acts


def test_reading_keeps_the_models_dtype_and_takes_dropout_off() -> None:
    model = causal_lm("gpt2").to(torch.bfloat16).train()
    once, again = (read(model, [1], **batch())[1] for _ in range(2))
    assert once.dtype == torch.bfloat16
    assert torch.equal(once, again)
    noisy = [tap_once(model) for _ in range(2)]
    assert not torch.equal(*noisy)  # control: the model has dropout


def tap_once(model: Any) -> Tensor:
    with Tap(model, [1]) as tap:
        model(**batch())
        return tap.acts[1]


def test_evaluating_gives_every_module_its_own_mode_back() -> None:
    model = causal_lm().train()
    model.model.layers[0].eval()
    before = [m.training for m in model.modules()]
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == before
    assert {True, False} <= set(before)
