"""One expert's transformer layer: its own norms, projections and MLP, in the names that Hugging Face uses.

The joint stack (`vla_mot.nn.mot`) only asks a layer for `input_layernorm`, `self_attn.{q,k,v,o}_proj`, optional
`self_attn.{q,k}_norm`, `post_attention_layernorm` and `mlp`, so that the decoder layers of Qwen3-VL or Qwen2
from transformers fit beside `ExpertLayer`.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from vla_mot.errors import ConfigError
from vla_mot.nn.norm import RMSNorm
from vla_mot.nn.rope import RopeConfig


@dataclass(frozen=True)
class Geometry:
    """What all experts of one stack share, because they attend together."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeConfig
    qk_norm: bool = True
    attention_bias: bool = False
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_heads} heads cannot share {self.num_kv_heads} KV heads evenly; fix conf/backbone/."
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"head_dim must be even to be rotated, got {self.head_dim}; fix conf/backbone/."
            )
        if self.rope.sections and sum(self.rope.sections) != self.head_dim // 2:
            raise ConfigError(
                f"the position axes turn {self.rope.sections} frequencies, which must sum to head_dim / 2 = "
                f"{self.head_dim // 2}; fix mrope_sections or head_dim in conf/backbone/."
            )


@dataclass(frozen=True)
class ExpertConfig:
    """An expert's own widths: of its residual stream and of its MLP."""

    hidden_size: int
    intermediate_size: int


class ExpertAttention(nn.Module):
    """The projections of one expert; the attention itself is joint."""

    def __init__(self, geometry: Geometry, width: int) -> None:
        super().__init__()
        g = geometry
        self.q_proj = nn.Linear(width, g.num_heads * g.head_dim, bias=g.attention_bias)
        self.k_proj = nn.Linear(width, g.num_kv_heads * g.head_dim, bias=g.attention_bias)
        self.v_proj = nn.Linear(width, g.num_kv_heads * g.head_dim, bias=g.attention_bias)
        self.o_proj = nn.Linear(g.num_heads * g.head_dim, width, bias=False)
        if g.qk_norm:
            self.q_norm = RMSNorm(g.head_dim, eps=g.rms_norm_eps)
            self.k_norm = RMSNorm(g.head_dim, eps=g.rms_norm_eps)


class GatedMLP(nn.Module):
    """SiLU-gated MLP, `(…, D)` → `(…, D)`."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class ExpertLayer(nn.Module):
    """One layer of an expert; holds weights, `vla_mot.nn.mot` runs them."""

    def __init__(self, geometry: Geometry, config: ExpertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.input_layernorm = RMSNorm(width, eps=geometry.rms_norm_eps)
        self.self_attn = ExpertAttention(geometry, width)
        self.post_attention_layernorm = RMSNorm(width, eps=geometry.rms_norm_eps)
        self.mlp = GatedMLP(width, config.intermediate_size)
