"""The authors' tensor names and ours, both ways. Source: the key lists of the released 3B and 2B architectures.

A template may hold `{i}`, a layer's number; what follows a template is the same on both sides.
"""

import re
from collections.abc import Sequence

_UND_3B, _UND_2B = "model.qwen3_vl_with_expert.und_expert.", "model.internvl_with_expert.und_expert."


def _autoencoder(prefix: str) -> list[tuple[str, str]]:
    ours = "tokenizer.autoencoder."
    return [
        (f"{prefix}._enc_model.encoder.", f"{ours}encoder."),
        (f"{prefix}._enc_model.quant_conv.", f"{ours}quant_conv."),
        (f"{prefix}._dec_model.decoder.", f"{ours}decoder."),
        (f"{prefix}._dec_model.post_quant_conv.", f"{ours}post_quant_conv."),
    ]


def _expert(prefix: str, name: str) -> list[tuple[str, str]]:
    return [
        (f"{prefix}layers.{{i}}.", f"stack.layers.{{i}}.experts.{name}."),
        (f"{prefix}norm.", f"stack.norms.{name}."),
    ]


def _heads(generation: str) -> list[tuple[str, str]]:
    return [
        (f"model.{generation}_in_proj.", "generation.in_proj."),
        (f"model.{generation}_out_proj.", "generation.out_proj."),
        (f"model.{generation}_out_layer_norm.", "generation.norm."),
        ("model.downsample_conv.", "generation.downsample."),
        ("model.upsample_conv.", "generation.upsample."),
        ("model.state_proj.", "action.state_proj."),
        ("model.action_in_proj.", "action.in_proj."),
        ("model.action_out_proj.", "action.out_proj."),
        ("model.action_time_mlp_in.", "action.time_mlp_in."),
        ("model.action_time_mlp_out.", "action.time_mlp_out."),
    ]


_RULES = {
    "qwena1": [
        (f"{_UND_3B}lm_head.weight", "understanding.embed_tokens.weight"),  # tied: stored only as the head
        (f"{_UND_3B}model.visual.", "understanding.visual."),
        *_expert(f"{_UND_3B}model.language_model.", "understanding"),
        *_expert("model.qwen3_vl_with_expert.gen_expert.", "generation"),
        *_expert("model.qwen3_vl_with_expert.act_expert.", "action"),
        *_autoencoder("model.cosmos"),
        *_heads("cosmos"),
    ],
    "interna1": [
        (f"{_UND_2B}lm_head.weight", "understanding.lm_head.weight"),
        (f"{_UND_2B}model.language_model.embed_tokens.", "understanding.embed_tokens."),
        (f"{_UND_2B}model.vision_tower.", "understanding.vision_tower."),
        (f"{_UND_2B}model.multi_modal_projector.", "understanding.multi_modal_projector."),
        *_expert(f"{_UND_2B}model.language_model.", "understanding"),
        *_expert("model.internvl_with_expert.gen_expert.model.", "generation"),
        *_expert("model.internvl_with_expert.act_expert.model.", "action"),
        *_autoencoder("model.cosmos_tokenizer"),
        *_heads("gen"),
    ],
}
_CONSTANT = re.compile(r".*\.(un)?patcher\.(wavelets|_arange)|model\.imagenet_(mean|std)")


class ReleasedNames:
    """Names of one released type, `qwena1` (3B) or `interna1` (2B)."""

    def __init__(self, kind: str) -> None:
        self._to_ours = [_rule(theirs, ours) for theirs, ours in _RULES[kind]]
        self._to_theirs = [_rule(ours, theirs) for theirs, ours in _RULES[kind]]

    def ours(self, name: str) -> str | None:
        """Our name of a released tensor; None for a constant of the code that the authors stored as a tensor.

        A name that nobody knows comes back as it is, to be reported as unexpected.
        """
        return None if is_constant(name) else _renamed(name, self._to_ours) or name

    def theirs(self, name: str) -> str | None:
        """The released name of one of our tensors, or None when that layout has no place for it."""
        return _renamed(name, self._to_theirs)


def is_constant(name: str) -> bool:
    """Whether a released tensor is a constant (wavelets, picture means) and no weight."""
    return _CONSTANT.fullmatch(name) is not None


def _rule(source: str, target: str) -> tuple[re.Pattern[str], str]:
    pattern = re.escape(source).replace(r"\{i\}", r"(\d+)")
    return re.compile(pattern), target.replace("{i}", r"\1")


def _renamed(name: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rules:
        if match := pattern.match(name):
            return match.expand(target) + name[match.end() :]
    return None
