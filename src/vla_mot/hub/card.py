"""The README.md of a checkpoint: metadata that the Hub reads, and what the run says about itself.

Nothing is guessed: what is not given is left out, and the weights' licence has no default, because it follows from the
data and the base model and may differ from this code's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from huggingface_hub import ModelCard, ModelCardData

from vla_mot.errors import ConfigError
from vla_mot.version import __version__

LIBRARY, PIPELINE = "vla_mot", "robotics"
TAGS = ("vision-language-action", "mixture-of-transformers", "visual-foresight", "robotics")
OWN_TERMS = "other"
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
Figure = str | int | float


@dataclass(frozen=True)
class RobotFacts:
    """One embodiment that a policy was made for.

    fps: control steps per second; None: those of its dataset. cameras: the image features, in slot order.
    state, action: dimensions, with units where known. action_mode: delta or abs, see `vla_mot.robots`.
    """

    name: str
    fps: float | None
    cameras: tuple[str, ...]
    state: str
    action: str
    action_mode: str


@dataclass(frozen=True)
class Success:
    """Closed-loop episodes. rate, low, high: shares in [0, 1], the latter two of a 95 % interval."""

    task: str
    rate: float
    episodes: int
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name, share in (("rate", self.rate), ("low", self.low), ("high", self.high)):
            if share is not None and not 0 <= share <= 1:
                raise ConfigError(f"success on {self.task!r}: expected {name} in 0 … 1, got {share!r}.")


@dataclass(frozen=True)
class CardFacts:
    """What a model card is filled from.

    license: the weights' licence as the Hub spells it (`apache-2.0`, `cc-by-nc-sa-4.0`, …), or `other` together with
    `license_name` (and `license_link`). title: the page's heading. repo_id: what the example opens.
    robots: at least one. chunk_size, n_action_steps: control steps predicted and executed. num_steps: of the sampler.
    foresight: in words, e.g. `6 frames = 0.6 s ahead, tokenizer dct`. architecture: name → text, e.g. the backbone.
    dataset: in words. datasets, base_model: ids of Hub repositories, for the metadata. training: name → figure, e.g.
    steps. validation: loss → its last value. success: of simulators or robots. versions: library → version;
    vla_mot's own is added. commit: the code's. tags: beside the library's own. notes: a paragraph for limitations.
    """

    license: str
    title: str
    repo_id: str
    robots: tuple[RobotFacts, ...]
    chunk_size: int
    n_action_steps: int
    num_steps: int
    license_name: str | None = None
    license_link: str | None = None
    foresight: str | None = None
    architecture: Mapping[str, Figure] = field(default_factory=dict)
    dataset: str | None = None
    datasets: tuple[str, ...] = ()
    base_model: tuple[str, ...] = ()
    training: Mapping[str, Figure] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)
    success: tuple[Success, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None

    def __post_init__(self) -> None:
        require_license(self.license)
        if (self.license == OWN_TERMS) != (self.license_name is not None):
            raise ConfigError(
                f"license_name goes with license={OWN_TERMS}, and only with it; got license={self.license!r}, "
                f"license_name={self.license_name!r}."
            )
        for key, names in (("datasets", self.datasets), ("base_model", self.base_model)):
            if wrong := [name for name in names if not is_repository(name)]:
                raise ConfigError(
                    f"{key}: expected ids of Hub repositories (org/name), got {wrong[0]!r}; what lies on your own "
                    "disk is described in words, in `dataset` or `training`."
                )
        if not self.robots:
            raise ConfigError("robots: expected at least one embodiment, got none.")


def require_license(license: str, option: str = "license") -> None:
    """Raise ConfigError unless a licence is spelled as the Hub does. option: where it was given, for the message."""
    if not _LICENSE.fullmatch(license):
        near = re.sub(r"[^a-z0-9.+-]+", "-", license.lower()).strip("-")
        raise ConfigError(
            f"{option}: expected an identifier as the Hub writes it (lower case, such as apache-2.0 or "
            f"cc-by-nc-sa-4.0; {OWN_TERMS} for terms of your own), got {license!r}."
            + (f" Did you mean {near!r}?" if near else "")
        )


def is_repository(name: str) -> bool:
    """Whether a name has the form of a Hub repository's, `org/name`."""
    return _REPOSITORY.fullmatch(name) is not None


def lasting(count: int, what: str, fps: float | None) -> str:
    """A duration in frames or steps and, where the rate is known, in seconds: `6 frames = 0.6 s`."""
    return f"{count} {what}" + (f" = {count / fps:g} s" if fps else "")


def model_card(facts: CardFacts) -> str:
    """Return the text of a README.md: a YAML block, then Markdown."""
    metadata = ModelCardData(
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        library_name=LIBRARY,
        pipeline_tag=PIPELINE,
        tags=[*TAGS, *(robot.name for robot in facts.robots), *facts.tags],
        datasets=list(facts.datasets) or None,
        base_model=list(facts.base_model) or None,
    )
    parts = (_head(facts), _example(facts), _robots(facts), _training(facts), _results(facts), _end(facts))
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"))


def _head(facts: CardFacts) -> str:
    return (
        f"# {facts.title}\n\n"
        "A vision-language-action policy for vla_mot, whose experts share one attention stack (a Mixture of "
        "Transformers)."
    )


def _example(facts: CardFacts) -> str:
    first, *others = facts.robots
    which = f', embodiment="{first.name}"' if others else ""
    if any(robot.name == first.name for robot in others):
        which += f', action_mode="{first.action_mode}"'
    return f"""## Use

```python
from vla_mot import Policy
from vla_mot.infer.session import Session

policy = Policy.from_pretrained("{facts.repo_id}"{which})
robot = Session(policy, seeds=[0])
action = robot.act(images, state, instruction)  # once per control step
```

`images` maps the cameras below to `(3, h, w)` uint8 tensors; `state` and `action` are in the robot's own units."""


def _robots(facts: CardFacts) -> str:
    rows = [
        (
            robot.name,
            f"{robot.fps:g} Hz" if robot.fps else "its dataset's",
            ", ".join(f"`{camera}`" for camera in robot.cameras),
            robot.state,
            robot.action,
            robot.action_mode,
        )
        for robot in facts.robots
    ]
    rates = {robot.fps for robot in facts.robots}
    rate = rates.pop() if len(rates) == 1 else None
    acts = {
        "chunk": f"{lasting(facts.chunk_size, 'actions', rate)} predicted, {facts.n_action_steps} executed",
        "sampler": f"{facts.num_steps} denoising steps",
        "foresight": facts.foresight,
    }
    robots = _table(("embodiment", "control", "cameras", "state", "action", "action mode"), rows)
    return f"## Robots\n\n{robots}\n\n{_listing(acts | dict(facts.architecture))}"


def _training(facts: CardFacts) -> str:
    data = facts.dataset or ", ".join(_link(name, "datasets/") for name in facts.datasets)
    base = ", ".join(_link(name) for name in facts.base_model)
    listing = _listing({"dataset": data, "started from": base} | dict(facts.training))
    return f"## Training\n\n{listing}" if listing else ""


def _results(facts: CardFacts) -> str:
    losses = _table(("validation loss", "last value"), [(n, f"{v:.4g}") for n, v in facts.validation.items()])
    success = _table(
        ("closed loop", "success", "95 % interval", "episodes"),
        [(s.task, _percent(s.rate), _interval(s), f"{s.episodes:,}") for s in facts.success],
    )
    tables = [table for table, rows in ((losses, facts.validation), (success, facts.success)) if rows]
    return "## Results\n\n" + "\n\n".join(tables) if tables else ""


def _end(facts: CardFacts) -> str:
    terms = facts.license if facts.license_name is None else facts.license_name
    terms = f"[{terms}]({facts.license_link})" if facts.license_link else terms
    versions = (
        {"vla_mot": __version__} | dict(facts.versions) | ({"commit": facts.commit} if facts.commit else {})
    )
    parts = [
        f"## Limitations\n\n{facts.notes}" if facts.notes else "",
        f"## Versions\n\n{_listing(versions)}",
        f"## Licence\n\nThese weights: {terms}. The code of vla_mot: apache-2.0.",
    ]
    return "\n\n".join(filter(None, parts))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _listing(entries: Mapping[str, Figure | None]) -> str:
    """A bulleted list of what is known: None and empty texts are left out, zeros are not."""
    return "\n".join(
        f"- {name}: {_figure(value)}" for name, value in entries.items() if value not in (None, "")
    )


def _figure(value: Figure | None) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _interval(success: Success) -> str:
    if success.low is None or success.high is None:
        return "not given"
    return f"{100 * success.low:.0f} … {_percent(success.high)}"


def _link(name: str, kind: str = "") -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})"
