"""Damaged bytes, JSON, safetensors and YAML: strategies that Hypothesis draws and shrinks."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

Draw = Callable[..., Any]
NAMES = ("calm", "desperate", "colon", "where", "id", "a/b", "", "\x00", "é\u202e", "direction.1")
SCRAPS = (
    b"\x00", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\n", b'"', b"[", b"{}", b"9" * 400,
    b"\xff" * 8, b"\x00" * 64, b"NaN", b"1e999", b"," * 3,
)  # fmt: skip
RAW = (  # JSON that `json.dumps` cannot write, or that not every reader takes
    "[" * 120 + "]" * 120, "[" * 900 + "]" * 900, "[" * 100_000 + "]" * 100_000,
    '{"a":' * 950 + "1" + "}" * 950, '{"a":' * 50_000, "NaN", "-Infinity", "1e999", "-1e-999",
    "9" * 400, "-" + "9" * 4000, "9" * 5000, '"\\ud800"', '"\\u0000"', '{"a":1,"a":2}', "nul", "",
)  # fmt: skip
KINDS = (
    torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool,
    torch.complex64, torch.float8_e4m3fn, torch.int32,
)  # fmt: skip
FILLS = (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e30, 1e-42)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 10**30, 10**400]),
    st.sampled_from([0.0, -0.0, 0.5, 1e308, 5e-324, 2.5]),
    st.sampled_from([*NAMES, "neutral", "user", "x" * 5000]),
    st.text(max_size=12),
)
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    ),
    max_leaves=5,
)


@st.composite
def damaged(draw: Draw, data: bytes, most: int = 3) -> bytes:
    """Bytes flipped, written over, taken out, put in twice, or cut off."""
    found = bytearray(data)
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        size = draw(st.sampled_from([1, 1, 2, 8, 64]))
        kind = draw(st.sampled_from(["flip", "write", "scrap", "out", "twice", "cut"]))
        if kind == "flip" and found:
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "write":
            found[at : at + size] = draw(st.binary(min_size=size, max_size=size))
        elif kind == "scrap":
            found[at:at] = draw(st.sampled_from(SCRAPS))
        elif kind == "out":
            del found[at : at + size]
        elif kind == "twice":
            found[at:at] = found[at : at + size]
        else:
            del found[at:]
    return bytes(found)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place inside a JSON value: what holds it, and under which key."""
    keys = value if isinstance(value, dict) else range(len(value))
    found = []
    if isinstance(value, dict | list):
        for key in keys:
            found.append((value, key))
            if isinstance(value[key], dict | list):
                found += places(value[key])
    return found


def _edit(draw: Draw, root: list[Any], raws: list[str], raw: Sequence[str]) -> None:
    holder, key = draw(st.sampled_from(places(root)))
    kind = draw(st.sampled_from(["junk", "junk", "raw", "out", "wrap", "swap", "rename", "twice"]))
    if kind == "raw":
        raws.append(draw(st.sampled_from(raw)))
        holder[key] = f"\x00raw {len(raws) - 1}"
    elif kind == "wrap":
        holder[key] = [holder[key]]
    elif kind == "swap":
        other, at = draw(st.sampled_from(places(root)))
        holder[key] = copy.deepcopy(other[at])
    elif kind == "rename" and isinstance(holder, dict):
        holder[draw(st.sampled_from(NAMES))] = holder.pop(key)
    elif kind == "twice" and isinstance(holder, list) and holder is not root:
        holder.append(copy.deepcopy(holder[key]))
    elif kind == "out" and holder is not root:
        del holder[key]
    else:
        holder[key] = draw(plain)


def written(value: Any, raws: list[str]) -> str:
    """JSON with its raw parts put in."""
    text = json.dumps(value, ensure_ascii=len(raws) % 2 == 0)
    for number, raw in enumerate(raws):
        text = text.replace(f'"\\u0000raw {number}"', raw)
    return text


@st.composite
def mutated(draw: Draw, value: Any, most: int = 2, raw: Sequence[str] = RAW) -> str:
    """A JSON value as text, some places of which hold something else."""
    root, raws = [copy.deepcopy(value)], list[str]()
    for _ in range(draw(st.integers(0, most))):
        _edit(draw, root, raws, raw)
    return written(root[0], raws)


@st.composite
def lines(draw: Draw, rows: list[dict[str, Any]]) -> bytes:
    """JSON lines, one or two of which are damaged as JSON or as bytes."""
    found = [json.dumps(row).encode() for row in rows]
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(rows) - 1))
        kind = draw(st.sampled_from(["json", "json", "json", "bytes", "twice"]))
        if kind == "json":
            found[at] = draw(mutated(rows[at])).encode("utf-8", "surrogatepass")
        elif kind == "bytes":
            found[at] = draw(damaged(found[at]))
        else:
            found.append(found[at])
    return b"\n".join(found) + draw(st.sampled_from([b"", b"\n", b"\r\n", b"\x00"]))


@st.composite
def tensors_like(draw: Draw, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, some with other values, types, shapes or names, or none."""
    found = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in draw(st.lists(st.sampled_from(sorted(found)), max_size=2, unique=True)):
        kind = draw(st.sampled_from(["value", "value", "type", "shape", "out", "name", "scale"]))
        tensor = found[name]
        if kind == "value" and tensor.numel():
            flat = tensor.flatten()
            fill = draw(st.sampled_from(FILLS))
            whole = tensor.dtype.is_floating_point
            flat[draw(st.integers(0, len(flat) - 1))] = fill if whole else draw(st.integers(-9, 9))
            found[name] = flat.view(tensor.shape)
        elif kind == "type":
            found[name] = tensor.to(draw(st.sampled_from(KINDS)))
        elif kind == "shape":
            size = draw(st.lists(st.integers(0, 4), max_size=4))
            found[name] = torch.ones(size, dtype=tensor.dtype)
        elif kind == "scale":
            found[name] = tensor * 2
        else:
            del found[name]
            if kind == "name":
                found[draw(st.sampled_from([n for n in NAMES if n] + sorted(tensors)))] = tensor
    return found


@st.composite
def stored(draw: Draw, tensors: Any, metadata: Any = None, deep: bool = False) -> bytes:
    """A safetensors file: of damaged tensors, and mostly damaged itself.

    `tensors` and `metadata` are strategies; `deep` leaves the file itself whole.
    """
    given = None if metadata is None else draw(metadata)
    data: bytes = save(draw(tensors), given)
    kind = "none" if deep else draw(st.sampled_from(["none", "header", "bytes", "length"]))
    size = struct.unpack("<Q", data[:8])[0]
    if kind == "header":
        header = json.loads(data[8 : 8 + size])
        text = draw(mutated(header)).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + data[8 + size :]
    if kind == "bytes":
        return draw(damaged(data))
    if kind == "length":
        length = draw(st.sampled_from([0, 1, size - 1, size + 1, 10**8, 2**40, 2**63, 2**64 - 1]))
        return struct.pack("<Q", length) + data[8:]
    return data


@st.composite
def retyped(draw: Draw, array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor as another tool may have saved it: of another type, shape, stride or layout."""
    found = torch.from_numpy(array.copy())
    kind = draw(st.sampled_from(["as is", "type", "shape", "stretched", "sparse", "meta", "value"]))
    if kind == "type":
        return found.to(draw(st.sampled_from(KINDS)))
    if kind == "shape":
        return torch.ones(draw(st.lists(st.integers(0, 4), max_size=4)))
    if kind == "stretched":  # one row in the file, and a million in its shape
        return found[:1].expand(10**6, -1)
    if kind == "sparse":
        return found.to_sparse()
    if kind == "meta":
        return found.to("meta")
    if kind == "value":
        found[draw(st.integers(0, len(found) - 1)), 0] = draw(st.sampled_from(FILLS))
    return found
