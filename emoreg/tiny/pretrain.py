"""Tokenizer and pretraining of the embedded model, from nothing but a `World` and a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from emoreg.tiny.world import World

BOS, EOS, PAD, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """What the embedded model is and how long it is trained."""

    seed: int = 0
    tokens: int = 6_000_000
    batch_tokens: int = 6_000
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    vocabulary: int = 2048
    hidden: int = 192
    intermediate: int = 448
    blocks: int = 6
    heads: int = 6


def make_tokenizer(world: World, recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template, trained on the world's own text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [
        AddedToken(t, special=True, normalized=False) for t in (PAD, BOS, EOS, USER, ASSISTANT)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(sample_texts(world, recipe.seed, 20_000), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def sample_texts(world: World, seed: int, count: int) -> Iterator[str]:
    """Texts for the tokenizer, conversations turn by turn."""
    for document in islice(world.documents(Random(seed)), count):
        if isinstance(document, str):
            yield document
        else:
            yield from (message["content"] for message in document)


def make_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    """An untrained Llama of the recipe's size."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.blocks,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batches(world: World, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[Tensor]:
    """Endless batches of documents of similar length, (documents, tokens), right-padded."""
    rng = Random(recipe.seed + 1)
    documents = world.documents(rng)
    while True:
        pool = sorted((encode(tokenizer, d) for d in islice(documents, 1024)), key=len)
        groups: list[list[list[int]]] = [[]]
        for ids in pool:
            if (len(groups[-1]) + 1) * len(ids) > recipe.batch_tokens:
                groups.append([])
            groups[-1].append(ids)
        rng.shuffle(groups)
        for group in groups:
            width = max(map(len, group))
            yield torch.tensor(
                [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids in group]
            )


def encode(tokenizer: PreTrainedTokenizerFast, document: str | list[dict[str, str]]) -> list[int]:
    """Token ids of raw text with the end token, or of a conversation in the chat template."""
    if isinstance(document, str):
        return [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]
    ids: Any = tokenizer.apply_chat_template(document, return_dict=False)
    return list(ids)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    recipe: Recipe,
    progress: Callable[[int, float], None],
) -> float:
    """Train in place until `recipe.tokens` are read.

    Returns the mean loss of the last tenth of steps, in nats per token. `progress` is called after
    every step with the tokens read so far and the step's loss.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
    )
    schedule = get_cosine_schedule_with_warmup(
        optimizer, 1_000, 10_000
    )  # in ten-thousandths of the tokens
    read = 0
    losses: list[float] = []
    model.train()
    for ids in batches(world, tokenizer, recipe):
        mask = ids != tokenizer.pad_token_id
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule.lr_lambdas[0](
                int(1e4 * read / recipe.tokens)
            )
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(~mask, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        read += int(mask.sum())
        losses.append(loss.item())
        progress(read, losses[-1])
        if read >= recipe.tokens:
            break
    model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)
