"""What one model reads on the drift prompts: at the colon, and over a response."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emoreg.bank import Text
from emoreg.encode import Encoded
from emoreg.errors import BankError, ConfigError
from emoreg.identity import context_length
from emoreg.probe import Probe
from emoreg.processes import shared
from emoreg.prompts import Prompt, encode_prompts, fingerprint
from emoreg.responses import Ids, answers, can_answer
from emoreg.sweep import Acts, means, sweep

BATCH_TOKENS = 8192  # padded, in one forward
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Snapshot:
    """What one model reads, in σ, mean over the facets of each emotion.

    Attributes:
        places: Place -> readings, (prompts, blocks, emotions): ``colon``; ``response``, the mean
            over the tokens of the base's response; ``own``, the same of the model's own one.
        mean: Mean activation at the colon, (blocks, width), residual-stream units.
        length: Mean length of that activation, (blocks,).
        texts: The base's responses as token ids, by prompt; empty where none are read.
    """

    places: Mapping[str, Array]
    mean: Array
    length: Array
    texts: tuple[Ids, ...] = ()

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays that a file can hold, contiguous as its format wants them."""
        found = {
            **{f"places.{place}": readings for place, readings in self.places.items()},
            "mean": self.mean,
            "length": self.length,
            "texts": np.array([i for text in self.texts for i in text], dtype=np.int64),
            "lengths": np.array([len(text) for text in self.texts], dtype=np.int64),
        }
        return {name: np.ascontiguousarray(array) for name, array in found.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[Any]]) -> Snapshot:
        """The inverse of `tensors`.

        Raises:
            KeyError: One is missing.
            ValueError: Shapes or types that `tensors` does not give.
        """
        places = {
            name.removeprefix("places."): found
            for name, found in tensors.items()
            if name.startswith("places.")
        }
        mean, length, ids = tensors["mean"], tensors["length"], tensors["texts"]
        if length.ndim != 1 or mean.ndim != 2 or len(mean) != len(length):
            raise ValueError(f"means of shapes {mean.shape} and {length.shape}")
        shape, shapes = places["colon"].shape, {p.shape for p in places.values()}
        if len(shape) != 3 or shape[1] != len(length) or len(shapes) > 1:
            raise ValueError(f"readings of shapes {shapes}")
        check_lengths(ids, tensors["lengths"])
        stops = np.cumsum(tensors["lengths"]).tolist()
        flat: Ids = ids.tolist()
        texts = [flat[a:b] for a, b in zip([0, *stops[:-1]], stops, strict=True)] if stops else []
        return cls(places, mean, length, tuple(texts))


def check_lengths(ids: NDArray[Any], lengths: NDArray[Any]) -> None:
    """Check that token ids, (tokens,), are those of texts so long, (texts,).

    Raises:
        ValueError: They are not, or are no whole numbers from 0 on.
    """
    for name, found in (("ids", ids), ("lengths", lengths)):
        if found.ndim != 1 or found.dtype != np.int64 or (found < 0).any():
            raise ValueError(f"{name} of shape {found.shape} and type {found.dtype}")
    if max(lengths, default=0) > len(ids) or int(lengths.sum()) != len(ids):
        raise ValueError(f"{len(ids)} ids for texts of {int(lengths.sum())}")


class Gauge:
    """Reads models of one kind on the same prompts with the same probe.

    Args:
        tokenizer: The models' tokenizer or processor.
        prompts: At least one.
        probe: Which directions.
        response_tokens: Length of the responses that are read; 0 reads at the colon only.

    Raises:
        BankError: The chat template cannot write the prompts.
        ConfigError: A negative number of response tokens.
    """

    def __init__(
        self, tokenizer: Any, prompts: Sequence[Prompt], probe: Probe, response_tokens: int = 32
    ) -> None:
        if response_tokens < 0:
            raise ConfigError(f"response_tokens must be >= 0, got {response_tokens}.")
        self.tokenizer, self.prompts, self.probe = tokenizer, tuple(prompts), probe
        self.response_tokens = response_tokens
        self.ids = encode_prompts(tokenizer, prompts)

    @cached_property
    def emotions(self) -> tuple[str, ...]:
        """The last axis of all readings."""
        return tuple(dict.fromkeys(emotion for _, emotion in self.probe.rows))

    @property
    def kinds(self) -> list[str]:
        """The kind of each prompt."""
        return [p.kind for p in self.prompts]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What two snapshots must share to be compared."""
        probe = hashlib.sha256(json.dumps([self.probe.rows, self.probe.blocks]).encode())
        for tensor in (self.probe.directions, self.probe.mu, self.probe.sigma):
            probe.update(tensor.cpu().contiguous().numpy().tobytes())
        return {
            "prompts": fingerprint(self.prompts),
            "tokens": hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()[:16],
            "probe": probe.hexdigest()[:16],
            "response_tokens": self.response_tokens,
        }

    def base(self, model: nn.Module) -> Snapshot:
        """Read a model as it stands, and the responses that it gives."""
        self._check_length(model)
        return self._take(model, {"response": self._answers(model)})

    def now(self, model: nn.Module, base: Snapshot, own: bool = False) -> Snapshot:
        """Read a model as it stands on the text of the base.

        Args:
            model: Its mode, settings and random state are left as they were.
            base: What `base` gave of the base.
            own: Whether it also answers, and its own responses are read.
        """
        texts = {"response": base.texts}
        if own and base.texts:
            texts["own"] = self._answers(model)
        return self._take(model, texts)

    def _answers(self, model: nn.Module) -> tuple[Ids, ...]:
        if not self.response_tokens or not can_answer(model):
            return ()
        found = answers(model, self.tokenizer, self.ids, self.response_tokens)
        return tuple(shared(found))  # shards must run the same tokens everywhere

    def _take(self, model: nn.Module, texts: Mapping[str, tuple[Ids, ...]]) -> Snapshot:
        places: dict[str, Array] = {}
        activation = length = None
        for place, responses in texts.items():
            colons, answered = self.activations(model, responses)
            if activation is None or length is None:
                places["colon"] = self._readings(colons)
                activation = colons.mean(0).float().numpy()
                length = colons.norm(dim=-1).mean(0).float().numpy()
            if answered is not None:
                places[place] = self._readings(answered)
        assert activation is not None
        assert length is not None
        return Snapshot(places, activation, length, texts["response"])

    def activations(
        self, model: nn.Module, responses: tuple[Ids, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """Activations at the colon, and the mean over each response.

        Args:
            model: As it stands.
            responses: As token ids, by prompt; none to read at the colon only.

        Returns:
            Both (prompts, blocks, width), float64, residual-stream units.
        """
        items = list(self._items(responses))
        order = sorted(range(len(items)), key=lambda i: len(items[i].ids))
        colons: list[Any] = [None] * len(items)
        answered: list[Any] = [None] * len(items)

        def reduce(acts: Acts, group: Sequence[Encoded]) -> tuple[Tensor, Tensor | None]:
            over = means(acts, group, [e.counted for e in group]) if responses else None
            return means(acts, group, [e.colons for e in group]), over

        at = iter(order)
        rows = [items[i] for i in order]
        for group, (colon, over) in sweep(model, rows, self.probe.blocks, BATCH_TOKENS, reduce):
            for n, _ in enumerate(group):
                i = next(at)
                colons[i] = colon[n]
                answered[i] = None if over is None else over[n]
        return torch.stack(colons), torch.stack(answered) if responses else None

    def _items(self, responses: tuple[Ids, ...]) -> Iterator[Encoded]:
        for n, (prompt, ids) in enumerate(zip(self.prompts, self.ids, strict=True)):
            said = list(responses[n]) if responses else []
            text = Text("neutral", text=str(prompt.messages[-1]["content"]), id=f"prompt {n + 1}")
            counted = list(range(len(ids), len(ids) + len(said)))
            yield Encoded(text, [*ids, *said], counted, [len(ids) - 1])

    def _readings(self, acts: Tensor) -> Array:
        """Mean over facets: (prompts, blocks, width) -> (prompts, blocks, emotions)."""
        probe = self.probe.to(torch.device("cpu"))
        rows = probe.read({b: acts[:, i].float() for i, b in enumerate(probe.blocks)})
        return by_emotion(rows.transpose(0, 1).numpy(), probe)[1]

    def _check_length(self, model: nn.Module) -> None:
        context, longest = context_length(model), max(map(len, self.ids))
        if context and longest + self.response_tokens > context:
            n = max(range(len(self.ids)), key=lambda i: len(self.ids[i]))
            raise BankError(
                f"Drift prompt {n + 1} has {longest} tokens; with {self.response_tokens} of a "
                f"response that is more than the model's context of {context}. Shorten the prompt "
                "or the responses (drift_response_tokens)."
            )


def by_emotion(values: NDArray[Any], probe: Probe) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Mean over the facets of each emotion: (..., rows) -> emotions, (..., emotions)."""
    names = tuple(dict.fromkeys(emotion for _, emotion in probe.rows))
    return names, np.stack([values[..., probe.of(e)].mean(-1) for e in names], -1)


def colon_readings(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], probe: Probe
) -> Array:
    """Readings at the colon, mean over blocks, in σ, (prompts, rows of the probe)."""
    colons, _ = Gauge(tokenizer, prompts, probe, 0).activations(model, ())
    probe = probe.to(torch.device("cpu"))
    found: Array = (
        probe.read({b: colons[:, i].float() for i, b in enumerate(probe.blocks)}).mean(0).numpy()
    )
    return found
