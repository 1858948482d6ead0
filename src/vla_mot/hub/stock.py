"""A new model's understanding expert from a stock Hugging Face checkpoint of its family (Qwen3-VL, InternVL3)."""

from pathlib import Path

from vla_mot.hub.conventions import require_stock_options
from vla_mot.hub.files import read_json
from vla_mot.hub.tensors import Weights, load_weights
from vla_mot.model.model import VlaMotModel

_UNDERSTANDING = "understanding."
_STACK = (".experts.understanding.", "stack.norms.understanding.")


def load_backbone(model: VlaMotModel, folder: Path) -> None:
    """Load every weight of the understanding expert from a folder in the stock layout, converted to the model's dtype.

    Raises CheckpointError naming every weight that is missing, unexpected (another family's, say) or of another shape,
    and every option (rope base, heads, …) that its `config.json` states otherwise than the model has it.
    """
    weights = Weights.open(folder)
    stated = model.understanding.stock_options(read_json(folder / "config.json"))
    mine = [
        name
        for name in model.state_dict()
        if name.startswith(_UNDERSTANDING) or any(part in name for part in _STACK)
    ]

    def rename(name: str) -> str:
        return (
            model.understanding.stock_key(name) or name
        )  # a name that nobody knows is reported as unexpected

    stored = {rename(name): info.dtype for name, info in weights.infos.items()}
    if all(model.understanding.stock_key(name) for name in weights.infos):
        require_stock_options(model, stated, folder)
    load_weights(model, weights, rename=rename, stored=stored, names=mine)
