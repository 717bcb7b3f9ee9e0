"""From what ``--predict_data`` gave to batches of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runformer.errors import PredictError
from runformer.tokenizer import Tokenizer


def read_prompts(inputs: Sequence[str]) -> list[str]:
    r"""The prompts that the user gave: one ``.txt`` file with a prompt a line, or the texts themselves.

    As in the original, the two characters ``\n`` in a single text stand for a newline, since a shell
    makes a real one hard to type.

    Raises:
        PredictError: there is no prompt, or the file is missing, not UTF-8 or empty.
    """
    if len(inputs) == 1 and inputs[0].endswith(".txt"):
        return _read_lines(Path(inputs[0]))
    prompts = [inputs[0].replace("\\n", "\n")] if len(inputs) == 1 else list(inputs)
    if not any(prompt.strip() for prompt in prompts):
        raise PredictError("there is no prompt to answer", hint="give one with --predict_data 'text' or FILE.txt")
    return prompts


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise PredictError(f"prompt file {path} does not exist", hint="check --predict_data") from None
    except UnicodeDecodeError as error:
        message = f"prompt file {path} is not UTF-8 text: byte {error.start} cannot be decoded"
        raise PredictError(message, hint="save it as UTF-8") from None
    except OSError as error:
        raise PredictError(f"prompt file {path} cannot be read: {error.strerror}") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise PredictError(f"prompt file {path} holds no prompt", hint="write one prompt a line")
    return prompts


def batch_prompts(prompts: Sequence[str], batch_size: int | None) -> list[list[str]]:
    """Group prompts in order; without ``batch_size`` each is a batch of its own.

    Raises:
        PredictError: the number of prompts is not a multiple of ``batch_size``, which the original demands too.
    """
    size = batch_size or 1
    if len(prompts) % size:
        message = (
            f"the number of prompts, {len(prompts)}, is no multiple of the batch size {size} (--predict_batch_size)"
        )
        raise PredictError(message, hint="leave --predict_batch_size out to answer them one by one")
    return [list(prompts[start : start + size]) for start in range(0, len(prompts), size)]


def encode_prompt(tokenizer: Tokenizer, prompt: str, *, chat: bool, vocab_size: int) -> list[int]:
    """Token ids of a prompt; with ``chat`` it is the user's turn of a conversation, and the model's turn begins.

    Raises:
        PredictError: the prompt has no tokens, the model has no such token, or there is no chat template.
    """
    if not chat:
        ids = tokenizer.encode(prompt)
    elif tokenizer.chat_template is None:
        message = "--chat True needs a chat template, and this tokenizer has none"
        raise PredictError(message, hint="use the tokenizer folder of a chat model, or leave --chat out")
    else:
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False)
    _check_ids(ids, prompt, vocab_size)
    return ids


def _check_ids(ids: Sequence[int], prompt: str, vocab_size: int) -> None:
    shown = repr(prompt if len(prompt) <= 60 else f"{prompt[:60]}…")
    if not ids:
        raise PredictError(f"prompt {shown} has no tokens", hint="write at least one word")
    if max(ids) >= vocab_size:
        message = f"prompt {shown} has token {max(ids)}, but the model's vocabulary ends at {vocab_size - 1}"
        raise PredictError(message, hint="this tokenizer belongs to another model, or vocab_size is too small")
