"""What is compared in a step: the shapes, and the arms.

An arm is a trainer of TRL with something beside it: nothing, a regularizer with some knobs, or the
design of a peer re-made after its own description (`speed_peers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emoreg.catalogue import CATALOGUE

TRAINERS = ("sft", "dpo", "grpo")
EMOTIONS = tuple(CATALOGUE.words)  # 171
BARE, AGAIN = "bare", "bare, again"


@dataclass(frozen=True)
class Shape:
    """A model of random weights, and the tokens of one step of SFT.

    DPO has as many sequences, half of them chosen; GRPO as many, all of one prompt.
    """

    sizes: Mapping[str, int]
    rows: int
    tokens: int
    dtype: str
    blocks: tuple[int, ...]  # that are watched
    rank: int = 16

    @property
    def depth(self) -> int:
        """Decoder blocks."""
        return self.sizes["num_hidden_layers"]


SHAPES = {
    "small": Shape(
        {
            "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8,
            "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 4096,
        },
        rows=4, tokens=256, dtype="float32", blocks=(3, 4, 5),
    ),
    "1.5b": Shape(  # of Qwen2.5-1.5B
        {
            "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
        },
        rows=4, tokens=2048, dtype="bfloat16", blocks=(16, 17, 18),
    ),
    "7b": Shape(  # of Qwen2.5-7B
        {
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        },
        rows=2, tokens=2048, dtype="bfloat16", blocks=(16, 17, 18),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One way of taking a step."""

    what: str
    knobs: Mapping[str, Any] | None = None  # of the regularizer; None for none
    peer: str | None = None  # its name in `speed_peers.PEERS`
    trainers: tuple[str, ...] = TRAINERS
    facets: int = 0  # more of each watched emotion, as refits leave them
    counted: bool = True  # whether its step can be counted without values
    bars: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # trainer -> time, memory


ACTS: dict[str, Any] = {"penalize": {"desperate": 0.3}, "reward": {"calm": 0.15}}  # README's
EVERY: dict[str, Any] = {
    "penalize": {e: 0.01 for e in EMOTIONS if e != "calm"}, "reward": {"calm": 0.01},
}  # fmt: skip
SLIGHT = dict.fromkeys(TRAINERS, (1.01, 1.005))
BASED = {"sft": (1.15, 1.005), "dpo": (1.01, 1.005), "grpo": (1.01, 1.005)}
SFT = ("sft",)

ARMS: dict[str, Arm] = {
    BARE: Arm("the trainer of TRL alone"),
    AGAIN: Arm("the same once more: the noise of the measurement"),
    "measure": Arm("weight 0, which only measures: readings of all 171 emotions", {}, bars=SLIGHT),
    "penalty": Arm("penalty on desperate, reward of calm", ACTS, bars=SLIGHT),
    "all emotions": Arm("terms on all 171 emotions", EVERY),
    "refitted": Arm("penalty and reward on four facets each, as refits leave them", ACTS, facets=2),
    "anchor": Arm("the same, compared with the base", {**ACTS, "anchor": "base"}, bars=BASED),
    "keep": Arm("the keep term on all other emotions", {**ACTS, "keep": 0.01}),
    "reference": Arm("measuring with the base on every step", {"reference_steps": 1}),
    "prevent": Arm("preventative steering with both", {**ACTS, "method": "prevent"}),
    "ablate": Arm(
        "desperate taken out of the activations",
        {"penalize": {"desperate": 1.0}, "reward": {}, "method": "ablate"},
    ),
    "cap": Arm("readings clipped at a ceiling", {**ACTS, "method": "cap"}),
    "kl": Arm("penalty, reward and the KL anchor", {**ACTS, "kl": 0.1}, counted=False),
    "persona vectors": Arm("a direction added at one block, all tokens", peer="steer"),
    "all hidden states": Arm(
        "a penalty on every block by output_hidden_states", peer="hidden", trainers=SFT
    ),
    "reference forwards": Arm(
        "a penalty, and two whole forwards without gradients", peer="reference", trainers=SFT
    ),
    "circuit breakers": Arm(
        "two forwards with gradients and two without, all hidden states", peer="breakers",
        trainers=SFT,
    ),
}  # fmt: skip
REFERENCE_STEPS = 50  # emoreg_reference_steps
RUN_ROWS, RUN_TOKENS = 8, (2048, 512)  # steps that a run's other forwards are set beside
# What the overhead is drawn against: emotions, blocks, tokens of a sequence, sequences.
SWEEPS: dict[str, dict[str, tuple[int, ...]]] = {
    "small": {
        "emotions": (2, 43, 171), "blocks": (1, 3, 8), "tokens": (128, 256, 512),
        "rows": (1, 4, 8),
    },
    "1.5b": {"emotions": (2, 43, 171), "blocks": (1, 3, 9), "tokens": (512, 2048), "rows": (1, 4)},
}  # fmt: skip
