"""Prompts: what ``--predict_data`` means, and how they become batches."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runformer.errors import PredictError
from runformer.predict.prompts import batch_prompts, read_prompts


def test_one_text_is_one_prompt_and_backslash_n_a_newline() -> None:
    assert read_prompts(["a\\nb"]) == ["a\nb"]


def test_several_texts_are_taken_as_they_are() -> None:
    assert read_prompts(["a\\nb", "c.txt"]) == ["a\\nb", "c.txt"]


def test_a_file_holds_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffÜber uns\r\n\n   \n 你好 \nlast".encode())
    assert read_prompts([str(file)]) == ["Über uns", " 你好 ", "last"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "holds no prompt"), (b"\n \n", "holds no prompt"), (b"ok\n\xff\xfe", "byte 3")]
)
def test_a_file_that_is_no_list_of_prompts(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(PredictError, match=message) as caught:
        read_prompts([str(file)])
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(PredictError, match="does not exist"):
        read_prompts([str(tmp_path / "none.txt")])
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(PredictError, match="cannot be read"):
        read_prompts([str(tmp_path / "folder.txt")])


@pytest.mark.parametrize("inputs", [[], [""], ["  \n"], ["", " "]])
def test_no_prompt_at_all(inputs: list[str]) -> None:
    with pytest.raises(PredictError, match="no prompt"):
        read_prompts(inputs)


@given(st.lists(st.text(), min_size=1, max_size=12), st.one_of(st.none(), st.integers(1, 13)))
def test_batches_keep_order_and_size(prompts: list[str], batch_size: int | None) -> None:
    if batch_size is not None and len(prompts) % batch_size:
        with pytest.raises(PredictError, match=rf"{len(prompts)}, is no multiple of the batch size {batch_size} "):
            batch_prompts(prompts, batch_size)
        return
    batches = batch_prompts(prompts, batch_size)
    assert [prompt for batch in batches for prompt in batch] == prompts
    assert {len(batch) for batch in batches} == {batch_size or 1}
