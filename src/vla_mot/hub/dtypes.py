"""Which dtype each stored weight must have, so that a lone float16 is found when a file is opened, not when it acts.

Weights are float32 or bfloat16 in a pattern: the matrices of the experts and of the backbone share one dtype, those of
the heads one (the same, or float32), the experts' norms are float32 or like the matrices, all of one kind alike; the
foresight tokenizer's are as its options say.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from vla_mot.errors import ConfigError
from vla_mot.hub.spec import PolicySpec, WeightsDtype
from vla_mot.hub.tensors import shortened
from vla_mot.model.precision import keeps_float32

DTYPES: dict[torch.dtype, WeightsDtype] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""What weights may be, and its name in a configuration."""
_TOKENIZER, _HEADS = "tokenizer.", ("generation.", "action.")
_NORM = re.compile(r"stack\.(layers\.\d+\.experts\.\w+\..*norm|norms\.\w+)\.weight")


def dtype_name(dtype: torch.dtype) -> WeightsDtype:
    """The name of a dtype that weights can have. Raises ConfigError for another one."""
    if dtype not in DTYPES:
        known = " or ".join(map(str, DTYPES))
        raise ConfigError(f"dtype must be {known}, got {dtype}: weights of a policy are nothing else.")
    return DTYPES[dtype]


def expected_dtypes(spec: PolicySpec, found: Mapping[str, torch.dtype]) -> dict[str, torch.dtype]:
    """The dtype that each weight must have in a file of this policy.

    found: name in the model → dtype in the file. For `mixed` weights the pattern is that of most of them.
    """
    floating = {name: dtype for name, dtype in found.items() if dtype.is_floating_point}
    wanted = dict(found)
    rest = [name for name in floating if not name.startswith(_TOKENIZER)]
    own_dtype = getattr(torch, str((spec.model.foresight or {}).get("dtype", "float32")))
    wanted |= dict.fromkeys(floating.keys() - set(rest), own_dtype)
    if spec.dtype != "mixed":
        own = getattr(torch, spec.dtype)
        return wanted | {name: torch.float32 if keeps_float32(name) else own for name in rest}
    return wanted | _pattern({name: floating[name] for name in rest})


def require_dtypes(spec: PolicySpec, found: Mapping[str, torch.dtype]) -> None:
    """Raise ConfigError, naming the weights, unless these could be read again as weights of the policy."""
    wanted = expected_dtypes(spec, found)
    odd = [f"{name} is {found[name]}, not {dtype}" for name, dtype in wanted.items() if found[name] != dtype]
    if odd:
        raise ConfigError(
            f"the policy says that its weights are {spec.dtype}, but {shortened(odd)}. Open it with `dtype=`, or "
            "set `spec.dtype` after casting the model."
        )


def _pattern(found: Mapping[str, torch.dtype]) -> dict[str, torch.dtype]:
    """The dtype of every weight outside the tokenizer, by what most of its kind have."""
    kinds: dict[str, list[str]] = {}
    for name in found:
        kinds.setdefault(_kind(name), []).append(name)
    matrices = _most((found[name] for name in kinds.get("matrices", ())), DTYPES)
    allowed = {torch.float32, matrices}
    common = {kind: _most((found[name] for name in names), allowed) for kind, names in kinds.items()}
    return {name: common[kind] for kind, names in kinds.items() for name in names}


def _kind(name: str) -> str:
    """`matrices`, `heads`, or a norm's name without the number of its layer."""
    if _NORM.fullmatch(name):
        return re.sub(r"\.\d+\.", ".", name)
    return "heads" if name.startswith(_HEADS) else "matrices"


def _most(dtypes: Iterable[torch.dtype], allowed: Collection[Any]) -> torch.dtype:
    """The commonest of the allowed ones; float32 when there is none."""
    counted = Counter(dtype for dtype in dtypes if dtype in allowed)
    return counted.most_common(1)[0][0] if counted else torch.float32
