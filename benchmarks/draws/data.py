"""Demonstrations of the embedded robot, recorded into a folder, and the demo's configuration of a run on them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vla_mot.commands.mixing import Data, open_data
from vla_mot.commands.record import RecordConfig, record
from vla_mot.commands.settings import section
from vla_mot.commands.training import build_model, prepare_weights
from vla_mot.commands.training_settings import TrainingConfig, training_config
from vla_mot.conf_dir import conf_dir
from vla_mot.model.model import VlaMotModel

_DEMO = ("experiment=conveyor", "output=unused")


@dataclass(frozen=True)
class Lesson:
    """What is learned from. folder: of the demonstrations, and of their pictures once they are decoded.

    words: of the command line, beside those of the demo.
    """

    folder: Path
    episodes: int
    words: tuple[str, ...]

    @property
    def config(self) -> TrainingConfig:
        """The configuration of a run."""
        root = self.folder / f"demonstrations-{self.episodes}"
        places = (f"data.root={root}", f"data.cache={self.folder / 'frames'}")
        return training_config(_composed("posttrain", *_DEMO, *places, *self.words))

    def prepare(self) -> str:
        """Record the demonstrations and decode their pictures, unless that was done; says what there is."""
        root = self.config.data.root
        assert root is not None
        if not root.exists():
            asked = (f"output={root}", f"episodes={self.episodes}")
            record(section(RecordConfig, "", _composed("record", *asked)))
        return next(iter(self.open().describe(self.config)))

    def open(self, ranks: int = 1) -> Data:
        """The data of a run of so many ranks."""
        return open_data(self.config, ranks=ranks)

    def model(self, data: Data) -> VlaMotModel:
        """A model with new weights, of the seed that `words` say."""
        model = build_model(self.config)
        prepare_weights(model, data, self.config.start)
        return model


def demo_model() -> VlaMotModel:
    """The demo's model with random weights; it has seen no data."""
    return build_model(training_config(_composed("posttrain", *_DEMO, "data.root=unused")))


def _composed(name: str, *words: str) -> dict[str, Any]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return cast(dict[str, Any], OmegaConf.to_container(compose(name, list(words)), resolve=True))
