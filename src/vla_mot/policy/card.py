"""The model card of what LeRobot pushes: that of `vla-mot push`, filled from LeRobot's configuration.

LeRobot's own is sent to the public Hub for inspection, whichever Hub it is for; ours needs nobody else's word.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from vla_mot.hub.card import OWN_TERMS, Figure, is_repository, model_card, require_license
from vla_mot.hub.publish import card_facts
from vla_mot.hub.spec import PolicySpec

_UNSTATED = {"license": OWN_TERMS, "license_name": "not stated"}
_ADAPTER = (
    "This repository holds an adapter, not the whole policy: LeRobot's commands put it onto the policy it was "
    "trained on (`--policy.path`), and docs/lerobot.md says how to merge the two."
)


def trained_card(
    spec: PolicySpec, repo_id: str, dataset: str, license: str | None, tags: list[str] | None, config: Any
) -> ModelCard:
    """What a policy says about itself, and LeRobot's configuration about its training.

    config: LeRobot's `TrainPipelineConfig`, or None. Raises ConfigError for a licence that is none.
    """
    told: dict[str, Any] = dict(stated_license(license))
    told["dataset"] = dataset
    if config is not None:
        told["training"] = _training(config)
        if config.dataset.root is None and is_repository(dataset):  # so it came from the Hub
            told["datasets"] = (dataset,)
        if config.peft is not None:
            told["notes"] = _ADAPTER
    return ModelCard(model_card(card_facts(spec, repo_id, tags=("lerobot", *(tags or ())), **told)))


def stated_license(license: str | None) -> dict[str, str]:
    """What a card says about `--policy.license`. Its terms can be named nowhere, so `other` is not stated.

    Capitals are lowered, since the Hub's identifiers have none. Raises ConfigError for a licence that is none.
    """
    name = (license or OWN_TERMS).lower()
    require_license(name, "--policy.license")
    return dict(_UNSTATED) if name == OWN_TERMS else {"license": name}


def _training(config: Any) -> dict[str, Figure]:
    listed: dict[str, Figure] = {"steps": config.steps, "batch size of a process": config.batch_size}
    if start := config.policy.pretrained_path:
        name = Path(str(start))
        on_hub = not name.is_absolute() and len(name.parts) == 2 and not name.exists()
        listed["policy started from"] = str(start) if on_hub else name.name
    return listed
