"""Generation options with every question answered: by the task, the model's folder, or Hugging Face's defaults."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from runformer.config.task import GenerationOptions, ModelOptions, ModelTask
from runformer.errors import PredictError

logger = logging.getLogger(__name__)

DEFAULT_NEW_TOKENS = 20  # Hugging Face's, where no length is given at all


@dataclass(frozen=True, slots=True)
class Settings:
    """How tokens are picked and how many.

    ``max_new_tokens`` wins over ``max_length``, which counts the prompt; one of them is set. ``top_k`` of 0 or
    less, ``top_p`` 1 and ``repetition_penalty`` 1 change nothing.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0


def resolve_settings(options: GenerationOptions, folder_config: Mapping[str, Any]) -> Settings:
    """What the task gives, then the folder's ``generation_config.json``, then Hugging Face's defaults.

    Raises:
        PredictError: a value is of the wrong type or out of its range.
    """
    names = {field.name for field in fields(Settings)}
    values = {name: value for name, value in folder_config.items() if name in names and value is not None}
    given = {name: value for name, value in asdict(options).items() if value is not None}
    if "max_length" in given:
        # The length that the user asked for is not overruled by the folder's number of new tokens.
        values.pop("max_new_tokens", None)
    values |= given
    if "max_length" not in values:
        values.setdefault("max_new_tokens", DEFAULT_NEW_TOKENS)
    for name, value in values.items():
        _check(name, value)
    return Settings(**values)


@dataclass(frozen=True, slots=True)
class _Range:
    types: tuple[type, ...]
    holds_above: float
    most: float
    expected: str


_COUNT = _Range((int,), 0, math.inf, "a whole number above 0")
_RANGES = {
    "max_new_tokens": _COUNT,
    "max_length": _COUNT,
    "do_sample": _Range((bool,), -1, 1, "True or False"),
    "temperature": _Range((int, float), 0, math.inf, "above 0 (do_sample False picks the likeliest token)"),
    "top_k": _Range((int,), -math.inf, math.inf, "a whole number (0 keeps all tokens)"),
    "top_p": _Range((int, float), 0, 1, "above 0, at most 1"),
    "repetition_penalty": _Range((int, float), 0, math.inf, "above 0 (1 is no penalty)"),
}


def _check(name: str, value: object) -> None:
    allowed = _RANGES[name]
    mistaken_flag = isinstance(value, bool) and bool not in allowed.types  # to Python, True is the integer 1
    right_type = isinstance(value, allowed.types) and not mistaken_flag
    if not right_type or not allowed.holds_above < value <= allowed.most:  # type: ignore[operator]
        raise PredictError(f"generation option {name} is {value!r}; it must be {allowed.expected}")


def read_generation_config(folder: Path | None) -> Mapping[str, Any]:
    """A folder's ``generation_config.json``; empty where there is none.

    Raises:
        PredictError: the file is not a JSON object.
    """
    if folder is None or not (path := folder / "generation_config.json").is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PredictError(f"{path}: not readable as JSON: {error}", hint="repair it, or remove it") from None
    if not isinstance(config, dict):
        raise PredictError(f"{path}: a JSON object is expected, not {type(config).__name__}")
    return config


def resolve_eos_ids(
    model: ModelTask, options: ModelOptions, folder_config: Mapping[str, Any], tokenizer_eos_id: int | None
) -> frozenset[int]:
    """The tokens that end a text.

    Those of the YAML; where a Hugging Face folder describes the model, those of its ``generation_config.json``,
    then of its ``config.json``; where none of them says, the tokenizer's.
    """
    from_yaml = model.options is not None or "eos_token_ids" in model.overrides
    in_folder = folder_config.get("eos_token_id")
    if not from_yaml and in_folder is not None:
        return frozenset(in_folder if isinstance(in_folder, list) else [in_folder])
    if options.eos_token_ids:
        return frozenset(options.eos_token_ids)
    return frozenset() if tokenizer_eos_id is None else frozenset([tokenizer_eos_id])


class LengthLimit:
    """How long a text may become, prompt included.

    Args:
        settings: where ``max_new_tokens`` or ``max_length`` stands.
        max_positions: the longest text that the model can hold; one line on the log says where that decides.
    """

    def __init__(self, settings: Settings, max_positions: int) -> None:
        self._max_new_tokens = settings.max_new_tokens
        self._max_length = settings.max_length
        self._max_positions = max_positions
        self._said = False

    def of(self, prompt_length: int) -> int:
        """Most tokens of prompt and continuation together.

        Raises:
            PredictError: the prompt leaves no room for one more token.
        """
        if self._max_new_tokens is not None:
            wanted, option = prompt_length + self._max_new_tokens, f"max_new_tokens {self._max_new_tokens}"
        else:
            assert self._max_length is not None, "settings bound the length one way or the other"
            wanted, option = self._max_length, f"max_length {self._max_length}"
        limit = min(wanted, self._max_positions)
        if prompt_length >= limit:
            bound = option if limit == wanted else f"the model's {limit} positions"
            raise PredictError(
                f"a prompt of {prompt_length} tokens leaves no room for an answer within {bound}",
                hint="shorten it, or raise max_length (and seq_length, where the model can hold more)",
            )
        if wanted > limit and not self._said:
            logger.warning("%s reaches beyond the model's %d positions: texts end there", option, limit)
            self._said = True
        return limit
