"""A run on paper: its model without memory, and a batch of the shapes that it would learn from.

No data, no weights, no network, and of the device only its name. What trains and what is recomputed is as in the run.
"""

import torch
from torch import Tensor

from vla_mot.batch import Batch, Observation
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.train.config import TrainConfig
from vla_mot.train.parallel import arrange


def planned_model(config: ModelConfig, train: TrainConfig) -> VlaMotModel:
    """The model that would be trained, on the meta device. Raises ConfigError when nothing of it would train."""
    with torch.device("meta"):
        model = VlaMotModel(config)
    return arranged(model, train)


def arranged(model: VlaMotModel, train: TrainConfig) -> VlaMotModel:
    """A model of which as much trains, and is recomputed, as `train` says; in place."""
    arrange(model, train)
    return model.train()


def stand_in(
    model: VlaMotModel, size: int, device: torch.device | str, latents: torch.dtype | None = None
) -> Batch:
    """A batch of `size` samples with all cameras, the longest instruction and every label; its numbers mean nothing.

    latents: of which dtype frames were encoded before; None: the model encodes them.
    Raises ConfigError for latents of a model that encodes nothing.
    """
    config, grid = model.config, tuple[int, ...]()
    views, pixels = config.num_views, (3, *config.view_size)
    if latents is not None:
        tokenizer = model.required_tokenizer()
        grid = (tokenizer.latent_channels, *tokenizer.latent_size)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, *shape, dtype=dtype, device=device)

    text = model.understanding.config.text_length
    observation = Observation(
        images=empty(views, 2, *pixels, dtype=torch.uint8),
        view_mask=empty(views, dtype=torch.bool),
        state=empty(config.max_state_dim),
        token_ids=empty(text, dtype=torch.int64),
        token_mask=empty(text, dtype=torch.bool),
        latents=None if latents is None else empty(views, 2, *grid, dtype=latents),
    )
    return Batch(
        observation=observation,
        future=empty(views, *pixels, dtype=torch.uint8),
        future_mask=empty(views, dtype=torch.bool),
        actions=empty(config.chunk_size, config.max_action_dim),
        action_mask=empty(config.chunk_size, config.max_action_dim, dtype=torch.bool),
        index=empty(dtype=torch.int64),
        origin=empty(3, dtype=torch.int64),
        future_latents=None if latents is None else empty(views, *grid, dtype=latents),
    )
