"""EmotionVectors: the frozen set of directions, its file, and the check against a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from emoreg import hub
from emoreg.blocks import find_backbone
from emoreg.card import brief, markdown
from emoreg.errors import UnknownEmotionError, VectorFileError, VectorMismatchError
from emoreg.files import parse_json, write_together
from emoreg.identity import identity
from emoreg.knobs import counts
from emoreg.probe import Facet, Probe

FORMAT = "emoreg-vectors-1"


@dataclass(frozen=True)
class EmotionVectors:
    """Directions of emotions in the residual stream of one model, with their calibration.

    The first facet holds every emotion, others hold some; those of one emotion are orthonormal.
    """

    facets: tuple[Facet, ...]
    blocks: tuple[int, ...]  # decoder blocks, counted from 0
    mu: Tensor  # (blocks, width), float32: mean activation over the neutral texts
    card: Mapping[str, Any]  # whose vectors these are and how they were made

    @property
    def emotions(self) -> tuple[str, ...]:
        """Every emotion of the set."""
        return self.facets[0].emotions

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self.mu.shape[-1])

    @property
    def suggested_blocks(self) -> tuple[int, ...]:
        """Blocks that validation found best, or the block at two thirds of the depth."""
        return tuple(self.card.get("suggested_blocks") or (self.blocks[len(self.blocks) * 2 // 3],))

    @property
    def caveat(self) -> str:
        """What a report made with the set must say of it; empty for a set found usable."""
        found = self.card.get("validation")
        if not found:
            return "These vectors were not validated; run `emoreg validate`."
        if found["verdict"] == "usable":
            return ""
        return f"These vectors are {found['verdict']}: {found['reason']}."

    def facet(self, name: str) -> Facet:
        """A facet by name.

        Raises:
            UnknownEmotionError: No such facet; the message names those there are.
        """
        for facet in self.facets:
            if facet.name == name:
                return facet
        have = ", ".join(f.name for f in self.facets)
        raise UnknownEmotionError(f"No facet {name!r} in this vector set; it has {have}.")

    def probe(
        self, facets: Sequence[str] | None = None, blocks: Sequence[int] | None = None
    ) -> Probe:
        """Stack facets (all by default) at blocks (the suggested ones by default) for reading.

        Raises:
            UnknownEmotionError: A facet or block that the set does not hold.
        """
        chosen = self.facets if facets is None else tuple(self.facet(n) for n in facets)
        wanted = tuple(sorted(set(self.suggested_blocks if blocks is None else blocks)))
        missing = [b for b in wanted if b not in self.blocks]
        if missing or not chosen or not wanted:
            raise UnknownEmotionError(
                f"Blocks {missing or list(wanted)} are not in this vector set, which holds blocks "
                f"{list(self.blocks)}; choose among those or extract a set with more blocks."
            )
        at = [self.blocks.index(b) for b in wanted]
        parts = [f.only(at) for f in chosen]
        return Probe(
            tuple((f.name, e) for f in parts for e in f.emotions),
            wanted,
            torch.cat([f.directions for f in parts]).transpose(0, 1).contiguous(),
            self.mu[at],
            torch.cat([f.sigma for f in parts]).T.contiguous(),
        )

    def require(self, emotions: Sequence[str]) -> None:
        """Check that the set holds these emotions.

        Raises:
            UnknownEmotionError: It does not; the message names the nearest that it holds.
        """
        for emotion in emotions:
            if emotion not in self.emotions:
                near = get_close_matches(emotion, self.emotions, n=3, cutoff=0.4)
                hint = f"{'nearest:' if near else 'it has'} {', '.join(near or self.emotions)}"
                raise UnknownEmotionError(f"No emotion {emotion!r} in this vector set; {hint}.")

    def check(self, model: nn.Module, tokenizer: Any = None, name: bool = True) -> None:
        """Check that the set was made for this model.

        Args:
            model: Compared in width, number of blocks and name (last part of the path).
            tokenizer: Compared by how it encodes one fixed text, if given.
            name: False accepts another name, for a renamed copy of the same weights.

        Raises:
            VectorMismatchError: It was made for another; the message lists every difference.
            BlocksNotFoundError: The model's blocks cannot be found.
        """
        backbone, made_for = find_backbone(model), self.card.get("model", {})
        found = identity(model, tokenizer)
        pairs = {
            "width": (self.width, backbone.width),
            "blocks": (made_for.get("blocks"), len(backbone.blocks)),
        }
        if made_for.get("type"):
            pairs["type"] = (made_for["type"], found["type"])
        if name and found["name"]:
            pairs["name"] = (made_for.get("name"), found["name"])
        if tokenizer is not None:
            pairs["tokenizer"] = (made_for.get("tokenizer"), found["tokenizer"])
        wrong = [f"{k}: vectors {a!r}, model {b!r}" for k, (a, b) in pairs.items() if a != b]
        if wrong:
            renamed = (
                " If only the name differs and the weights do not, set check_name to false "
                "(a command: --renamed)."
            )
            raise VectorMismatchError(
                f"These vectors were made for {made_for.get('name') or 'another model'}:\n  - "
                + "\n  - ".join(wrong)
                + "\nMake a set for this model with `emoreg extract --model ...`."
                + (renamed if len(wrong) == 1 and wrong[0].startswith("name:") else "")
            )

    def save(self, folder: str | Path) -> Path:
        """Write ``vectors.safetensors``, ``card.json`` and ``README.md``: all whole or none at all.

        Raises:
            VectorFileError: The set is not usable; nothing is written.
        """
        self.verify()
        folder = Path(folder)
        tensors = {"mu": self.mu.contiguous()}
        for f in self.facets:
            tensors[f"{f.name}.directions"] = f.directions.contiguous()
            tensors[f"{f.name}.sigma"] = f.sigma.contiguous()
        data = save_tensors(tensors)
        card = {
            **self.card,
            "format": FORMAT,
            "sha256": hashlib.sha256(data).hexdigest(),
            "blocks": list(self.blocks),
            "facets": {f.name: list(f.emotions) for f in self.facets},
        }
        write_together(
            {
                folder / "vectors.safetensors": data,
                folder / "card.json": json.dumps(card, indent=1, ensure_ascii=False) + "\n",
                folder / "README.md": markdown(card),
            }
        )
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> EmotionVectors:
        """Read a set and check every value of it.

        Raises:
            VectorFileError: A file is missing, truncated, foreign, or holds values that are not
                finite unit directions with positive scales.
        """
        folder = Path(folder)
        card, data = _read(folder / "card.json"), _read(folder / "vectors.safetensors")
        try:
            fields = parse_json(card.decode("utf-8"))
            tensors = load_tensors(data)
        except (ValueError, KeyError, SafetensorError) as e:
            raise VectorFileError(f"{folder} cannot be read as a vector set: {e}.") from e
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise VectorFileError(f"{folder / 'card.json'} is not a card of format {FORMAT!r}.")
        try:
            facets = tuple(
                Facet(n, tuple(e), tensors[f"{n}.directions"], tensors[f"{n}.sigma"])
                for n, e in fields["facets"].items()
            )
            vectors = cls(facets, tuple(fields["blocks"]), tensors["mu"], fields)
            str(vectors.caveat), brief(fields), markdown(fields)
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as e:
            raise VectorFileError(f"{folder} lacks {e} or has it in another form.") from e
        vectors.verify(str(folder))
        if fields.get("sha256") != hashlib.sha256(data).hexdigest():
            raise VectorFileError(
                f"{folder / 'vectors.safetensors'} is not the file that card.json describes "
                "(its SHA-256 differs): a copy was cut off or the two were mixed. Copy both again."
            )
        return vectors

    @classmethod
    def from_pretrained(cls, name: str | Path, **knobs: Any) -> EmotionVectors:
        """Load a set from a folder or, if there is none of that name, from the hub.

        Args:
            name: A folder, or ``org/name`` on the hub.
            knobs: As for `emoreg.hub.download`: ``subfolder``, ``revision``, ``token``, …

        Raises:
            VectorFileError: As in `load`.
        """
        if Path(name).is_dir():
            return cls.load(name)
        try:
            return cls.load(hub.download(str(name), **knobs))
        except HFValidationError as e:
            raise VectorFileError(f"{name} is neither a folder nor a name on the hub.") from e
        except OSError as e:
            raise VectorFileError(f"{name} is no folder and cannot be had from the hub: {e}") from e

    def push_to_hub(self, repo_id: str, **knobs: Any) -> str:
        """Write the set with its card into a repository of the hub; returns the commit's address.

        Args:
            repo_id: ``org/name``; made if it is missing.
            knobs: As for `emoreg.hub.upload`: ``private``, ``token``, ``revision``, …
        """
        return hub.upload(self, repo_id, **knobs)

    def verify(self, where: str = "this vector set") -> None:
        """Check shapes and values.

        Raises:
            VectorFileError: The message lists every problem.
        """
        problems = [] if self.facets else ["no facet"]
        if not _ascending(self.blocks):
            problems.append(f"blocks are {self.blocks!r:.99}; wanted ascending numbers from 0 on")
        elif not (_ascending(self.suggested_blocks) and {*self.suggested_blocks} <= {*self.blocks}):
            problems.append(f"suggested_blocks are {self.suggested_blocks!r:.99}; wanted some held")
        shape = tuple(self.mu.shape)
        if len(shape) != 2 or shape[0] != len(self.blocks) or not self.mu.isfinite().all():
            problems.append(f"mu has shape {shape} or is not finite")
        elif self.mu.dtype != torch.float32:
            problems.append(f"mu is {self.mu.dtype}; wanted torch.float32")
        for f in self.facets:
            wrong = f.problems(len(self.blocks), *shape[-1:] or (0,))
            if not wrong and (missing := [e for e in f.emotions if e not in self.emotions]):
                wrong = [f"{f.name}: {', '.join(missing)} missing in the first facet"]
            problems += wrong
        if problems:
            raise VectorFileError(f"{where} is not usable:\n  - " + "\n  - ".join(problems))


def _ascending(blocks: Sequence[Any]) -> bool:
    return all(map(counts, blocks)) and list(blocks) == sorted(set(blocks)) and bool(blocks)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise VectorFileError(
            f"{path} cannot be read: {e.strerror}. Wanted a folder with both files."
        ) from e
