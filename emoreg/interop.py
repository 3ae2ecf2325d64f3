"""One emotion's directions in the formats of other tools, and back.

========================  ==============================================  =======================
format                    a direction of block b                          not in the format
========================  ==============================================  =======================
GGUF control vector       tensor ``direction.b``, from b = 1 on           block 0
persona-vectors ``.pt``   row ``b + 1`` of (blocks + 1, width)            --
steering-vectors          ``layer_activations[b]``, ``decoder_block``     --
========================  ==============================================  =======================

GGUF as repeng writes it and llama.cpp reads it; row 0 of persona-vectors belongs to the embeddings.
None of the three holds `mu` and sigma, so what comes back is calibrated on neutral text first.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emoreg.bank import Text, choose, fingerprint
from emoreg.blocks import check_blocks, find_backbone
from emoreg.encode import encode
from emoreg.errors import BankError, MissingExtraError, VectorFileError
from emoreg.extract import Choices
from emoreg.files import write_atomic
from emoreg.identity import context_length, identity
from emoreg.moments import Means
from emoreg.probe import Facet
from emoreg.scale import spread
from emoreg.sweep import text_means
from emoreg.vectors import EmotionVectors

ARCHITECTURE = "controlvector"
_USUAL = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError)
BROKEN = (*_USUAL, pickle.UnpicklingError, struct.error)  # what torch raises for a damaged file
NAME = re.compile(r"direction\.([0-9]{1,6})")
Directions = Mapping[int, Tensor]  # block -> (width,)


def layer_activations(
    vectors: EmotionVectors, emotion: str, facet: str | None = None
) -> dict[int, Tensor]:
    """Block -> unit direction, (width,): what steering-vectors' ``SteeringVector`` is made from.

    Args:
        vectors: A set.
        emotion: One of its emotions.
        facet: One of its facets; the first by default.

    Raises:
        UnknownEmotionError: The set does not hold them.
    """
    chosen = vectors.facets[0] if facet is None else vectors.facet(facet)
    vectors.require([emotion])
    if emotion not in chosen.emotions:
        raise VectorFileError(
            f"Facet {chosen.name!r} has no {emotion!r}; it has {chosen.emotions}."
        )
    rows = chosen.directions[chosen.emotions.index(emotion)]
    return {b: rows[i].clone() for i, b in enumerate(vectors.blocks)}


def write_gguf(vectors: EmotionVectors, emotion: str, path: Path, facet: str | None = None) -> Path:
    """Write a control vector for llama.cpp and repeng; block 0 cannot be written and is left out.

    Raises:
        MissingExtraError: The package ``gguf`` is not installed.
        VectorFileError: The set holds block 0 alone.
    """
    gguf, path = _gguf(), Path(path)
    rows = {b: v for b, v in layer_activations(vectors, emotion, facet).items() if b > 0}
    if not rows:
        raise VectorFileError(
            "A GGUF control vector cannot hold block 0, and the set has no other."
        )
    model = vectors.card.get("model", {})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        writer = gguf.GGUFWriter(str(part), ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", str(model.get("type") or ""))
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(rows))
        for block, direction in rows.items():
            writer.add_tensor(f"direction.{block}", direction.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read_gguf(path: Path) -> dict[int, Tensor]:
    """Block -> direction, (width,), of a GGUF control vector.

    Raises:
        MissingExtraError: The package ``gguf`` is not installed.
        VectorFileError: The file cannot be read, or is no control vector.
    """
    gguf = _gguf()
    try:
        held = _bounded(gguf)(str(path)).tensors
        named = {str(t.name): torch.tensor(t.data) for t in held}
    except (OSError, ValueError, LookupError, TypeError, RecursionError, ArithmeticError) as e:
        raise VectorFileError(f"{path} cannot be read as GGUF: {e}.") from e
    rows = {int(n[1]): t for name, t in named.items() if (n := NAME.fullmatch(name))}
    if not rows or len(rows) < len(named) or not all(t.is_floating_point() for t in rows.values()):
        raise VectorFileError(
            f"{path} is no control vector: it holds {', '.join(list(named)[:3])[:99] or 'nothing'}"
            "; wanted direction.1, direction.2, …, in floating point, not quantised."
        )
    return {block: t.float().flatten() for block, t in sorted(rows.items())}


def _bounded(gguf: Any) -> Any:
    """GGUF's reader, which ends where the file does: a list in it may claim to be endless."""

    class Bounded(gguf.GGUFReader):  # type: ignore[misc]
        def _get(self, offset: int, dtype: Any, count: int = 1, *rest: Any, **more: Any) -> Any:
            found = super()._get(offset, dtype, count, *rest, **more)
            if len(found) < count:
                raise ValueError(f"it ends before {count} values at byte {offset}")
            return found

    return Bounded


def _gguf() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as e:
        raise MissingExtraError("GGUF needs a package more: pip install 'emoreg[gguf]'") from e
    return gguf


def write_persona(
    vectors: EmotionVectors, emotion: str, path: Path, facet: str | None = None
) -> Path:
    """Write a persona-vectors tensor, (blocks + 1, width); zeros where the set has no direction."""
    rows = layer_activations(vectors, emotion, facet)
    depth = int(vectors.card.get("model", {}).get("blocks") or max(rows) + 1)
    whole = torch.zeros(depth + 1, vectors.width)
    for block, direction in rows.items():
        whole[block + 1] = direction
    return write_atomic(Path(path), _bytes(whole))


def _bytes(tensor: Tensor) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()


def read_persona(path: Path) -> dict[int, Tensor]:
    """Block -> direction, (width,), of a persona-vectors tensor; code in the file is not run.

    The last row of one that was computed by others was read after the final norm, not at a block:
    leave that block out of what you use (`blocks` in `calibrate`).

    Raises:
        VectorFileError: The file cannot be read, or is no tensor of rows.
    """
    if not zipfile.is_zipfile(path):
        raise VectorFileError(f"{path} cannot be read as a tensor: torch.save did not write it.")
    try:
        whole = torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN as e:
        raise VectorFileError(f"{path} cannot be read as a tensor: {e}") from e
    if not isinstance(whole, Tensor) or whole.dim() != 2 or len(whole) < 2:
        shape = tuple(whole.shape) if isinstance(whole, Tensor) else type(whole).__name__
        raise VectorFileError(f"{path} holds {shape}; wanted a tensor of (blocks + 1, width).")
    held = whole.layout == torch.strided and whole.device.type == "cpu"
    if (
        not held
        or not whole.is_floating_point()
        or whole.untyped_storage().nbytes() < whole.numel() * whole.itemsize
    ):
        raise VectorFileError(
            f"{path} holds {whole.dtype}, {whole.layout}, stretched or without data; wanted "
            "floating point, every value of it in the file."
        )
    rows = {b: row for b, row in enumerate(whole[1:].float()) if bool(row.any())}
    if not rows:
        raise VectorFileError(f"{path} holds zeros alone; wanted a direction in some row.")
    return rows


def calibrate(
    model: nn.Module,
    tokenizer: Any,
    directions: Mapping[str, Directions],
    texts: Sequence[Text],
    blocks: Sequence[int] | None = None,
    source: str = "imported",
) -> EmotionVectors:
    """Directions of any origin as a set: scaled to one, with `mu` and sigma from neutral text.

    Args:
        model: The model that the directions were made for.
        tokenizer: Its tokenizer.
        directions: Emotion -> block -> direction, (width,), of any length.
        texts: A bank with neutral texts.
        blocks: Which to take; all that every emotion has by default.
        source: What the card says of their origin.

    Raises:
        VectorFileError: A direction of another width, or one that is zero or not finite.
        BlocksNotFoundError: A block that the model does not have.
        BankError: Fewer than two neutral texts.
    """
    backbone, names = find_backbone(model), tuple(directions)
    if not names:
        raise VectorFileError("No direction given; wanted emotion -> block -> direction.")
    shared = set.intersection(*(set(rows) for rows in directions.values()))
    at = check_blocks(sorted(shared) if blocks is None else blocks, backbone)
    raw = torch.stack(
        [torch.stack([_row(directions, e, b, backbone.width) for b in at]) for e in names]
    )
    choices = Choices()
    neutral = choose(texts, "neutral", choices.split)
    if not getattr(tokenizer, "chat_template", None):
        neutral = [t for t in neutral if t.text]
    if len(neutral) < 2:
        raise BankError("Wanted at least two neutral texts: they set the scale of every reading.")
    encoded, means = encode(tokenizer, neutral, choices.skip_tokens, context_length(model)), Means()
    for item, mean in text_means(model, encoded, at, choices.batch_tokens):
        means.add("neutral", mean, len(item.counted))
    mu = means.of("neutral")
    sigma, norms = spread(model, encoded, at, raw, mu, choices.batch_tokens)
    card = {
        "model": identity(model, tokenizer),
        "source": source,
        "bank": fingerprint(neutral),
        "texts": {"neutral": len(neutral)},
        "norms": [round(x, 5) for x in norms.tolist()],
    }
    made = EmotionVectors((Facet("imported", names, raw, sigma.float()),), at, mu.float(), card)
    made.verify()
    return made


def _row(directions: Mapping[str, Directions], emotion: str, block: int, width: int) -> Tensor:
    row = directions[emotion].get(block)
    if row is None or row.shape != (width,) or not bool(row.isfinite().all()) or not row.any():
        found = "nothing" if row is None else f"shape {tuple(row.shape)}"
        raise VectorFileError(
            f"{emotion}, block {block}: {found}; wanted ({width},), finite and not all zero."
        )
    unit: Tensor = row.float() / row.float().norm()
    return unit
