"""The loss on LeRobot's windows, through LeRobot's own dataset reader."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.policies.factory import make_policy
from torch.utils.data import default_collate

from tests.model.tiny import tiny_config
from tests.policy.conftest import CHUNK, GRIPPER, HEAD, REPO_ID
from vla_mot import groups
from vla_mot.data.frame_cache import FrameCache
from vla_mot.data.source import Source
from vla_mot.data.windows import Collate, WindowConfig, WindowDataset
from vla_mot.errors import ConfigError
from vla_mot.policy import VlaMotConfig, VlaMotPolicy
from vla_mot.policy.features import dataset_embodiment, dataset_statistics
from vla_mot.policy.inputs import training_batch
from vla_mot.robots.robot import Robot

ROWS = [0, 4, 7, 8, 15, 23]  # both ends of episodes and their middles


@pytest.fixture(scope="module")
def meta(dataset) -> LeRobotDatasetMetadata:
    return LeRobotDatasetMetadata(REPO_ID, root=dataset)


@pytest.fixture
def scratch(meta) -> VlaMotPolicy:
    torch.manual_seed(0)
    return make_policy(scratch_config(), ds_meta=meta)


def scratch_config(**changes) -> VlaMotConfig:
    return VlaMotConfig(device="cpu", chunk_size=CHUNK, n_action_steps=CHUNK, model=options(), **changes)


def options() -> dict:
    model = tiny_config().to_dict()
    return {key: model[key] for key in ("backbone", "foresight", "generation", "action")} | {
        "view_size": [32, 32],
        "offset_frames": 3,
        "foresight_stride": 2,
    }


def windows(config, meta, rows=ROWS) -> dict:
    """What `lerobot-train` hands to `forward`."""
    read = LeRobotDataset(
        meta.repo_id,
        root=meta.root,
        delta_timestamps=resolve_delta_timestamps(config, meta),
        return_uint8=True,
    )
    batch = default_collate([read[row] for row in rows])
    return {key: value.float() / 255 if key in (HEAD, GRIPPER) else value for key, value in batch.items()}


def test_windows_equal_our_own_reader_bit_by_bit(native, meta, dataset, tmp_path):
    policy = VlaMotPolicy.from_pretrained(native)
    processor = policy._policy.processor
    theirs = training_batch(windows(policy.config, meta), processor)
    source = Source.open(dataset, policy.spec.robot().embodiment)
    cache = FrameCache.open(source, (32, 32), tmp_path)
    ours = Collate(processor)(
        WindowDataset(source, cache, WindowConfig(CHUNK, 3, (32, 32))).__getitems__(ROWS)
    )
    for name in ("images", "view_mask", "state", "token_mask"):
        assert torch.equal(getattr(theirs.observation, name), getattr(ours.observation, name)), name
    for name in ("future", "future_mask", "actions", "action_mask", "index"):
        assert torch.equal(getattr(theirs, name), getattr(ours, name)), name


def test_a_policy_from_a_dataset_takes_its_layout_and_statistics(scratch, meta):
    robot = scratch.spec.robot()
    body, numbers = robot.embodiment, robot.statistics.action
    assert (body.name, body.fps, robot.action_mode) == ("conveyor", 10.0, "abs")
    assert body.cameras == (HEAD, GRIPPER)
    assert [field.names for field in body.action] == [("x", "y", "w")]
    assert {unit for field in body.action for unit in field.units} == {"unknown"}
    torch.testing.assert_close(numbers.mean, torch.tensor(meta.stats["action"]["mean"]).float())
    assert numbers.count == 24
    assert numbers.quantiles["q50"].tolist() == pytest.approx(meta.stats["action"]["q50"].tolist())


def test_cameras_are_read_in_the_order_of_what_they_see(meta):
    turned = SimpleNamespace(features=dict(reversed(meta.features.items())), fps=10, robot_type="ARX Lift-2")
    inputs = {HEAD, GRIPPER, "observation.state"}
    config = SimpleNamespace(input_features=inputs, image_features=(GRIPPER, HEAD))
    body = dataset_embodiment(config, turned)
    assert (body.name, body.cameras) == ("arx_lift_2", (HEAD, GRIPPER))
    config.image_features = (GRIPPER,)
    assert dataset_embodiment(config, turned).cameras == (GRIPPER,)


def test_a_dataset_without_a_state_is_refused(meta):
    config = SimpleNamespace(input_features={HEAD: None}, image_features=(HEAD,))
    with pytest.raises(ConfigError, match=f"needs a feature 'observation.state'; the dataset has {HEAD}"):
        dataset_embodiment(config, meta)


def test_statistics_that_a_dataset_lacks_are_named(meta):
    config = scratch_config(action_mode="abs")
    body = dataset_embodiment(SimpleNamespace(input_features=meta.features, image_features=(HEAD,)), meta)
    numbers = {key: meta.stats[key] for key in meta.stats if key != "action"}
    with pytest.raises(ConfigError, match="the dataset has no statistics of action; it has"):
        dataset_statistics(body, numbers, config)


def test_more_cameras_than_slots_widen_the_model(meta):
    config = scratch_config()
    config.model = config.model | {"num_views": 1}
    assert make_policy(config, ds_meta=meta).spec.model.num_views == 2


def test_delta_statistics_are_not_invented(meta):
    with pytest.raises(ConfigError, match=r"statistics of absolute actions only.*posttrain"):
        make_policy(scratch_config(action_mode="delta"), ds_meta=meta)


@pytest.mark.parametrize(
    ("dtype", "message"), [("bfloat16", "weights of a new policy are float32"), ("float8", "--policy.dtype")]
)
def test_a_new_policy_has_float32_weights(meta, dtype, message):
    with pytest.raises(ConfigError, match=message):
        make_policy(scratch_config(dtype=dtype), ds_meta=meta)


def test_one_batch_is_overfitted(scratch, meta):
    batch = windows(scratch.config, meta)
    optimizer = torch.optim.AdamW(scratch.get_optim_params(), lr=3e-3, weight_decay=0.0)
    scratch.eval()
    scratch._whiten(training_batch(batch, scratch._policy.processor))
    with torch.no_grad():
        before = scratch.forward(batch)[1]
    scratch.train()
    for _ in range(60):
        loss, _ = scratch.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scratch.eval()
    with torch.no_grad():
        after = scratch.forward(batch)[1]
    assert after["action_loss"] < 0.7 * before["action_loss"]
    assert after["foresight_loss"] < 0.9 * before["foresight_loss"]


def test_every_trained_weight_gets_a_gradient(scratch, meta):
    scratch.train()
    scratch.forward(windows(scratch.config, meta))[0].backward()
    assert [name for name, p in scratch.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_first_batch_whitens_a_policy_from_scratch_once(scratch, native, meta):
    assert torch.equal(scratch.model.tokenizer.latent_std, torch.ones(16))
    batch = windows(scratch.config, meta)
    scratch.forward(batch)
    fitted = scratch.model.tokenizer.latent_std.clone()
    assert not torch.equal(fitted, torch.ones(16))
    scratch.forward(windows(scratch.config, meta, rows=[1, 2]))
    assert torch.equal(scratch.model.tokenizer.latent_std, fitted)
    opened = VlaMotPolicy.from_pretrained(native)
    stored = opened.model.tokenizer.latent_std.clone()
    opened.forward(windows(opened.config, meta))
    assert torch.equal(opened.model.tokenizer.latent_std, stored)


@pytest.fixture
def alone():
    """A process group of this process only."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_ranks_whiten_alike(scratch, meta, alone, monkeypatch):
    """Each rank has a first batch of its own; all take what rank 0 made of its."""
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: tensor.fill_(7.0 + src))
    scratch.forward(windows(scratch.config, meta))
    assert torch.equal(scratch.model.tokenizer.latent_mean, torch.full((16,), 7.0))
    assert torch.equal(scratch.model.tokenizer.latent_std, torch.full((16,), 7.0))


def test_the_group_that_a_policy_is_trained_through_is_kept(native, meta, alone, monkeypatch):
    """What happens otherwise: `tests.train.parting`."""
    kept = set()
    monkeypatch.setattr(groups, "_kept", kept)
    policy = VlaMotPolicy.from_pretrained(native)
    assert kept == set()
    policy.forward(windows(policy.config, meta))
    assert kept == {torch.distributed.group.WORLD}


def test_words_that_were_acted_on_can_be_trained_on(native, meta):
    """LeRobot drives the environment within `inference_mode`, between two steps of training."""
    policy = VlaMotPolicy.from_pretrained(native)
    batch = windows(policy.config, meta)
    seen = {"observation.state": batch["observation.state"][:, 1], "task": batch["task"]}
    seen |= {key: batch[key][:, 1].float() / 255 for key in (HEAD, GRIPPER)}
    with torch.inference_mode():
        policy.select_action(seen)
    policy.train()
    policy.forward(batch)[0].backward()


def test_a_policy_without_generation_expert_trains_on_actions_alone(meta):
    torch.manual_seed(0)
    config = scratch_config()
    config.model = options() | {"generation": None, "foresight": None}
    policy = make_policy(config, ds_meta=meta)
    loss, terms = policy.train().forward(windows(policy.config, meta))
    loss.backward()
    assert set(terms) == {"action_loss"} and loss.item() == pytest.approx(terms["action_loss"])
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)


def test_a_tokenizer_of_another_size_is_whitened_on_what_it_encodes(meta):
    """The view arrives at 32 pixels, the tokenizer sees 16: it is fitted there, as the frames are encoded there."""
    config = scratch_config()
    config.model = config.model | {
        "foresight": {"type": "dct", "image_size": [16, 16]},
        "foresight_stride": 1,
    }
    policy = make_policy(config, ds_meta=meta)
    batch = windows(policy.config, meta)
    policy.forward(batch)
    present = training_batch(batch, policy._policy.processor).observation.images[:, :2, 1:]
    latents = policy.model.encode_frames(present).flatten(0, 2)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(16), atol=1e-4, rtol=0)


def test_training_draws_noise_and_evaluation_repeats_it(native, meta):
    policy = VlaMotPolicy.from_pretrained(native)
    batch = windows(policy.config, meta)
    with torch.no_grad():
        assert torch.equal(policy.forward(batch)[0], policy.forward(batch)[0])
        policy.train()
        torch.manual_seed(1)
        first = policy.forward(batch)[0]
        assert not torch.equal(policy.forward(batch)[0], first)
        torch.manual_seed(1)
        assert torch.equal(policy.forward(batch)[0], first)


def test_padded_steps_and_frames_do_not_count(native, meta):
    policy = VlaMotPolicy.from_pretrained(native)
    batch = windows(policy.config, meta)
    assert batch["action_is_pad"].any()
    assert batch[f"{HEAD}_is_pad"][:, -1].any()
    disturbed = dict(batch)
    disturbed["action"] = torch.where(batch["action_is_pad"][..., None], 1e3, batch["action"])
    for key in (HEAD, GRIPPER):
        gone = batch[f"{key}_is_pad"].clone()
        gone[:, :2] = False  # only the future: a padded history is the first frame, which stands in
        disturbed[key] = torch.where(gone[..., None, None, None], 0.5, batch[key])
    with torch.no_grad():
        assert torch.equal(policy.forward(disturbed)[0], policy.forward(batch)[0])


def test_losses_of_samples_average_to_those_of_a_batch(native, meta):
    policy = VlaMotPolicy.from_pretrained(native)
    batch = windows(policy.config, meta, rows=[1, 2])  # nothing padded: equal counts
    with torch.no_grad():
        each, together = policy.forward(batch, reduction="none")[0], policy.forward(batch)[0]
    assert each.shape == (2,)
    torch.testing.assert_close(each.mean(), together)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_is_pad": None}, "no 'action_is_pad'"),
        ({HEAD: torch.rand(2, 3, 48, 48)}, r"training needs \(B, 3, 3, h, w\)"),
        ({"observation.state": torch.rand(2, 4)}, "needs 3 time steps"),
        ({"action": torch.rand(2, CHUNK, 7)}, "action has 7 dimensions"),
        ({"action": torch.rand(2, 9, 3)}, f"needs {CHUNK} time steps"),
    ],
)
def test_windows_that_do_not_fit_are_refused(native, meta, change, message):
    policy = VlaMotPolicy.from_pretrained(native)
    batch = windows(policy.config, meta, rows=[0, 1]) | change
    with pytest.raises(ConfigError, match=message):
        policy.forward({key: value for key, value in batch.items() if value is not None})


def test_a_robot_with_other_action_features_is_sent_elsewhere(native, meta):
    policy = VlaMotPolicy.from_pretrained(native)
    processor = policy._policy.processor
    (field,) = processor.embodiment.action
    other = replace(processor.embodiment, action=(replace(field, key="actions.joints"),))
    robot = Robot(other, processor.statistics)
    with pytest.raises(ConfigError, match="chunks of the feature 'action' only"):
        training_batch(windows(policy.config, meta, rows=[0, 1]), replace(processor, robot=robot))


def test_another_rate_is_warned_about(native, meta, caplog):
    config = PreTrainedConfig.from_pretrained(native)
    VlaMotPolicy.from_pretrained(native, config=config, dataset_meta=SimpleNamespace(fps=5))
    assert "runs at 5 fps" in caplog.text
