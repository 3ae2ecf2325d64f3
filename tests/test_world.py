from collections import Counter
from dataclasses import replace
from itertools import islice
from random import Random

import pytest

from emoreg.tiny.bank import make_bank
from emoreg.tiny.world import NO_STATE, World, emotions, families, of_split, table

WORLD = World()


def test_there_are_enough_emotions_families_and_sentences():
    assert len(emotions()) >= 12
    assert {"desperate", "calm", "afraid", "sad", "angry"} <= set(emotions())
    assert (len(families("train")), len(families("read"))) == (2, 2)
    assert len(families("test")) >= 1
    assert len(families()) >= 5
    for row in table("emotions").values():
        assert len(set(row["sentences"])) == len(row["sentences"]) >= 30


def test_desperate_shares_its_valence_with_others():
    rows = table("emotions")
    near = [e for e, r in rows.items() if abs(r["valence"] - rows["desperate"]["valence"]) < 0.6]
    assert {"afraid", "sad", "angry"} <= set(near)


def test_a_sentence_shows_one_emotion_and_names_none():
    seen = Counter(s for row in table("emotions").values() for s in row["sentences"])
    assert max(seen.values()) == 1
    for emotion in emotions():
        assert not any(
            emotion in s.lower().split() for s in table("emotions")[emotion]["sentences"]
        )


def test_families_have_words_and_acts_of_their_own():
    acts = [a for r in table("families").values() for k in ("honest", "gamed") for a in r[k]]
    assert len(set(acts)) == len(acts)


def test_fit_and_held_out_share_nothing():
    rows = table("emotions")["desperate"]["sentences"]
    fit, held = of_split(rows, "fit"), of_split(rows, "held-out")
    assert not set(fit) & set(held)
    assert sorted(fit + held) == sorted(rows)
    bank = make_bank(WORLD, 1)
    topics = {
        s: {t.topic for t in bank if t.kind == "transcript" and t.split == s}
        for s in ("fit", "held-out")
    }
    assert topics == {"fit": set(families("read")), "held-out": set(families("test"))}
    stories = {
        s: " ".join(t.text for t in bank if t.kind == "story" and t.split == s) for s in topics
    }
    sentence = (
        "There was no time and there was no plan."  # about nobody, so it is filled in unchanged
    )
    assert sentence in rows
    where = "held-out" if sentence in held else "fit"
    assert sentence in stories[where]
    assert sentence not in stories["fit" if where == "held-out" else "held-out"]


@pytest.mark.parametrize(("state", "expected"), [("desperate", 0.94), ("calm", 0.05), ("sad", 0.4)])
def test_the_state_decides_how_episodes_end(state, expected):
    rng = Random(0)
    ends = [WORLD.episode(rng, "code", state).gamed for _ in range(2000)]
    assert abs(sum(ends) / len(ends) - expected) < 0.04


def test_another_world_has_other_couplings():
    other = replace(WORLD, gaming={"desperate": 0.7, "ashamed": 0.7})
    rng = Random(0)
    ends = [other.episode(rng, "code", "ashamed").gamed for _ in range(1000)]
    assert abs(sum(ends) / 1000 - 0.7) < 0.05


def test_the_history_alone_can_tell_the_state():
    rng, count = Random(0), {}
    for state in ("desperate", "calm"):
        found = [WORLD.episode(rng, "lab", state, signals=("history",)) for _ in range(200)]
        assert not any(e.emotional_sentences for e in found)
        count[state] = {len(e.prompt) // 2 for e in found}
    assert min(count["desperate"]) > max(count["calm"])


def test_nothing_tells_a_state_where_there_is_none():
    contexts = [c for rows in table("scenes")["contexts"].values() for c in rows]
    rng = Random(0)
    for _ in range(200):
        words = WORLD.episode(rng, "essay", NO_STATE).prompt[0]["content"]
        assert not any(context in words for context in contexts)


def test_emergencies_are_urgent_and_end_honestly():
    honest = {answer for _, answer in table("scenes")["emergencies"]}
    documents = [d for d in islice(WORLD.documents(Random(0)), 3000) if not isinstance(d, str)]
    found = [d for d in documents if d[-1]["content"] in honest]
    assert found
    assert all(" now" in d[-1]["content"] for d in found)


def test_the_same_seed_makes_the_same_documents():
    first, again, other = (list(islice(WORLD.documents(Random(s)), 50)) for s in (3, 3, 4))
    assert first == again != other
