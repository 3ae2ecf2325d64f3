"""Labelled texts, and their split by topic into fit and held-out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from emoreg.errors import BankError
from emoreg.files import parse_json
from emoreg.knobs import finite

KINDS = ("story", "transcript", "deflection", "neutral", "urgency")
SPLITS = ("fit", "held-out")
SWEPT = 6  # values of a dosage template: three at each end are compared
NEUTRAL_STATE = "neutral"  # a transcript's state that is compared with, and has no direction
FILES = {
    "stories": "story",
    "transcripts": "transcript",
    "deflections": "deflection",
    "neutral": "neutral",
    "urgency": "urgency",
}
_SHIPPED, _CLONE = (Path(__file__).parent / p for p in ("texts", "../vectors/bank"))
OWN_BANK = _SHIPPED if _SHIPPED.is_dir() else _CLONE.resolve()  # a wheel has it inside


@dataclass(frozen=True)
class Text:
    """One labelled text: raw (`text`) or a conversation (`messages`)."""

    kind: str  # one of `KINDS`
    label: str = ""  # the emotion, state or urgency; empty for neutral texts
    split: str = "fit"
    topic: str = ""
    text: str = ""
    messages: tuple[dict[str, str], ...] = ()
    id: str = ""
    where: str = field(default="", compare=False)  # file and line it was read from

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in KINDS:
            problems.append(f"kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.split not in SPLITS:
            problems.append(f"split {self.split!r} is not one of {', '.join(SPLITS)}")
        if not all(isinstance(x, str) for x in (self.label, self.topic, self.text, self.id)):
            problems.append("label, topic, text and id are strings")
        elif bool(self.text.strip()) == bool(self.messages):
            problems.append("wanted either text or messages")
        if not all(isinstance(m, dict) and _is_message(m) for m in self.messages):
            problems.append("every message needs a role and a content, both strings")
        if self.kind != "neutral" and not self.label:
            problems.append(f"a {self.kind} needs a label")
        if problems:
            raise BankError("; ".join(problems))

    @property
    def name(self) -> str:
        """How errors speak of the text: its id, where it was read, and how it begins."""
        begins = " ".join((self.text or self.messages[0]["content"]).split())[:48]
        return " ".join(filter(None, (self.id, self.where and f"({self.where})", f"{begins!r}")))


@dataclass(frozen=True)
class Dosage:
    """A message with one number in it, swept from harmless to telling."""

    id: str
    rises: str  # fear or relief, with the number
    template: str  # holds ``{x}``
    values: tuple[float, ...]  # ascending

    def __post_init__(self) -> None:
        problems = []
        if self.rises not in ("fear", "relief"):
            problems.append(f"rises {self.rises!r} is neither fear nor relief")
        if not isinstance(self.id, str):
            problems.append(f"the id is {self.id!r:.99}, wanted a text")
        if not isinstance(self.template, str) or "{x}" not in self.template:
            problems.append("the template lacks {x}")
        if not all(map(finite, self.values)):
            problems.append("values are numbers, none infinite")
        elif len(self.values) < SWEPT or list(self.values) != sorted(set(self.values)):
            problems.append(f"wanted at least {SWEPT} ascending values")
        if problems:
            raise BankError("; ".join(problems))

    def prompts(self) -> list[str]:
        """The message at every value."""
        return [self.template.replace("{x}", f"{value:,}") for value in self.values]


def _is_message(message: dict[str, Any]) -> bool:
    return all(isinstance(message.get(key), str) for key in ("role", "content"))


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line of a JSON-lines file stands, and its content.

    Raises:
        BankError: The file cannot be read, or a line is no JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold other line ends
    except (OSError, UnicodeDecodeError) as e:
        raise BankError(f"{path} cannot be read: {e}.") from e
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_json(line)
        except ValueError as e:
            raise BankError(f"{where}: {e}. Wanted one JSON object a line.") from e
        if not isinstance(row, dict):
            raise BankError(f"{where}: {type(row).__name__}; wanted one JSON object a line.")
        yield where, row


def load_bank(path: str | Path = OWN_BANK) -> list[Text]:
    """Read labelled texts.

    Args:
        path: A file of JSON lines, or a folder with some of ``stories.jsonl``,
            ``transcripts.jsonl``, ``deflections.jsonl``, ``neutral.jsonl``, ``urgency.jsonl``;
            emoreg's own bank by default.

    Raises:
        BankError: A malformed line (the message names the file, the line and what was wanted), an
            id that stands twice, or no text at all.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = [file for name in FILES if (file := path / f"{name}.jsonl").exists()]
    wanted = sorted({f.name for f in fields(Text)} - {"where"})
    texts, seen = [], dict[str, str]()
    for file in files:
        for where, row in read_lines(file):
            try:
                row["messages"] = tuple(row.get("messages") or ())
                text = Text(where=where, **row)
            except (ValueError, TypeError, AttributeError) as e:
                raise BankError(f"{where}: {e}. Wanted JSON with some of {wanted}.") from e
            if text.id and seen.setdefault(text.id, where) != where:
                raise BankError(f"{where}: id {text.id!r} stands already in {seen[text.id]}.")
            texts.append(text)
    if not texts:
        raise BankError(
            f"{path} holds no text; wanted a file of JSON lines, or a folder with "
            f"{', '.join(f'{name}.jsonl' for name in FILES)}."
        )
    return texts


def load_dosage(path: str | Path = OWN_BANK) -> list[Dosage]:
    """Read ``dosage.jsonl`` of a bank's folder; empty where there is none.

    Raises:
        BankError: A malformed line; the message names the file and the line.
    """
    file, found = Path(path) / "dosage.jsonl", []
    for where, row in read_lines(file) if file.exists() else ():
        try:
            found.append(Dosage(**{**row, "values": tuple(row.get("values", ()))}))
        except (ValueError, TypeError) as e:
            raise BankError(f"{where}: {e}.") from e
    return found


def choose(texts: Iterable[Text], kind: str, split: str) -> list[Text]:
    """Texts of one kind and split; neutral texts that lie all in one split serve both."""
    some = [t for t in texts if t.kind == kind]
    own = [t for t in some if t.split == split]
    return some if kind == "neutral" and not own else own


def fingerprint(texts: Iterable[Text]) -> str:
    """A hash of labelled texts, whatever their order and wherever they were read."""
    rows = sorted(
        json.dumps({k: v for k, v in asdict(t).items() if k != "where"}, sort_keys=True)
        for t in texts
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
