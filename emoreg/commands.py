"""What the commands on vectors and banks do, once their flags are parsed."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from emoreg.bank import OWN_BANK, load_bank, load_dosage
from emoreg.bankcheck import write_card
from emoreg.catalogue import CATALOGUE
from emoreg.errors import ConfigError, GenerationError
from emoreg.extract import Choices, extract
from emoreg.gates import Gate
from emoreg.generate import generate, load_topics, tasks
from emoreg.loading import Source
from emoreg.steer import steer
from emoreg.validate import validate
from emoreg.vectors import EmotionVectors
from emoreg.writers import EndpointWriter, LocalWriter, Writer

KEY = "OPENAI_API_KEY"  # of the endpoint, if it asks for one
SHOWN = 10  # problems of a bank
Told = Callable[[int, int], None]


def source(flags: Namespace) -> Source:
    """The model that the flags name."""
    return Source(flags.model, flags.revision, flags.dtype, flags.device, flags.chat_template)


@contextmanager
def bar(what: str) -> Iterator[Told]:
    """A progress bar in tokens, with tokens per second and the time left."""
    with tqdm(desc=what, unit="tok", unit_scale=True, mininterval=1, dynamic_ncols=True) as shown:

        def tell(done: int, total: int) -> None:
            if shown.total is None:
                shown.initial = shown.n = done  # what an earlier call had read
            shown.total = total
            shown.update(done - shown.n)

        yield tell


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written before hours of work are done.

    Raises:
        ConfigError: It is a file, or lies where nothing may be written.
    """
    at = folder.absolute()
    while not at.exists():
        at = at.parent
    if not at.is_dir() or not os.access(at, os.W_OK):
        raise ConfigError(f"{folder} cannot be written: {at} is no folder that may be written to.")


def run_extract(flags: Namespace, console: Console) -> None:
    """Read a bank with a model, and save the set."""
    if (flags.out / "card.json").exists() and not flags.overwrite:
        raise ConfigError(
            f"{flags.out} holds a vector set already; choose another --out or give --overwrite."
        )
    texts = load_bank(flags.bank)
    check_writable(flags.out)
    choices = Choices(
        flags.skip_tokens,
        flags.neutral_variance,
        flags.batch_tokens,
        flags.split,
        tuple(flags.facets),
    )
    model, tokenizer = source(flags).load()
    with bar(f"reading {len(texts)} texts") as tell:
        progress = flags.out / ".progress"
        vectors = extract(model, tokenizer, texts, flags.blocks, choices, tell, progress)
    vectors.save(flags.out)
    progress.unlink(missing_ok=True)
    console.print(
        f"emoreg: wrote {flags.out}: {len(vectors.emotions)} emotions, facets "
        f"{' and '.join(f.name for f in vectors.facets)}, {len(vectors.blocks)} blocks.\n"
        f"Not validated yet: emoreg validate --model {flags.model} --vectors {flags.out}"
        + (f" --bank {flags.bank}" if flags.bank != OWN_BANK else "")
        + (f" --chat-template {flags.chat_template}" if flags.chat_template else ""),
        soft_wrap=True,
    )


def run_validate(flags: Namespace, console: Console) -> None:
    """Measure a set on a bank; write what was found beside it, and into its card."""
    texts, dosage = load_bank(flags.bank), load_dosage(flags.bank)
    vectors = EmotionVectors.from_pretrained(flags.vectors)
    check_writable(flags.out or Path(flags.vectors))
    model, tokenizer = source(flags).load()
    with bar(f"reading {len(texts)} texts") as tell:
        found = validate(
            model, tokenizer, vectors, texts, dosage, flags.blocks, tell, flags.renamed
        )
    out = flags.out or Path(flags.vectors)
    found.save(out)
    console.print(gate_table(found.gates))
    console.print(f"{found.verdict}: {found.reason}", soft_wrap=True)
    console.print(f"emoreg: wrote {out / 'validation.json'} and {out / 'validation.html'}")
    if flags.strict and found.verdict == "not usable":
        raise SystemExit(2)


def gate_table(gates: tuple[Gate, ...]) -> Table:
    """Gates with their controls."""
    table = Table(title="Gates, on held-out topics")
    for name in ("gate", "value", "control", "bar", ""):
        table.add_column(name, justify="left" if name in ("gate", "control", "") else "right")
    for gate in gates:
        control = ", ".join(
            f"{k.replace('_', ' ')} {v:.2f}" for k, v in (gate.control or {}).items()
        )
        mark = {True: "pass", False: "[bold]FAIL[/bold]", None: "not measured"}[gate.passed]
        value, bar = ("" if x is None else f"{x:.2f}" for x in (gate.value, gate.bar))
        table.add_row(gate.name, value, control, bar, mark)
    return table


def run_steer(flags: Namespace, console: Console) -> None:
    """Continue prompts with a vector added and taken away, side by side."""
    vectors = EmotionVectors.from_pretrained(flags.vectors)
    model, tokenizer = source(flags).load()
    rows = steer(
        model,
        tokenizer,
        vectors,
        flags.emotion,
        flags.prompt,
        flags.strength,
        flags.blocks,
        flags.tokens,
        flags.renamed,
    )
    for row in rows:
        table = Table(title=Text(f"“{row.prompt}”"), show_lines=True)
        for name in row.texts:
            table.add_column(name, ratio=1)
        table.add_row(*map(Text, row.texts.values()))
        console.print(table)


def run_generate(flags: Namespace, console: Console) -> None:
    """Let a model write the stories that a file lacks."""
    bank = load_bank(OWN_BANK) if flags.topics is None else []
    for emotion in flags.emotions or ():
        CATALOGUE.entry(emotion)
    wanted = list(
        tasks(flags.emotions or CATALOGUE.words, load_topics(flags.topics, bank), flags.number)
    )
    if flags.endpoint:
        write: Writer = EndpointWriter(flags.endpoint, flags.model, os.environ.get(KEY))
    else:
        write = LocalWriter(*source(flags).load())
    with tqdm(desc="writing", unit="story", total=len(wanted), dynamic_ncols=True) as shown:

        def tell(done: int, _total: int, wrong: str) -> None:
            shown.update(done - shown.n)
            if wrong:
                shown.write(f"given up for now: {wrong}")

        found = generate(write, wanted, flags.out, flags.attempts, flags.seed, tell)
    console.print(
        f"emoreg: {flags.out}: {found.kept} stories written, {found.already} were there, "
        f"{found.given_up} given up (the same command tries them again)"
    )
    if not found.kept + found.already:
        raise GenerationError("No story kept the rules; use a model that follows instructions.")


def run_bank(flags: Namespace, console: Console) -> None:
    """Check a bank against its rules, and write its card."""
    folder = flags.folder or OWN_BANK
    found = write_card(folder)
    for kind, row in found["bag_of_words"].items():
        console.print(
            f"{kind}: a bag of words gets {row['held_out_accuracy']:.3f} on held-out topics, "
            f"chance {row['chance']:.3f}"
        )
    for problem in found["problems"][:SHOWN]:
        console.print(problem, markup=False, soft_wrap=True)
    if len(found["problems"]) > SHOWN:
        console.print(f"and {len(found['problems']) - SHOWN} more, all in card.json")
    console.print(
        f"emoreg: {found['texts']} texts, {len(found['problems'])} problems; wrote "
        f"{folder / 'card.json'}"
    )
    if found["problems"]:
        raise SystemExit(2)
