"""Chat templates: from messages to the prompt that a chat model was trained on.

A template is a Jinja program that comes with the model, so it runs in a sandbox. The environment offers
what Hugging Face's does, which is what template authors write for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runformer.errors import TokenizerError

MARKS = ("\ufdd0", "\ufdd1")
"""What stands around the assistant's words in a marked rendering: code points that Unicode keeps out of texts."""


class GenerationBlock(Extension):
    """``{% generation %} … {% endgeneration %}`` marks the assistant's words for training; here, plain text."""

    tags = {"generation"}  # noqa: RUF012  Jinja reads it from the class

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The statements between the two tags, as they stand."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class MarkedGenerationBlock(GenerationBlock):
    """The same, with ``MARKS`` around the words."""

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the two tags, and one that writes a mark on each side."""
        body = super().parse(parser)
        begin, end = (nodes.Output([nodes.TemplateData(mark)]) for mark in MARKS)
        return [begin, *(body if isinstance(body, list) else [body]), end]


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    special_tokens: Mapping[str, str],
    marked: bool = False,
) -> str:
    """Render ``messages`` (each with ``role`` and ``content``) by a chat template.

    ``special_tokens`` (``bos_token``, ``eos_token``, …) are variables of the template. ``marked`` puts ``MARKS``
    around what stands in its ``{% generation %}`` blocks.

    Raises:
        TokenizerError: the template is wrong, or it refuses these messages.
    """
    try:
        return _compiled(template, marked).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **special_tokens,
        )
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"the chat template is wrong in its line {error.lineno}: {error.message}") from error
    # A template is a program: it may raise anything, most often through raise_exception.
    except Exception as error:
        raise TokenizerError(
            f"the chat template refuses these messages: {error}", hint="it may want other roles, or another order"
        ) from error


@lru_cache(maxsize=8)
def _compiled(template: str, marked: bool) -> jinja2.Template:
    """Compiling takes a thousand times as long as rendering one message."""
    return _environment(MarkedGenerationBlock if marked else GenerationBlock).from_string(template)


def _environment(generation: type[Extension]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
