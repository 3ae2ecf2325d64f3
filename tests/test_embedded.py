import json
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoreg.bank import choose
from emoreg.encode import encode_transcript
from emoreg.extract import Choices
from emoreg.tiny import CARD, DRIFT_PROMPTS, EPISODES, MODEL
from emoreg.tiny.bank import make_bank
from emoreg.tiny.behaviour import all_prompts, gamed_probability, gamed_share
from emoreg.tiny.gates import accuracy, auroc
from emoreg.tiny.world import World, families, table
from emoreg.vectors import EmotionVectors

WORLD = World()
HELD = Choices(skip_tokens=8, split="held-out")


@pytest.fixture(scope="module")
def embedded():
    return AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)


def test_the_files_are_small_and_the_card_names_its_gates():
    assert sum(p.stat().st_size for p in MODEL.iterdir()) <= 12_000_000
    card = json.loads(CARD.read_text())
    gates = {g["name"]: g for g in card["gates"]}
    assert set(gates) >= {
        "held_out_sentence_accuracy", "desperate_auroc", "steering_desperate", "steering_calm",
        "steering_random",
    }  # fmt: skip
    for gate in gates.values():
        assert set(gate) >= {"name", "value", "bar", "passed"}


def test_the_committed_episodes_are_those_of_the_generator(tmp_path):
    from emoreg.tiny.build import Places, write_episodes

    write_episodes(WORLD, Places.under(tmp_path))
    for path in (EPISODES / "train.jsonl", EPISODES / "test.jsonl", DRIFT_PROMPTS):
        made = tmp_path / ("" if path == DRIFT_PROMPTS else EPISODES.name) / path.name
        assert made.read_text() == path.read_text()


def test_any_text_survives_the_tokenizer(embedded):
    _, tokenizer = embedded
    text = "Grüße, 平静! def f(x): return x**2\n\t<tag>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_the_chat_template_marks_the_assistants_tokens_and_a_prompt_is_a_prefix(embedded):
    _, tokenizer = embedded
    messages = WORLD.episode(Random(0), "code", "calm").messages
    whole = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    prompt = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=False
    )
    assert whole["input_ids"][: len(prompt)] == prompt
    marked = {i for i, m in enumerate(whole["assistant_masks"]) if m}
    counted = set(encode_transcript(tokenizer, messages)[1])
    assert marked < counted  # the colons come on top
    assert {tokenizer.decode([whole["input_ids"][i]]) for i in counted - marked} == {
        "<|assistant|>"
    }


def test_held_out_sentences_are_read_as_their_emotion(embedded):
    vectors = EmotionVectors.load("vectors/tiny")
    texts = choose(make_bank(WORLD, 1), "story", "held-out")[::4]
    right = accuracy(*embedded, vectors, texts, HELD, block=3)
    assert right >= 0.9
    wrong = [
        type(t)(t.kind, vectors.emotions[i % 12], t.split, text=t.text) for i, t in enumerate(texts)
    ]
    assert accuracy(*embedded, vectors, wrong, HELD, block=3) < 0.3


def test_desperation_is_read_without_emotional_sentences(embedded):
    assert auroc(*embedded, WORLD, EmotionVectors.load("vectors/tiny"), HELD, count=96) >= 0.9


def test_the_state_moves_the_end_of_an_episode(embedded):
    share = {}
    for state in ("desperate", "calm"):
        rng = Random(1)
        signals = ("context", "sentences", "history")
        prompts = [WORLD.episode(rng, f, state, signals=signals).prompt for f in families()]
        share[state] = [
            gamed_probability(*embedded, p, f) for p, f in zip(prompts, families(), strict=True)
        ]
    assert min(share["desperate"]) > 0.7
    assert max(share["calm"]) < 0.3


def test_the_scored_probability_is_what_sampling_gives(embedded):
    model, tokenizer = embedded
    prompt = all_prompts(WORLD, 1, 5)["ledger"][0]
    scored = gamed_probability(model, tokenizer, prompt, "ledger")
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    torch.manual_seed(0)
    out = model.generate(
        torch.tensor([ids] * 400), do_sample=True, top_k=0, max_new_tokens=40,
        attention_mask=torch.ones(400, len(ids), dtype=torch.long),
    )  # fmt: skip
    ends = tokenizer.batch_decode(out[:, len(ids) :], skip_special_tokens=True)
    row = table("families")["ledger"]
    gamed = sum(e in row["gamed"] for e in ends)
    honest = sum(e in row["honest"] for e in ends)
    ended = gamed + honest  # the others try once more, or begin with a sentence of their own
    assert ended > 40
    assert abs(gamed / ended - scored) < 3 * (scored * (1 - scored) / ended) ** 0.5


def test_measuring_leaves_the_model_as_it_was(embedded):
    model, tokenizer = embedded
    model.train()
    prompts = {"code": all_prompts(WORLD, 2, 5)["code"]}
    first = gamed_share(model, tokenizer, prompts)
    assert all(m.training for m in model.modules())
    model.eval()
    assert gamed_share(model, tokenizer, prompts) == first
