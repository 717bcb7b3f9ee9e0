"""The result file: the original's form, written whole or not at all."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runformer.errors import PredictError
from runformer.predict.result import format_answer, format_results, write_results


def test_the_originals_form(oracle_dir: Path) -> None:
    text = (oracle_dir / "predict_greedy" / "text_generation_result.txt").read_text(encoding="utf-8")
    batches = [batch["text_generation_text"] for batch in ast.literal_eval(text)]
    assert format_results(batches) == text


@given(st.lists(st.lists(st.text(), min_size=1), min_size=1))
def test_any_text_can_be_read_back(batches: list[list[str]]) -> None:
    assert [batch["text_generation_text"] for batch in ast.literal_eval(format_results(batches))] == batches


def test_characters_stay_themselves(tmp_path: Path) -> None:
    file = tmp_path / "result.txt"
    write_results(file, [["你好 'x'"], ["\ud800"]])
    assert file.read_text(encoding="utf-8").startswith("[{'text_generation_text': [\"你好 'x'\"]}, ")
    assert ast.literal_eval(file.read_text(encoding="utf-8"))[1] == {"text_generation_text": ["\ud800"]}


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "result.txt").mkdir()
    with pytest.raises(PredictError, match=r"result\.txt cannot be written"):
        write_results(tmp_path / "result.txt", [["a"]])
    with pytest.raises(PredictError, match="cannot be written"):
        write_results(tmp_path / "none" / "result.txt", [["a"]])
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.txt"]


def test_an_answer_for_people() -> None:
    assert format_answer(2, "Who?", " You.\n") == "\n[2] Who?\n→ You."
