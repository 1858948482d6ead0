"""Any picture autoencoder of the diffusers package as a foresight tokenizer; a video one sees a single frame.

What comes out is the mode of a latent distribution, never a sample of it. The latents' channels and size are found
by running the autoencoder on the meta device, so they are exact for every class and cost no arithmetic.

Legend: `N` pictures, `C` latent channels, `H`/`W` pixels, `h`/`w` latent rows and columns.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models import autoencoders
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from vla_mot.errors import ConfigError, unknown_name
from vla_mot.foresight.frozen import Dtype, FrozenAutoencoder
from vla_mot.options import section


@dataclass(frozen=True)
class DiffusersConfig:
    """autoencoder: a class of diffusers, e.g. AutoencoderTiny. config: what its folder's `config.json` says, so that
    a checkpoint is rebuilt without that folder; what it leaves out takes the class's default.

    image_size: (height, width) in pixels. latent_scale, latent_shift: latents = (encoded − shift) · scale; null
    takes the config's `scaling_factor` and `shift_factor`, or 1 and 0 where the class has none. dtype: of the weights.
    """

    autoencoder: str
    config: Mapping[str, Any]
    image_size: tuple[int, int]
    latent_scale: float | None = None
    latent_shift: float | None = None
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise ConfigError(f"foresight.image_size must be positive, got {list(self.image_size)}.")
        if self.latent_scale == 0:
            raise ConfigError("foresight.latent_scale must not be 0: nothing could be decoded.")


def build(options: Mapping[str, Any]) -> "DiffusersTokenizer":
    """Build from options such as those of `conf/foresight/diffusers_tiny.yaml`.

    Raises ConfigError for an option or a class that is unknown, and for an autoencoder that does not take pictures
    of this size and give them back.
    """
    return DiffusersTokenizer(section(DiffusersConfig, "foresight", options))


class DiffusersTokenizer(FrozenAutoencoder):
    """See the module's docstring. `latent_channels`, `compression` and `latent_scale` say what the latents are."""

    def __init__(self, config: DiffusersConfig) -> None:
        kind = _class_named(config.autoencoder)
        given = _arguments(kind, config.config)
        shape = _latent_shape(kind, given, config.image_size)
        autoencoder = _construct(kind, given)
        _check_derived(autoencoder, config.config)
        scale, shift = (_factor(autoencoder, name) for name in ("scaling_factor", "shift_factor"))
        super().__init__(
            autoencoder,
            config.dtype,
            scale=(1.0 if scale is None else scale) if config.latent_scale is None else config.latent_scale,
            shift=(shift or 0.0) if config.latent_shift is None else config.latent_shift,
        )
        self.config = config
        self.image_size = config.image_size
        self.one_frame = _is_video(autoencoder)
        self.latent_channels, self.compression = shape

    def reset_buffers(self, device: torch.device | str) -> None:
        for module in self.autoencoder.modules():
            for name in module._non_persistent_buffers_set:
                module._buffers[name] = cast(Tensor, module._buffers[name]).to(device)

    def raw_encode(self, pictures: Tensor) -> Tensor:
        return _encode(self.autoencoder, pictures, self.one_frame)

    def raw_decode(self, latents: Tensor) -> Tensor:
        return _decode(self.autoencoder, latents, self.one_frame)


def _encode(autoencoder: Any, pictures: Tensor, one_frame: bool) -> Tensor:
    output = autoencoder.encode(pictures.unsqueeze(2) if one_frame else pictures)
    if hasattr(output, "latent_dist"):
        latents = output.latent_dist.mode()
    else:
        latents = output.latents if hasattr(output, "latents") else output.latent
    return latents.squeeze(2) if one_frame else latents


def _decode(autoencoder: Any, latents: Tensor, one_frame: bool) -> Tensor:
    pictures = autoencoder.decode(latents.unsqueeze(2) if one_frame else latents).sample
    return pictures.squeeze(2) if one_frame else pictures


def _class_named(name: str) -> type:
    found = {
        key: value
        for key, value in vars(autoencoders).items()
        if isinstance(value, type)
        and issubclass(value, ModelMixin)
        and issubclass(value, ConfigMixin)
        and all(hasattr(value, method) for method in ("encode", "decode"))
    }
    if name not in found:
        raise ConfigError(unknown_name("diffusers autoencoder (foresight.autoencoder)", name, found))
    return found[name]


def _arguments(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a `config.json` the class's constructor takes."""
    named = config.get("_class_name", kind.__name__)
    if named != kind.__name__:
        raise ConfigError(f"foresight.config is of a {named}, but foresight.autoencoder is {kind.__name__}.")
    known = inspect.signature(kind).parameters
    return {key: value for key, value in config.items() if key in known}


def _build(kind: type, given: Mapping[str, Any]) -> nn.Module:
    try:
        return kind(**given)
    except Exception as error:  # every class checks its arguments in its own way, or not at all
        raise ConfigError(
            f"foresight.config does not build a {kind.__name__}: {type(error).__name__}: {error}"
        ) from error


def _construct(kind: type, given: Mapping[str, Any]) -> nn.Module:
    """Build it on the default device, but nothing on the meta device that no checkpoint would bring.

    Where a model is built on the meta device to be loaded afterwards, some classes would leave constants there: the
    wavelets of AutoencoderKLCosmos are a buffer that is not saved.
    """
    device = torch.get_default_device()
    with torch.device("cpu"):
        autoencoder = _build(kind, given)
    for module in autoencoder.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(weight.to(device), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and (
                device.type != "meta" or name not in module._non_persistent_buffers_set
            ):
                module._buffers[name] = buffer.to(device)
    return autoencoder


def _check_derived(autoencoder: Any, config: Mapping[str, Any]) -> None:
    """Raise ConfigError for a key that the class neither takes nor writes, or writes with another value."""
    written = {key: value for key, value in autoencoder.config.items() if not key.startswith("_")}
    for key, value in config.items():
        if key.startswith("_"):
            continue  # diffusers' own notes: the class, the version, where it came from
        if key not in written:
            raise ConfigError(
                unknown_name("key", f"foresight.config.{key}", [f"foresight.config.{k}" for k in written])
            )
        if plain(value) != plain(written[key]):
            raise ConfigError(
                f"foresight.config.{key} is {value!r}, but {type(autoencoder).__name__} makes it {written[key]!r}; "
                "leave it out or give that value."
            )


def plain(value: Any) -> Any:
    """A configuration's value as JSON holds it: tuples become lists."""
    return json.loads(json.dumps(value, default=str))


def _factor(autoencoder: Any, name: str) -> float | None:
    value = autoencoder.config.get(name)
    return None if value is None else float(value)


def _is_video(autoencoder: nn.Module) -> bool:
    encoder = getattr(autoencoder, "encoder", autoencoder)
    return any(isinstance(module, nn.Conv3d) for module in encoder.modules())


@torch.no_grad()
def _latent_shape(kind: type, given: Mapping[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """(C, compression) of latents, after checking that pictures come back in the size that they had."""
    picture = torch.empty(1, 3, *image_size, device="meta")
    with torch.device("meta"):
        probe = nn.Module.to(_build(kind, given).eval(), "meta")  # some buffers copy constants of the CPU
    try:
        with torch.device("meta"):
            latents = _encode(probe, picture, _is_video(probe))
            back = _decode(probe, latents, _is_video(probe))
    except Exception as error:  # whatever a class raises about inputs that it was not made for
        raise ConfigError(
            f"{kind.__name__} with this foresight.config does not encode and decode pictures "
            f"{tuple(picture.shape)}: {type(error).__name__}: {error}"
        ) from error
    if latents.ndim != 4 or back.shape != picture.shape:
        raise ConfigError(
            f"{kind.__name__} turns pictures {tuple(picture.shape)} into latents {tuple(latents.shape)} and pictures "
            f"{tuple(back.shape)}; expected latents (N, C, h, w) and pictures of the same shape. "
            "Choose another foresight.image_size or foresight.config."
        )
    steps = {side / size for side, size in zip(image_size, latents.shape[2:], strict=True)}
    step = steps.pop()
    if steps or step != int(step):
        raise ConfigError(
            f"{kind.__name__} makes latents of {tuple(latents.shape[2:])} from {image_size}; foresight.image_size must "
            "be a whole multiple of them, the same for rows and columns."
        )
    return latents.shape[1], int(step)
