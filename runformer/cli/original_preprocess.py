"""MindFormers' preprocessing scripts by their own names and flags; ``python -m runformer preprocess`` does the work."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from runformer.cli.report import reporting_errors
from runformer.errors import DataError

QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For Qwen2's vocabulary files alone, beside which no template lies."""

_OURS = "python -m runformer preprocess does more."


def alpaca_converter(argv: Sequence[str]) -> int:
    """``alpaca_converter.py``: instruction records → conversations, for ``llama_preprocess.py``. The exit code."""
    parser = _parser("alpaca_converter.py", "Turn Alpaca's records into conversations, a JSON list of them.")
    parser.add_argument("--data_path", type=Path, default=Path("alpaca-data.json"), metavar="FILE", help="the records")
    parser.add_argument(
        "--output_path", type=Path, default=Path("alpaca-data-conversation.json"), metavar="FILE", help="what to make"
    )
    return _reporting(parser, argv, _convert_alpaca)


def _convert_alpaca(words: argparse.Namespace) -> None:
    from runformer.data.writing import explaining_writes

    target: Path = words.output_path
    beside = target.with_name(f"{target.name}.tmp")
    count = 0
    try:
        with explaining_writes(target), beside.open("w", encoding="utf-8") as file:
            for count, conversation in enumerate(_conversations(words.data_path), start=1):
                file.write("[\n" if count == 1 else ",\n")
                file.write(json.dumps(conversation, ensure_ascii=False, indent=2))
            file.write("\n]\n" if count else "[]\n")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    print(f"wrote {count} conversations to {target}")


def _conversations(path: Path) -> Iterator[dict[str, Any]]:
    from runformer.data.conversations import alpaca_prompt
    from runformer.data.formats import FORMATS, Instruction, RecordReader
    from runformer.data.prepare.engine import read_blocks
    from runformer.data.prepare.records import BadRecord, records_of

    reader = RecordReader(FORMATS["alpaca"], {})
    number = 0
    for block in read_blocks([str(path)]):
        for where, record in records_of(block):
            if isinstance(record, BadRecord):
                raise record.error()
            try:
                content = reader.read(record)
            except DataError as error:
                raise DataError(f"{where}{error.message}", hint=error.hint) from error
            if isinstance(content, Instruction):
                number += 1
                prompt = alpaca_prompt(content.instruction, content.input).rstrip("\n")
                turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": content.output}]
                yield {"id": str(number), "conversations": turns}


def llama_preprocess(argv: Sequence[str]) -> int:
    """``llama_preprocess.py``: plain text, or conversations in Vicuna's form → MindRecord. The exit code."""
    parser = _parser("llama_preprocess.py", "Make a MindRecord file of text (wiki) or conversations (qa).")
    _add_mindrecord(parser)
    parser.add_argument("--model_file", type=Path, required=True, metavar="FILE", help="the vocabulary")
    return _reporting(parser, argv, _llama)


def _llama(words: argparse.Namespace) -> None:
    template = {"template": "vicuna", "stage": "finetune"} if words.dataset_type == "qa" else {}
    _run(words, tokenizer=words.model_file, **template)


def qwen2_preprocess(argv: Sequence[str]) -> int:
    """``qwen2_preprocess.py``: plain text, or ``messages`` of which all is learnt → MindRecord. The exit code."""
    parser = _parser("qwen2_preprocess.py", "Make a MindRecord file of text (wiki) or messages (qa).")
    _add_mindrecord(parser)
    parser.add_argument("--vocab_file", type=Path, required=True, metavar="FILE", help="vocab.json")
    parser.add_argument("--merges_file", type=Path, metavar="FILE", help="merges.txt")
    return _reporting(parser, argv, _qwen2)


def _qwen2(words: argparse.Namespace) -> None:
    from runformer.tokenizer.settings import read_settings

    chat: dict[str, Any] = {}
    if words.dataset_type == "qa":
        chat = {"stage": "finetune", "learn_all": True, "label_column": "target_ids"}
        if read_settings(words.vocab_file.parent).chat_template is None:
            chat["chat_template"] = QWEN_TEMPLATE
    _run(words, tokenizer=words.vocab_file, merges=words.merges_file, **chat)


def preprocess_indexed_dataset(argv: Sequence[str]) -> int:
    """``preprocess_indexed_dataset.py``: JSON lines → Megatron's ``.bin`` and ``.idx``. The exit code."""
    parser = _parser("preprocess_indexed_dataset.py", "Make Megatron's indexed dataset of JSON lines.")
    add = parser.add_argument
    add("--input", required=True, metavar="FILE", help="JSON lines, or a pattern of such files")
    add("--output-prefix", type=Path, required=True, metavar="PREFIX", help="PREFIX_KEY_document.bin and .idx are made")
    add("--json-keys", nargs="+", default=["text"], metavar="KEY", help="columns, each with files of its own (text)")
    add("--tokenizer-type", default="HuggingFaceTokenizer", metavar="NAME", help="the files say it here; no effect")
    add("--tokenizer-dir", type=Path, required=True, metavar="DIR", help="the model's folder")
    add("--append-eod", action="store_true", help="put the end token behind each document")
    add("--seq-length", type=int, metavar="N", help="documents are kept whole; no effect")
    add("--workers", type=int, default=1, metavar="N", help="processes")
    add("--partitions", type=int, default=1, metavar="N", help="all workers share one file; no effect")
    return _reporting(parser, argv, _megatron)


def _megatron(words: argparse.Namespace) -> None:
    from runformer.cli.preprocess import run
    from runformer.data.prepare.options import PrepareOptions

    for key in words.json_keys:
        options = PrepareOptions(
            inputs=(words.input,),
            output=words.output_prefix,
            tokenizer=words.tokenizer_dir,
            format="text",
            mapping={"text": key},
            to="megatron",
            append_eod=words.append_eod,
            document_name=key,
            workers=max(1, words.workers),
        )
        run(options)


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python {name}", description=f"{description} {_OURS}")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


def _add_mindrecord(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset_type", choices=("wiki", "wikipedia", "qa"), default="wiki", help="text, or questions and answers")
    add("--input_glob", required=True, metavar="PATTERN", help="the files")
    add("--output_file", type=Path, required=True, metavar="FILE", help="the MindRecord file to make")
    add("--seq_length", type=int, default=2048, metavar="N", help="rows have N + 1 tokens (2048)")
    add("--file_partition", type=int, default=1, metavar="N", help="files to spread the rows over")
    add("--repeat", type=int, default=1, metavar="N", help="times that the text is read")
    add("--samples_num", type=int, metavar="N", help="rows to write at most")


def _run(words: argparse.Namespace, **options: Any) -> None:
    from runformer.cli.preprocess import run
    from runformer.data.prepare.options import PrepareOptions
    from runformer.errors import UsageError

    for name in ("seq_length", "file_partition", "repeat", "samples_num"):
        number = getattr(words, name)
        if number is not None and number < 1:
            raise UsageError(f"--{name} {number} should be 1 or more")
    if words.dataset_type != "qa":
        options |= {"format": "text", "stage": "pretrain"}
    asked = PrepareOptions(
        inputs=(words.input_glob,),
        output=words.output_file,
        sequence_length=words.seq_length,
        shards=words.file_partition,
        repeat=words.repeat,
        max_rows=words.samples_num,
        **options,
    )
    run(asked)


def _reporting(parser: argparse.ArgumentParser, argv: Sequence[str], work: Callable[[argparse.Namespace], None]) -> int:
    words = parser.parse_args(argv)
    with reporting_errors(debug=words.debug) as outcome:
        work(words)
    return outcome.exit_code
