"""Chat templates in the style of real models: the oracle is ``transformers``' ``apply_chat_template``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_texts import add_special, train_byte_level, write_json
from transformers import AutoTokenizer

from runformer.config.task import TokenizerOptions
from runformer.errors import TokenizerError
from runformer.tokenizer import load_tokenizer

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = """{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}
{% else %}
{% set loop_messages = messages %}{% set system_message = false %}
{% endif %}
{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate user/assistant') }}
{% endif %}
{% if loop.index0 == 0 and system_message != false %}
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n\\n" + system_message }}
{%- if tools is not none %}{{- "Tools: " }}{% for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
LOOPS_AND_JSON = """{%- set state = namespace(count=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- set state.count = state.count + 1 %}
    {%- if state.count > 2 %}{% break %}{% endif %}
    {%- generation %}{{ message | tojson }}{% endgeneration %}
    {{ {"角色": message.role, "b": "<&>'", "a": [1, none, true]} | tojson(indent=2, sort_keys=true) }}
{%- endfor %}
{{ messages[-1].content.split(' ')[0] if messages[-1].content is string }} {{ pad_token is defined }} {{ unk_token }}"""

TEMPLATES = {
    "chatml": CHATML,
    "smollm2": DEFAULT_SYSTEM,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "loops": LOOPS_AND_JSON,
}
USER = {"role": "user", "content": '  What is 2 < 3 & "why"? 为什么 '}
CONVERSATIONS = {
    "one": [USER],
    "system": [{"role": "system", "content": "Be brief.\n"}, USER],
    "turns": [USER, {"role": "assistant", "content": " Because. "}, {"role": "user", "content": "Sure?"}],
}

WriteFolder = Callable[[dict[str, Any]], Path]


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    def write(config: dict[str, Any]) -> Path:
        tokenizer = train_byte_level(size=300)
        add_special(tokenizer, "<s>", "</s>")
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        special = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}}
        write_json(tmp_path / "tokenizer_config.json", {**special, **config})
        return tmp_path

    return write


@pytest.mark.parametrize("template", TEMPLATES)
def test_as_transformers(write_folder: WriteFolder, template: str) -> None:
    folder = write_folder({"chat_template": TEMPLATES[template]})
    ours, oracle = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for messages in CONVERSATIONS.values():
        for prompt in (False, True):
            expected = oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert ours.apply_chat_template(messages, add_generation_prompt=prompt) == expected


def test_a_chat_prompt_by_hand(write_folder: WriteFolder) -> None:
    ours = load_tokenizer(write_folder({"chat_template": DEFAULT_SYSTEM}))
    assert ours.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_where_the_template_lies(write_folder: WriteFolder) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder = write_folder({"chat_template": named})
    assert load_tokenizer(folder).chat_template == "D"
    (folder / "chat_template.jinja").write_text("J", encoding="utf-8")
    assert load_tokenizer(folder).chat_template == AutoTokenizer.from_pretrained(folder).chat_template == "J"
    assert load_tokenizer(folder, TokenizerOptions(chat_template="Y")).chat_template == "Y"


def test_the_messages_stay_as_they_are(write_folder: WriteFolder) -> None:
    ours = load_tokenizer(write_folder({"chat_template": "{% set _ = messages[0].update({'role': 'x'}) %}"}))
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(TokenizerError, match="the chat template refuses"):
        ours.apply_chat_template(messages, add_generation_prompt=False)
    assert messages == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (LLAMA2, "roles must alternate user/assistant"),
        ("\n{% for %}", "wrong in its line 2"),
        ("{{ messages[7].content }}", "refuses these messages"),
        ("{{ 1 + 'a' }}", "refuses these messages"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ],
)
def test_templates_that_fail(write_folder: WriteFolder, template: str, message: str) -> None:
    ours = load_tokenizer(write_folder({"chat_template": template}))
    with pytest.raises(TokenizerError, match=message):
        ours.apply_chat_template([{"role": "assistant", "content": "Hi"}], add_generation_prompt=True)


def test_no_template(write_folder: WriteFolder) -> None:
    ours = load_tokenizer(write_folder({}))
    assert ours.chat_template is None
    with pytest.raises(TokenizerError, match="has no chat template"):
        ours.apply_chat_template([USER], add_generation_prompt=True)


def test_a_template_that_is_no_text(write_folder: WriteFolder) -> None:
    with pytest.raises(TokenizerError, match="chat_template is not text"):
        load_tokenizer(write_folder({"chat_template": 7}))
