"""From the files of a table to records: opened, then changed by one handler after the other."""

from __future__ import annotations

from runformer.config.data_sources import EncodeOptions, MethodOptions, PackOptions, TableFiles
from runformer.config.task import PluginOptions
from runformer.data.handlers import HandledRecords
from runformer.data.records import Records
from runformer.data.tables.encode import EncodedRecords
from runformer.data.tables.files import open_files
from runformer.data.tables.pack import pack
from runformer.data.tables.pick import apply_method
from runformer.data.tables.stream import open_stream
from runformer.errors import TokenizerError
from runformer.tokenizer import Tokenizer, load_tokenizer


def open_table(source: TableFiles, *, seed: int, pad_token_id: int | None, section: str) -> Records:
    """The records that the handlers of a table make.

    Args:
        source: files and handlers.
        seed: of a shuffle among the handlers that names none.
        pad_token_id: of the model; None: the tokenizer's, or 0.
        section: of the task file, for messages.

    Raises:
        DataError: a file is not there or damaged, or a record is not what a handler expects.
        TokenizerError: a tokenizer is not there or damaged.
        ConfigError: a plug-in cannot be made.
    """
    records: Records = open_stream(source) if source.streaming else open_files(source)
    for number, handler in enumerate(source.handlers):
        match handler:
            case MethodOptions():
                records = apply_method(records, handler, seed)
            case EncodeOptions():
                tokenizer = _tokenizer(handler, f"{section}.data_loader.handler[{number}]")
                if pad_token_id is None:
                    pad_token_id = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_id
                records = EncodedRecords(records, handler, tokenizer, pad_token_id or 0)
            case PackOptions():
                pad = pad_token_id if handler.pad_token_id is None else handler.pad_token_id
                records = pack(records, handler, pad or 0)
            case PluginOptions():
                more = any(isinstance(later, EncodeOptions | PluginOptions) for later in source.handlers[number + 1 :])
                records = HandledRecords(records, [handler], section, of_tokens=not more)
    return records


def _tokenizer(handler: EncodeOptions, key: str) -> Tokenizer:
    files = handler.tokenizer
    if not any((files.directory, files.tokenizer_file, files.vocab_file, files.merges_file)):
        hint = "set it to the model's folder, or pretrained_model_dir, beside whose weights a tokenizer lies"
        raise TokenizerError(f"{key}.tokenizer is not set, and records of text need one", hint=hint)
    return load_tokenizer(files.directory, files)
