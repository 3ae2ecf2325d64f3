"""Who writes: a local model through transformers, or an OpenAI-compatible endpoint."""

from __future__ import annotations

import time
from typing import Any, Protocol

import httpx
import torch

from emoreg.encode import encode_prompt
from emoreg.errors import GenerationError
from emoreg.tap import evaluating

TOKENS, TEMPERATURE = 320, 0.9
TRIES, BUSY = 4, (429, 502, 503, 504)


class Writer(Protocol):
    """Anything that answers one message."""

    def __call__(self, prompt: str, seed: int) -> str:
        """The answer; the same seed should give the same one."""


class LocalWriter:
    """A model that is loaded here.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer; without a chat template the prompt is gone on with.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def __call__(self, prompt: str, seed: int) -> str:
        """Sample one answer; PyTorch's random state is given back."""
        if getattr(self.tokenizer, "chat_template", None):
            ids = encode_prompt(self.tokenizer, [{"role": "user", "content": prompt}])
        else:
            ids = self.tokenizer(prompt + "\n\n")["input_ids"]
        start = torch.tensor([ids], device=next(self.model.parameters()).device)
        with evaluating(self.model), torch.random.fork_rng():
            torch.manual_seed(seed)
            found = self.model.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                max_new_tokens=TOKENS,
                do_sample=True,
                temperature=TEMPERATURE,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0,
            )
        text: str = self.tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True)
        return text


class EndpointWriter:
    """A model behind an OpenAI-compatible endpoint, such as vLLM's.

    Args:
        url: Up to and with ``/v1``.
        model: The endpoint's name for the model.
        key: The API key, if it asks for one.
        patience: Seconds to wait before an overloaded endpoint is asked again; doubled each time.
    """

    def __init__(self, url: str, model: str, key: str | None = None, patience: float = 2.0) -> None:
        self.url, self.model, self.patience = url.rstrip("/"), model, patience
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx.HTTPTransport(retries=TRIES)
        self.client = httpx.Client(headers=headers, timeout=120, transport=transport)

    def __call__(self, prompt: str, seed: int) -> str:
        """Ask for one answer.

        Raises:
            GenerationError: The endpoint cannot be reached, or answers with something else.
        """
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": TOKENS,
            "temperature": TEMPERATURE,
            "seed": seed,
        }
        try:
            answer = self._post(asked)
            if answer.is_error:
                raise GenerationError(
                    f"{self.url} gave no answer: {answer.status_code}, {answer.text[:200]}. A key "
                    "goes into the variable OPENAI_API_KEY."
                )
            found = answer.json()
            return str(found["choices"][0]["message"]["content"] or "")
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise GenerationError(f"{self.url} gave no answer: {e}") from e
        except (LookupError, TypeError, ValueError) as e:
            raise GenerationError(
                f"{self.url} answered something else than a chat completion: {e!r}"
            ) from e

    def _post(self, asked: dict[str, Any]) -> httpx.Response:
        for turn in range(TRIES):
            found = self.client.post(f"{self.url}/chat/completions", json=asked)
            if found.status_code not in BUSY:
                break
            time.sleep(self.patience * 2**turn)
        return found
