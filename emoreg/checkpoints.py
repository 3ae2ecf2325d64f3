"""Finished checkpoints: what a folder holds, and its model for as long as it is looked at."""

from __future__ import annotations

import gc
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from emoreg.blocks import find_backbone
from emoreg.errors import ConfigError
from emoreg.fingerprint import fingerprint
from emoreg.loading import Source

ADAPTER, MODEL, STATE = "adapter_config.json", "config.json", "trainer_state.json"
WEIGHTS = "adapter_model.safetensors"
LOADING = (
    *(ValueError, RuntimeError, OSError, KeyError, TypeError, ImportError),
    *(SafetensorError, UserWarning),
)  # what loading foreign files can end in
KEPT = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save")


@dataclass(frozen=True)
class Checkpoint:
    """One folder with an adapter or a whole model.

    Attributes:
        name: Unlike that of any other beside it.
        folder: Where it is.
        adapter: Its settings; None for a model that is merged or fully fine-tuned.
        step: Of the training that it is from, 0 if that is not known.
    """

    name: str
    folder: Path
    adapter: dict[str, Any] | None
    step: int

    @property
    def settings(self) -> dict[str, Any] | None:
        """What the journal keeps of the adapter."""
        if self.adapter is None:
            return None
        found = {k: self.adapter[k] for k in KEPT if k in self.adapter}
        return {"alpha" if k == "lora_alpha" else k: v for k, v in found.items()}


def find(folders: Sequence[Path], base: str, renamed: bool = False) -> list[Checkpoint]:
    """Look into folders.

    Args:
        folders: Each of an adapter or a whole model, a trainer's ``checkpoint-N`` among them.
        base: Folder or name of the model that adapters should be for.
        renamed: True accepts adapters for a model of another name.

    Raises:
        ConfigError: Every folder that is missing, holds neither, or holds an adapter for another
            model; or one that is given twice.
    """
    problems, found = [], []
    places = [folder.resolve() for folder in folders]
    for folder, place, name in zip(folders, places, names(places), strict=True):
        if places.count(place) > 1:
            problems.append(f"{folder} is given twice; once is enough")
            continue
        try:
            found.append(Checkpoint(name, folder, _adapter(folder, base, renamed), _step(folder)))
        except ConfigError as e:
            problems.append(str(e))
    if problems:
        raise ConfigError("Checkpoints:\n  - " + "\n  - ".join(dict.fromkeys(problems)))
    return found


def names(places: Sequence[Path]) -> list[str]:
    """The last parts of paths, as many of them as tell the paths apart."""
    for parts in range(1, 1 + max((len(p.parts) for p in places), default=1)):
        found = ["-".join(p.parts[-parts:]).strip("/") or "root" for p in places]
        if len(set(found)) == len(set(places)):
            break
    return found


def _adapter(folder: Path, base: str, renamed: bool) -> dict[str, Any] | None:
    if (folder / ADAPTER).is_file():
        settings = _json(folder / ADAPTER)
        made_for = str(settings.get("base_model_name_or_path") or "").rstrip("/")
        if made_for and not renamed and _last(made_for) != _last(base):
            raise ConfigError(
                f"{folder} is an adapter for {made_for} ({ADAPTER}), and --model is {base}: name "
                "that model, or give --renamed if it is the same under another name"
            )
        return settings
    if (folder / MODEL).is_file():
        return None
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder")
    inside = sorted(p.parent.name for name in (ADAPTER, MODEL) for p in folder.glob(f"*/{name}"))
    raise ConfigError(
        f"{folder} holds neither {ADAPTER} nor {MODEL}"
        + (f"; these folders in it do: {', '.join(dict.fromkeys(inside))}" if inside else "")
    )


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _step(folder: Path) -> int:
    """From the trainer's own state, or the folder's name."""
    if (folder / STATE).is_file():
        step = _json(folder / STATE).get("global_step") or 0
        if not isinstance(step, int):
            raise ConfigError(f"{folder / STATE} has global_step {step!r}; wanted a whole number.")
        return step
    named = re.fullmatch(r"checkpoint-(\d+)", folder.resolve().name)
    return int(named[1]) if named else 0


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} cannot be read: {e}") from e
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return found


class Loader:
    """Opens checkpoints of one base, one after the other; at most one whole model is in memory.

    Args:
        source: Where the base comes from.
        base: The base, loaded; nothing else should hold it.
    """

    def __init__(self, source: Source, base: nn.Module) -> None:
        self.source, self._base = source, base
        self._weights, self._shape = fingerprint(base), _shape(base)
        parameter = next(base.parameters())
        self._dtype, self._device = parameter.dtype, parameter.device

    @contextmanager
    def open(self, checkpoint: Checkpoint) -> Iterator[nn.Module]:
        """A checkpoint's model, for as long as the context is open.

        Adapters should be opened before whole models, for which the base has to go.

        Raises:
            ConfigError: It cannot be loaded, or was made for another base.
        """
        if checkpoint.adapter is None:
            self._base = nn.Module()
            _free()
            yield self._whole(checkpoint.folder)
        else:
            tuned = self._tuned(checkpoint)
            try:
                yield tuned
            finally:
                self._base = _without(tuned)

    def _whole(self, folder: Path) -> nn.Module:
        """A model in the base's dtype; the base's tokenizer serves, as prompts must be the same."""
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=self._dtype, output_loading_info=True
            )
            found, told = loaded
            model: nn.Module = found.to(self._device).eval()
        except LOADING as e:
            raise ConfigError(f"{folder} cannot be loaded: {_reason(e)}") from e
        if lacking := sorted(map(str, told["missing_keys"])):
            raise ConfigError(
                f"{folder} lacks {len(lacking)} of the model's weights, {lacking[0]} among them, "
                "which would be random."
            )
        if (shape := _shape(model)) != self._shape:
            raise ConfigError(
                f"{folder} is another model: blocks and width are {shape}, of {self.source.model} "
                f"{self._shape}."
            )
        return model

    def _tuned(self, checkpoint: Checkpoint) -> Any:
        if fingerprint(self._base) != self._weights:  # some adapters change what is below them
            self._base, _ = self.source.load()
        folder = checkpoint.folder
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", ".*missing adapter keys")
                tuned = PeftModel.from_pretrained(self._base, str(folder)).eval()
        except LOADING as e:
            raise ConfigError(f"{folder} does not fit {self.source.model}: {_reason(e)}") from e
        if lost := _lost(folder, tuned):
            raise ConfigError(
                f"{folder} does not fit {self.source.model}: it has no place for {len(lost)} of "
                f"the adapter's weights, {lost[0]} among them. Give the model it was made for."
            )
        return tuned


def _shape(model: nn.Module) -> tuple[int, int]:
    found = find_backbone(model)
    return len(found.blocks), found.width


def _lost(folder: Path, tuned: Any) -> list[str]:
    """Weights in an adapter's file that the model has no place for; PEFT passes over them."""
    if not (folder / WEIGHTS).is_file():
        return []
    with safe_open(folder / WEIGHTS, "pt") as held:
        inside = set(held.keys())
    return sorted(inside - set(get_peft_model_state_dict(tuned)))


def _without(tuned: Any) -> nn.Module:
    """The base below an adapter."""
    prompt = tuned.active_peft_config.is_prompt_learning
    base: nn.Module = tuned.get_base_model() if prompt else tuned.unload()
    vars(base).pop("peft_config", None)  # PEFT leaves it, and takes it for an adapter's later
    return base


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
