"""Low-rank adapters on linear layers (LoRA, arXiv:2106.09685)."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from torch import Tensor, nn

from runformer.config.task import LoraOptions
from runformer.errors import ConfigError
from runformer.models.decoder import CausalLM
from runformer.models.layers import Linear
from runformer.models.names import to_mindformers
from runformer.models.randomness import Place, dropout, key_of

_KEY = "model.model_config.pet_config.target_modules"
_EXCLUDED = "model.model_config.pet_config.exclude_layers"


class LoraLinear(Linear):
    """``y = W x + b + (alpha / rank) · B A dropout(x)``, with W and b frozen.

    ``lora_A.weight`` is ``(rank, in)``, ``lora_B.weight`` is ``(out, rank)``; B starts at zero. ``place`` says where in
    the run the input stands, which dropout hangs on; ``first_feature`` is the number of the first column that is here.
    """

    def __init__(self, base: nn.Linear, options: LoraOptions, name: str, place: Place) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = Linear(base.in_features, options.rank, bias=False)
        self.lora_B = Linear(options.rank, base.out_features, bias=False)
        self.scaling = options.alpha / options.rank
        self.dropout = options.dropout
        self.key = key_of(name)
        self.place = place
        self.first_feature = 0

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, L, in)`` to ``(B, L, out)``."""
        dropped = dropout(x, self.dropout, self.place, self.key, self.first_feature) if self.training else x
        adapted: Tensor = self.lora_B(self.lora_A(dropped))
        return super().forward(x) + adapted * self.scaling


def add_lora(model: CausalLM, options: LoraOptions) -> None:
    """Put adapters on the layers whose name matches, and freeze other parameters as the options say.

    A pattern is matched from the start of the layer's own name (``wq``, ``q_proj``) or of its full one
    (``model.layers.0.attention.wq``), as the original does.

    Raises:
        ConfigError: a pattern is no regular expression, or matches no layer.
    """
    pattern = _compiled(_KEY, options.target_modules)
    exclude = [_compiled(_EXCLUDED, text) for text in options.exclude]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not _fits(options.freeze, name) or _fits(options.spare, name))
    targets = [
        name
        for name, module in model.named_modules()
        if type(module) is Linear and _matches(pattern, name) and not any(_matches(other, name) for other in exclude)
    ]
    if not targets:
        raise ConfigError(
            f"{_KEY}: {options.target_modules!r} matches no layer",
            hint="layers are named wq, wk, wv, wo (attention) and w1, w2, w3 (MLP), e.g. '.*wq|.*wv', or q_proj, …",
        )
    for name in targets:
        parent = model.get_submodule(name.rpartition(".")[0])
        base = model.get_submodule(name)
        assert isinstance(base, Linear)
        setattr(parent, name.rpartition(".")[2], LoraLinear(base, options, name, model.place))


def _compiled(key: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(f"{key}: {text!r} is no regular expression: {error}") from None


def _matches(pattern: re.Pattern[str], module_name: str) -> bool:
    theirs = to_mindformers(module_name + ".weight").removesuffix(".weight")
    return any(pattern.match(full) or pattern.match(full.rpartition(".")[2]) for full in (theirs, module_name))


def _fits(patterns: tuple[str, ...], name: str) -> bool:
    return any(fnmatchcase(known, pattern) for known in (name, to_mindformers(name)) for pattern in patterns)
