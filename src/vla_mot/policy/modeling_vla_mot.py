"""`VlaMotPolicy`: `vla_mot.Policy` behind LeRobot's interface, for its training, evaluation and rollout commands.

A saved policy is a native checkpoint (`vla_mot.hub.native`), so `vla_mot.Policy` and LeRobot open the same folder.

Legend: `B` batch, `K` noise draws, `L` chunk steps, `A` padded action dims, `D` real action dims.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
import torch.distributed as dist
from huggingface_hub import HfApi, ModelCard
from lerobot.configs import PreTrainedConfig
from lerobot.policies import PreTrainedPolicy
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.errors import ConfigError, unknown_name
from vla_mot.flow.solvers import Solver
from vla_mot.groups import keep_to_the_end
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.hub.manifest import write_manifest
from vla_mot.hub.native import save_policy
from vla_mot.hub.remote import OWN_FILES
from vla_mot.hub.spec import PolicySpec, SamplerConfig, WeightsDtype
from vla_mot.hub.tokenizer_files import portable
from vla_mot.hub.upload import push
from vla_mot.infer.chunks import Bend
from vla_mot.infer.golden import record_golden
from vla_mot.infer.policy import Policy
from vla_mot.infer.rtc import continue_chunk
from vla_mot.infer.session import Session
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.model.objective import FIXED_STEP, draw_noise, joint, objective
from vla_mot.options import fit
from vla_mot.policy.card import trained_card
from vla_mot.policy.configuration_released import ReleasedConfig
from vla_mot.policy.configuration_vla_mot import VlaMotConfig
from vla_mot.policy.features import dataset_embodiment, dataset_statistics
from vla_mot.policy.inputs import instructions, pictures, state_now, training_batch
from vla_mot.policy.real_time import real_left_over, rtc_options
from vla_mot.robots.actions import ABSOLUTE
from vla_mot.robots.catalog import find_embodiment, known_embodiments
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.robot import Robot

log = logging.getLogger(__name__)

_PREFIX = "model."
# A regular expression of whole names, as peft reads a text.
_ADAPTED = r"model\.(stack\.layers\.\d+\.experts\.\w+\.\w+\.\w+_proj|action\.(\w+_proj|time_mlp_\w+))"


class VlaMotPolicy(PreTrainedPolicy):
    """A vla_mot model that LeRobot trains and runs.

    config: see `VlaMotConfig`; what it leaves open is completed in place.
    dataset_stats, dataset_meta: LeRobot's; they define embodiment and statistics of a policy made from scratch.
    spec, model: those of a checkpoint, instead of the dataset's and of random weights.

    Raises ConfigError when there is neither a spec nor a dataset, or when they do not fit the configuration.
    """

    config_class: Any = VlaMotConfig
    name: Any = "vla_mot"

    def __init__(
        self,
        config: VlaMotConfig,
        *,
        dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
        dataset_meta: Any = None,
        spec: PolicySpec | None = None,
        model: VlaMotModel | None = None,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        self._whitened = spec is not None
        self.spec = spec or _spec_from_dataset(config, dataset_stats, dataset_meta)
        self.model = VlaMotModel(self.spec.model) if model is None else model
        self.model.stack.recompute = "full" if config.gradient_checkpointing else "none"
        robot = self.spec.robot(config.embodiment, config.action_mode)
        self._policy = Policy(self.model, self.spec, robot)
        described = self.spec.config_dict()
        # What LeRobot writes down of it must open elsewhere, too.
        config.model, config.embodiments = portable(described["model"]), described["embodiments"]
        config.embodiment, config.action_mode = robot.embodiment.name, robot.action_mode
        config.dtype = self.spec.dtype
        self._session: Session | None = None
        self._robots = 0
        self._next_seed = config.sampling_seed
        self.clock: Callable[[], float] = time.monotonic  # seconds
        self._called: float | None = None
        self.init_rtc_processor()

    # ---- checkpoints ----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: VlaMotConfig | ReleasedConfig | None = None,
        dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
        dataset_meta: Any = None,
        strict: bool = True,
        architecture: Mapping[str, Any] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        resume_download: bool | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> Self:
        """Open a checkpoint folder or Hub repository, all of it or nothing, in evaluation mode.

        The layout is ours or that of the released policies; either way `config` of the result is a `VlaMotConfig`.

        config: overrides what may differ (sampler, optimizer, device, dtype); the checkpoint's own by default.
        dataset_stats, dataset_meta: accepted, since LeRobot passes them. The checkpoint's statistics stay: its
            weights were trained with them.
        architecture: see `vla_mot.hub.released.read_released`; a `ReleasedConfig` names a file instead.
        revision, token, cache_dir, local_files_only: see `vla_mot.hub.remote.fetch`.
        force_download, resume_download, proxies: LeRobot's signature has them. A finished file is never fetched twice
            and an unfinished one always goes on; proxies come from HTTPS_PROXY. Asking for something else is refused.

        Raises CheckpointError when anything is missing, unexpected, damaged or of another shape, and ConfigError
        when `config` asks for another architecture, embodiment or action mode, or an option cannot be followed.
        """
        if not strict:
            raise ConfigError("vla_mot checkpoints are loaded completely or not at all; leave strict=True.")
        if force_download or resume_download is False or proxies:
            raise ConfigError(
                "force_download, resume_download=False and proxies are not followed: delete the repository from the "
                "Hub cache (`hf cache`) to fetch it anew, and name a proxy in HTTPS_PROXY."
            )
        options = {"architecture": architecture, "action_mode": config.action_mode if config else None}
        found = open_checkpoint(
            pretrained_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            **(config.open_options() if isinstance(config, ReleasedConfig) else options),
        )
        if config is None:
            config = PreTrainedConfig.from_pretrained(found.folder)
        if isinstance(config, ReleasedConfig):
            config = config.opened(found)
        assert isinstance(config, VlaMotConfig), type(config)
        robot = found.spec.robot(config.embodiment, config.action_mode)
        if not config.input_features:  # of several robots the folder states none
            mine = VlaMotConfig.of(found.spec, robot)
            config.input_features, config.output_features = mine.input_features, mine.output_features
        _require_same(config, found.spec, robot, found.folder)
        if dataset_stats is not None:
            log.info("statistics are those of the checkpoint %s, not the dataset's", found.folder)
        _compare_with_dataset(robot.embodiment, dataset_meta)
        sampler = SamplerConfig(
            config.num_steps, config.n_action_steps, fit(Solver, "--policy.solver", config.solver)
        )
        spec = replace(found.spec, sampler=sampler, dtype=fit(WeightsDtype, "--policy.dtype", config.dtype))
        model = found.load(device=config.device or "cpu", dtype=_cast(found.spec, spec))
        return cls(config, spec=spec, model=model).to(config.device).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write a native checkpoint whose `config.json` also holds LeRobot's own settings.

        state_dict: this policy's, gathered by LeRobot when the parameters are sharded.
        """
        weights = self.state_dict() if state_dict is None else state_dict
        own = {name.removeprefix(_PREFIX): value for name, value in weights.items()}
        # Gathered weights are not those of this process, which then cannot answer for them.
        golden = record_golden(self._policy) if state_dict is None else None
        save_policy(save_directory, self.spec, own, golden=golden)
        self.config._save_pretrained(save_directory)
        write_manifest(save_directory, OWN_FILES)  # again, since LeRobot wrote its config.json over ours

    def push_model_to_hub(
        self,
        cfg: Any,
        peft_model: Any = None,
        state_dict: Mapping[str, Tensor] | None = None,
        dataset_meta: Any = None,
    ) -> None:
        """Upload the policy, LeRobot's configuration and the model card in one commit; LeRobot calls it after training.

        Every file of the checkpoint goes, as with `vla-mot push`: LeRobot's own leaves out what a tokenizer may need
        (merges.txt, tokenizer.model). An adapter has no such files, and is uploaded by it.

        cfg: LeRobot's `TrainPipelineConfig`. state_dict: see `_save_pretrained`.
        Raises CheckpointError when the Hub does not take it.
        """
        if peft_model is not None:
            super().push_model_to_hub(cfg, peft_model, state_dict, dataset_meta)
            return
        private = self.config.private
        # A name without an organization is the account's own, which only the Hub can complete.
        repository = HfApi().create_repo(self.config.repo_id, private=private, exist_ok=True)
        card = trained_card(
            self.spec, repository.repo_id, cfg.dataset.repo_id, self.config.license, self.config.tags, cfg
        )
        with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            folder = Path(scratch) / "policy"
            self.save_pretrained(folder, state_dict=state_dict)
            cfg.save_pretrained(folder)
            push(folder, repository.repo_id, card=str(card), private=private)
        log.info("Model pushed to %s", repository.url)  # a remote run ends by these words: lerobot.jobs.hf

    def generate_model_card(
        self,
        dataset_repo_id: str,
        model_type: str,
        license: str | None,
        tags: list[str] | None,
        cfg: Any = None,
        dataset_meta: Any = None,
    ) -> ModelCard:
        """The README.md of an adapter that `push_to_hub` uploads; LeRobot asks."""
        return trained_card(self.spec, self.config.repo_id, dataset_repo_id, license, tags, cfg)

    # ---- training -------------------------------------------------------------------------------------------

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Matrices decay, vectors (norms, biases) do not."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.dim() > 1]},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """What `--peft.*` adapts unless it says otherwise: every linear layer of the experts, and the action heads'."""
        return {"target_modules": _ADAPTED, "modules_to_save": []}

    def forward(self, batch: Mapping[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """The loss L_act + λ·L_gen of LeRobot's windows, over real places only, and its two terms.

        batch: frames t − m, t, t + m and an action chunk, see `policy.inputs`. reduction: `mean` over the real
        places of the global batch (see `model.objective`), or `none` for `(B,)` losses of each sample.
        In training, noise comes from torch's generator, which LeRobot saves and restores; in evaluation it is
        keyed by the dataset's index, so that losses can be compared between steps.
        """
        if reduction not in ("mean", "none"):
            raise ConfigError(f"reduction must be 'mean' or 'none', got {reduction!r}.")
        prepared = training_batch(batch, self._policy.processor)
        keep_to_the_end()  # LeRobot lets go of it together with this policy
        self._whiten(prepared)
        noise, level = self._draw_noise(prepared)
        losses = self.model.losses(prepared, noise, level)
        goal = objective(losses, self.config.foresight_weight)
        terms = {"action_loss": goal.action.item()}
        if goal.foresight_count:  # else nothing was to be foreseen, which is no loss of zero
            terms["foresight_loss"] = goal.foresight.item()
        if reduction == "mean":
            return goal.total, terms
        action = losses.action_sum / losses.action_count.clamp(min=1)
        foresight = losses.foresight_sum / losses.foresight_count.clamp(min=1)
        return joint(action, foresight, self.config.foresight_weight), terms

    def _draw_noise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Noise `(B, K, L, A)` and noise levels `(B, K)`."""
        draws, levels = self.config.action_draws, self.spec.model.noise_level
        if not self.training:
            return draw_noise(batch, draws, 0, FIXED_STEP, levels)
        device = batch.actions.device
        noise = torch.randn(batch.batch_size, draws, *batch.actions.shape[1:], device=device)
        uniform = 1 - torch.rand(batch.batch_size, draws, device=device, dtype=torch.float64)
        return noise, levels.from_uniform(uniform).float()

    def _whiten(self, batch: Batch) -> None:
        """Fit the foresight tokenizer of a policy from scratch, once, on the pictures of its first batch."""
        if self._whitened or self.model.tokenizer is None:
            return
        present = batch.observation.images[:, :, 1][batch.observation.view_mask]
        self.model.fit_tokenizer(present)
        if dist.is_available() and dist.is_initialized():  # each rank saw pictures of its own
            for fitted in self.model.tokenizer.buffers():
                dist.broadcast(fitted, src=0)
        self._whitened = True

    # ---- inference ------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the frames and actions of an episode. The next one takes fresh seeds."""
        self._session = None
        self._called = None

    def supports_rtc(self) -> bool:
        """Yes: see `predict_action_chunk`. LeRobot asks."""
        return True

    def init_rtc_processor(self) -> None:
        """Read `config.rtc_config`; LeRobot calls it after having set that. Raises ConfigError for an unfit value."""
        self._rtc = rtc_options(self.config)

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any]) -> Tensor:
        """The next action `(B, D)` of B robots, in physical units; call it at every control step.

        Frames are remembered, so that the one of m steps ago is the history (the first one until then).
        Raises ConfigError with real-time chunking, which needs to know when a chunk takes over.
        """
        if self._rtc is not None:
            raise ConfigError(
                "real-time chunking (rtc_config.enabled) works through predict_action_chunk, not select_action: use "
                "`lerobot-rollout --inference.type=rtc`, or leave rtc_config out."
            )
        images, state, tasks = self._observed(batch)
        return self._episode(len(state)).act(images, state, tasks)

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: Mapping[str, Any],
        noise: Tensor | None = None,
        *,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
        past: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """A whole chunk `(B, L, D)`, absolute in physical units; the history is the frame of m calls ago.

        noise: `(B, L, A)` to start from; by default keyed by the episode's seed and the number of the call.
        past: the observation of m control steps ago, of a caller who remembers: then that is the history.
        The others are LeRobot's for real-time chunking, and without effect unless `rtc_config` enables it.
        inference_delay: control steps until this chunk takes over. prev_chunk_left_over: `(R, D)` or `(B, R, D)`, what
            is left of the chunk that this method returned before. execution_horizon: instead of `rtc_config`'s.
        With real-time chunking, calls come when the queue runs low: then the history is the frame that was seen nearest
        to m control steps ago by the clock, if the embodiment states its rate.
        """
        images, state, tasks = self._observed(batch)
        session = self._episode(len(state))
        if past is None:
            session.remember(images, self._steps_since())
        else:
            session.remember_pair(pictures(past, self._policy.processor), images)
        bend = self._continuation(prev_chunk_left_over, inference_delay or 0, execution_horizon, state)
        return session.predict(state, tasks, noise, bend).actions

    def _continuation(
        self, left_over: Tensor | None, delay: int, horizon: int | None, state: Tensor
    ) -> Bend | None:
        """What makes the next chunk go on with what is left of the last one."""
        processor = self._policy.processor
        if self._rtc is None:
            return None
        real = real_left_over(left_over, len(state), processor.embodiment.action_dim)
        if real is None:
            return None
        options = self._rtc if horizon is None else replace(self._rtc, overlap=horizon)
        return lambda noise: continue_chunk(options, real, delay, state, noise, processor)

    def _steps_since(self) -> int:
        """Control steps since the last call: one, except with real-time chunking."""
        fps, now, before = self._policy.robot.embodiment.fps, self.clock(), self._called
        self._called = now
        if self._rtc is None or fps is None or before is None:
            return 1
        return max(1, round((now - before) * fps))

    @property
    def foresight(self) -> Tensor | None:
        """Predicted latents `(B, V, C, h, w)` of the last prediction, for `model.decode_latents`."""
        return self._session.foresight if self._session else None

    def _observed(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor, list[str]]:
        self.eval()
        processor = self._policy.processor
        state = state_now(batch, processor)
        return pictures(batch, processor), state, instructions(batch, len(state))

    def _episode(self, robots: int) -> Session:
        """The running session; a new one for `robots` robots after `reset`, with the next free seeds."""
        if self._session is None:
            self._session = Session(self._policy, range(self._next_seed, self._next_seed + robots))
            self._next_seed, self._robots = self._next_seed + robots, robots
        if robots != self._robots:
            raise ConfigError(
                f"the episode began with {self._robots} robots, this batch has {robots}; call reset() in between."
            )
        return self._session


def _spec_from_dataset(
    config: VlaMotConfig, dataset_stats: Mapping[str, Mapping[str, Any]] | None, dataset_meta: Any
) -> PolicySpec:
    if dataset_stats is None or dataset_meta is None:
        raise ConfigError(
            "a vla_mot policy from scratch needs a dataset: its statistics and its rate. Train with "
            "`lerobot-train --policy.type=vla_mot --dataset.repo_id=…`, or open a checkpoint with --policy.path."
        )
    if fit(WeightsDtype, "--policy.dtype", config.dtype) != "float32":
        raise ConfigError(
            f"--policy.dtype={config.dtype}: the weights of a new policy are float32. To train it in bfloat16 without "
            "rounding them, `vla-mot posttrain train.parallel.precision=bf16`."
        )
    embodiment = _embodiment(config, dataset_meta)
    _compare_with_dataset(embodiment, dataset_meta)
    if config.action_mode is None:
        config.action_mode = ABSOLUTE
    model = config.model_config()
    return PolicySpec(
        model=replace(model, num_views=max(model.num_views, len(embodiment.cameras))),
        robots=(Robot(embodiment, dataset_statistics(embodiment, dataset_stats, config)),),
        sampler=SamplerConfig(
            config.num_steps, config.n_action_steps, fit(Solver, "--policy.solver", config.solver)
        ),
    )


def _embodiment(config: VlaMotConfig, dataset_meta: Any) -> Embodiment:
    """The robot of a policy from scratch. Raises ConfigError for a name that nobody knows."""
    if config.embodiment is None:
        return dataset_embodiment(config, dataset_meta)
    described = {e.name: e for e in map(Embodiment.from_dict, config.embodiments)}
    found = described.get(config.embodiment) or find_embodiment(config.embodiment)
    if found is None:
        known = [*described, *(e.name for e in known_embodiments())]
        raise ConfigError(unknown_name("--policy.embodiment", config.embodiment, known))
    return found if found.fps else replace(found, fps=float(dataset_meta.fps))


def _cast(stored: PolicySpec, wanted: PolicySpec) -> torch.dtype | None:
    """The dtype that weights are cast to. Raises ConfigError for `mixed`, unless they are stored like that."""
    if wanted.dtype == stored.dtype:
        return None
    if wanted.dtype == "mixed":
        raise ConfigError(f"--policy.dtype=mixed, but the checkpoint's weights are {stored.dtype}; say that.")
    return getattr(torch, wanted.dtype)


def _require_same(config: VlaMotConfig, spec: PolicySpec, robot: Robot, folder: Path) -> None:
    """Raise ConfigError when the configuration contradicts the checkpoint that it is to run."""
    embodiments = [robot.embodiment.to_dict() for robot in spec.robots]
    wrong = [
        name
        for name, same in (
            (
                "model",
                not config.model or _written(ModelConfig.from_dict(config.model)) == _written(spec.model),
            ),
            ("chunk_size", config.chunk_size == spec.model.chunk_size),
            ("embodiments", all(given in embodiments for given in config.embodiments)),
        )
        if not same
    ]
    if wrong:
        raise ConfigError(
            f"the configuration and the checkpoint {folder} differ in {', '.join(wrong)}; what belongs to the weights "
            "cannot be overridden. Leave it out of the command line, or train from scratch with --policy.type."
        )
    width = config.action_feature.shape[0] if config.action_feature else robot.embodiment.action_dim
    if width != robot.embodiment.action_dim:
        raise ConfigError(
            f"the dataset's or environment's action has {width} dimensions, embodiment {robot.embodiment.name!r} of "
            f"the checkpoint {folder} has {robot.embodiment.action_dim}."
        )


def _written(model: ModelConfig) -> dict[str, Any]:
    return portable(model.to_dict())


def _compare_with_dataset(embodiment: Embodiment, dataset_meta: Any) -> None:
    if dataset_meta is not None and embodiment.fps not in (None, float(dataset_meta.fps)):
        log.warning(
            "the dataset runs at %s fps, embodiment %r at %s: chunks and the foresight offset count frames",
            dataset_meta.fps,
            embodiment.name,
            embodiment.fps,
        )
