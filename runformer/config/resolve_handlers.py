"""From the ``handler`` list of a table to the options of each data handler."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from runformer.config.data_sources import EncodeOptions, HandlerOptions, MethodOptions, PackOptions
from runformer.config.paths import absolute, existing, is_there
from runformer.config.plugin_sections import PluginSection, unknown_type
from runformer.config.problems import Report, nearest
from runformer.config.resolve_loader import LoaderPlace
from runformer.config.resolve_predict import tokenizer_of
from runformer.config.sections.data import (
    HANDLERS,
    METHODS,
    AlpacaHandler,
    Encoder,
    Handler,
    HandlerTokenizer,
    MessagesHandler,
    PackHandler,
    SubLoader,
    TextHandler,
)
from runformer.config.sections.predict import Tokenizer
from runformer.config.task import PluginOptions, TokenizerOptions

_FORMS: dict[type, Literal["alpaca", "messages", "text"]] = {
    AlpacaHandler: "alpaca",
    MessagesHandler: "messages",
    TextHandler: "text",
}
# Methods that change what columns hold, or look at it: they need the table itself.
_OF_TABLES = ("class_encode_column", "flatten", "flatten_indices", "sort")
_CODE = ("filter", "map", "set_transform", "with_transform")
_ELSEWHERE = {
    "train_test_split": "it makes two tables of one: set split to a part, such as train[:90%]",
    "CodeAlpacaInstructDataHandler": "it is not built in: use AlpacaInstructDataHandler, or a plug-in",
    "ADGenInstructDataHandler": "it is not built in: use MessagesDataHandler, or a plug-in",
    "LlavaInstructDataHandler": "models of images are not supported",
}


def handler_options(loader: SubLoader, place: LoaderPlace, *, streaming: bool) -> tuple[HandlerOptions, ...]:
    """The data handlers of a table in their order; what is wrong goes into the report of ``place``."""
    listed = loader.handler or []
    found: list[HandlerOptions] = []
    for index, item in enumerate(listed):
        key = f"handler[{index}]"
        if isinstance(item, PluginSection):
            found.append(PluginOptions(item.type, item.keys))
        elif isinstance(item, Encoder):
            packed = bool(loader.packing) or any(isinstance(later, PackHandler) for later in listed[index:])
            found.append(_encode(item, key, place, packed=packed))
        elif isinstance(item, PackHandler):
            strategy: Any = item.pack_strategy or loader.packing or "pack"
            found.append(PackOptions(_length(item.seq_length, key, place), strategy, item.pad_token_id))
        elif (method := _method(item, key, place)) is not None:
            found.append(method)
    _check_order(found, place, streaming=streaming)
    if not place.dataset.dynamic_batch:
        _check_lengths(found, place)
    return tuple(found)


def _encode(item: Encoder, key: str, place: LoaderPlace, *, packed: bool) -> EncodeOptions:
    side: Any = item.padding_side
    if side is None and isinstance(item.tokenizer, HandlerTokenizer):
        side = item.tokenizer.padding_side
    padded = item.padding and not item.is_dynamic and not packed
    return EncodeOptions(
        form=_FORMS[type(item)],
        tokenizer=_tokenizer(item, key, place),
        length=_length(item.seq_length, key, place),
        padding=("left" if side == "left" else "right") if padded else None,
        column=getattr(item, "column", None),
    )


def _length(asked: int | None, key: str, place: LoaderPlace) -> int:
    """Tokens of a row: the model sees all but the last, and is asked for all but the first."""
    expected = place.model.sequence_length
    if asked is None and expected is None:
        place.error(key, "needs seq_length, since model.model_config.seq_length is not set either")
    if None not in (asked, expected) and asked != expected:
        place.error(f"{key}.seq_length", f"is {asked}, but model.model_config.seq_length is {expected}")
    return (asked or expected or 1) + 1


def _tokenizer(item: Encoder, key: str, place: LoaderPlace) -> TokenizerOptions:
    """The tokenizer that a handler names, else the task's, which may lie beside the weights."""
    own = item.tokenizer if isinstance(item.tokenizer, HandlerTokenizer) else HandlerTokenizer()
    folder: str | None
    if item.tokenizer_name:
        key, folder = f"{key}.tokenizer_name", item.tokenizer_name
    elif isinstance(item.tokenizer, str):
        key, folder = f"{key}.tokenizer", item.tokenizer
    else:
        key, folder = f"{key}.tokenizer.pretrained_model_dir", own.pretrained_model_dir
    path = f"{place.path}.{key}"
    if folder:
        return tokenizer_of(own, path, _directory(folder, path, place.report), place.report, needed=True)
    path, section = path.rpartition(".")[0], own
    if not any((own.tokenizer_file, own.vocab_file, own.merges_file)):
        path, section = "processor.tokenizer", _laid_over(place.config.processor.tokenizer, own)
    return tokenizer_of(section, path, place.model.pretrained_dir, place.report, needed=True)


def _laid_over(below: Tokenizer, own: HandlerTokenizer) -> HandlerTokenizer:
    """A section with what another one says as well, whose word counts more."""
    both = {item.name: (getattr(below, item.name), getattr(own, item.name)) for item in fields(Tokenizer)}
    return HandlerTokenizer(**{name: first if second is None else second for name, (first, second) in both.items()})


def _directory(name: str, key: str, report: Report) -> Path | None:
    if not is_there(absolute(name)) and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):  # as names on the hub look
        report.fill_in(key, f"is {name!r}: it is no folder here, and nothing is downloaded")
        return None
    return existing(report, key, name, flag=key)


def _method(item: Handler, key: str, place: LoaderPlace) -> MethodOptions | None:
    """A method of ``datasets.Dataset`` with its arguments."""
    name = item.type or ""
    if name not in METHODS:
        place.error(f"{key}.type", _unknown(name))
        return None
    must, may = METHODS[name]
    for argument in item.arguments:
        if argument not in (*must, *may):
            near = nearest(argument, (*must, *may))
            text = f"is not a key of {name}, which takes {', '.join((*must, *may)) or 'none'}"
            place.error(f"{key}.{argument}", f"{text}{f': did you mean {near!r}?' if near else ''}")
    for argument in must:
        if item.arguments.get(argument) is None:
            place.error(key, f"lacks {argument!r}, which {name} needs")
    return MethodOptions(name, {argument: value for argument, value in item.arguments.items() if value is not None})


def _unknown(name: str) -> str:
    if name in _CODE:
        return f"is {name!r}, which is given code: write a data handler as a plug-in"
    if name in _ELSEWHERE:
        return f"is {name!r}: {_ELSEWHERE[name]}"
    return unknown_type("data_handler", name, (*HANDLERS, *METHODS))


def _check_order(handlers: list[HandlerOptions], place: LoaderPlace, *, streaming: bool) -> None:
    """See that each handler gets what it works on: a table, records of text, rows of tokens."""
    encoded = packed = changed = False
    for index, handler in enumerate(handlers):
        wrong = None
        match handler:
            case EncodeOptions():
                wrong = "makes tokens of text, and stands behind a handler that has made them" if encoded else None
                encoded = changed = True
            case PackOptions():
                wrong = "packs rows that are packed already" if packed else None
                wrong = "must know how long all records are, which a stream cannot say" if streaming else wrong
                encoded = packed = changed = True
            case PluginOptions():
                changed = True
            case MethodOptions(name):
                if changed and name in _OF_TABLES:
                    wrong = f"is {name!r}, which must stand before all handlers that change records"
                if streaming and name in ("shuffle", *_OF_TABLES):
                    wrong = f"is {name!r}, but a stream comes in the order of its files"
        if wrong:
            place.error(f"handler[{index}].type", wrong)


def _check_lengths(handlers: list[HandlerOptions], place: LoaderPlace) -> None:
    """Rows of a batch have one length, unless they are padded to it batch by batch."""
    settled = any(isinstance(handler, PackOptions | PluginOptions) for handler in handlers)
    for index, handler in enumerate(handlers):
        if isinstance(handler, EncodeOptions) and handler.padding is None and not settled:
            text = "makes rows of different lengths: let PackingHandler follow it, or leave out padding and is_dynamic"
            place.error(f"handler[{index}]", text)
