"""What validation finds, against the same made by hand, sample by sample."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tests.infer.tiny_policy import statistics, tiny_policy
from tests.model.tiny import tiny_batch
from tests.train.runs import train_config
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.hub.spec import PolicySpec
from vla_mot.infer.policy import Policy
from vla_mot.keyed import keyed_normal
from vla_mot.model.objective import FIXED_STEP, draw_noise
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.normalization import Statistics
from vla_mot.robots.robot import Robot
from vla_mot.train.origins import Origin
from vla_mot.train.pictures import Strip, draw_grid
from vla_mot.train.validation import _CHUNK_STREAM, Validator

CAMERAS = ("observation.images.head", "observation.images.gripper", None)
ORIGINS = (
    Origin("belt", "robots", "conveyor", CAMERAS),
    Origin("arm", "robots", "mover", CAMERAS),
    Origin("people", "people", "human", CAMERAS),
)


@cache
def policy() -> Policy:
    """Knows the conveyor, whose x and y are relative to the state, and a mover, all of whose numbers are absolute."""
    known = tiny_policy()
    body = Embodiment.from_dict(
        {
            "name": "mover",
            "fps": 10,
            "state": [{"key": "observation.state", "names": ["a", "b"], "units": ["rad", "rad"]}],
            "action": [
                {"key": "action.left", "names": ["turn"], "units": ["rad"]},
                {"key": "action.right", "names": ["turn"], "units": ["rad"]},
                {"key": "action.grip", "names": ["grip"], "units": ["1"]},
            ],
            "cameras": list(CAMERAS),
        }
    )
    numbers = Statistics(
        "mover", "delta", 4, statistics([0.0] * 2, [1.0] * 2), statistics([1.0] * 3, [2.0, 3.0, 4.0])
    )
    robots = (*known.spec.robots, Robot(body, numbers))
    return Policy(known.model, PolicySpec(known.spec.model, robots, known.spec.sampler), robots[0])


def with_origin(batch: Batch, places: list[int]) -> Batch:
    return replace(batch, origin=torch.tensor([[place, 5, 100 + row] for row, place in enumerate(places)]))


BATCHES = (with_origin(tiny_batch(1000), [0, 1, 2, 1]), with_origin(tiny_batch(1001), [1, 1, 2, 0]))


def validator(batches=BATCHES, origins=ORIGINS, rank=0, ranks=1, **config) -> Validator:
    return Validator(list(batches), policy().spec, origins, train_config(**config), rank, ranks)


@cache
def scored() -> dict[str, float]:
    one = validator()
    return one.numbers(one.score(policy().model).sums)


def test_losses_are_bitwise_those_of_whole_batches():
    model, sums = policy().model, torch.zeros(4, dtype=torch.float64)
    for batch in BATCHES:
        found = model.losses(batch, *draw_noise(batch, 1, 0, FIXED_STEP, model.config.noise_level))
        parts = (found.action_sum, found.action_count, found.foresight_sum, found.foresight_count)
        sums += torch.stack([part.double().sum() for part in parts])
    sums = sums.detach()
    assert scored()["action_loss"] == float(sums[0] / sums[1])
    assert scored()["foresight_loss"] == float(sums[2] / sums[3])


def by_hand(dataset: int, mean: list[float], std: list[float], relative: list[float]) -> Tensor:
    """Errors `(n, D)` of every real step of a robot's samples, in its own units, chunk by chunk."""
    errors = []
    for batch in BATCHES:
        for row in range(4):
            if batch.origin[row, 0] != dataset:
                continue
            one, width = batch[slice(row, row + 1)], len(mean)
            noise = keyed_normal(0, FIXED_STEP, _CHUNK_STREAM, one.index, (4, 5))
            actions, _ = policy().model.sample(one.observation, noise, 3, width)
            scale, shift = torch.tensor(std) + 1e-6, torch.tensor(mean)
            base = torch.tensor(relative)  # whatever the state is, both chunks are relative to it
            chunks = [a[0, :, :width] * scale + shift + base for a in (actions, one.actions)]
            errors.append((chunks[0] - chunks[1])[one.action_mask[0].any(-1)])
    return torch.cat(errors)


def test_open_loop_errors_are_in_the_robots_units_per_named_dimension():
    error = by_hand(0, [0.01, -0.02, 0.08], [0.05, 0.05, 0.03], [0.3, 0.4, 0.0])
    for column, name in enumerate(("x", "y", "aperture")):
        assert scored()[f"action_mae/conveyor/{name} (m)"] == pytest.approx(
            float(error[:, column].abs().mean()), rel=1e-4
        )
        assert scored()[f"action_rmse/conveyor/{name} (m)"] == pytest.approx(
            float(error[:, column].square().mean().sqrt()), rel=1e-4
        )
    assert scored()["action_mae/conveyor (m)"] == pytest.approx(float(error.abs().mean()), rel=1e-4)


def test_every_robot_of_a_batch_is_scored_by_its_own_statistics_and_units_stay_apart():
    error = by_hand(1, [1.0] * 3, [2.0, 3.0, 4.0], [0.0] * 3)
    mae, rmse = error.abs().mean(0), error.square().mean(0).sqrt()
    found = {
        name: value for name, value in scored().items() if "/mover" in name and name.startswith("action")
    }
    assert found == pytest.approx(
        {
            "action_mae/mover/action.left.turn (rad)": float(mae[0]),
            "action_mae/mover/action.right.turn (rad)": float(mae[1]),
            "action_mae/mover/grip (1)": float(mae[2]),
            "action_rmse/mover/action.left.turn (rad)": float(rmse[0]),
            "action_rmse/mover/action.right.turn (rad)": float(rmse[1]),
            "action_rmse/mover/grip (1)": float(rmse[2]),
            "action_mae/mover (rad)": float(mae[:2].mean()),
            "action_rmse/mover (rad)": float(error[:, :2].square().mean().sqrt()),
            "action_mae/mover (1)": float(mae[2]),
            "action_rmse/mover (1)": float(rmse[2]),
        },
        rel=1e-4,
    )


def test_normalized_errors_are_over_all_robots():
    belt = by_hand(0, [0.0] * 3, [1.0] * 3, [0.0] * 3)
    arm = by_hand(1, [0.0] * 3, [1.0] * 3, [0.0] * 3)
    both = torch.cat([belt, arm])
    assert scored()["action_mae_normalized"] == pytest.approx(float(both.abs().mean()), rel=1e-4)
    assert scored()["action_rmse_normalized"] == pytest.approx(float(both.square().mean().sqrt()), rel=1e-4)


def test_foresight_stands_beside_copying_the_last_frame():
    model = policy().model
    sums = dict.fromkeys(("mse", "copy_mse", "moving_mse", "moving_copy_mse"), 0.0)
    cells = moving_cells = 0
    for batch in BATCHES:
        truth = model.encode_frames(batch.future.unsqueeze(2)).squeeze(2)
        present = model.encode_frames(batch.observation.images[:, :, 1:]).squeeze(2)
        foreseen = model.prefill(batch.observation).foresight.detach()
        for row, view in batch.future_mask.nonzero().tolist():
            change = (truth - present)[row, view].square().mean(0)
            miss = (foreseen - truth)[row, view].square().mean(0)
            moves = change.sqrt() > 0.5
            cells, moving_cells = cells + change.numel(), moving_cells + int(moves.sum())
            sums["mse"] += float(miss.sum())
            sums["copy_mse"] += float(change.sum())
            sums["moving_mse"] += float(miss[moves].sum())
            sums["moving_copy_mse"] += float(change[moves].sum())
    assert moving_cells > 0
    for name, total in sums.items():
        count = moving_cells if name.startswith("moving") else cells
        assert scored()[f"foresight/{name}"] == pytest.approx(total / count, rel=1e-4), name


def test_a_model_that_foresees_nothing_is_scored_on_its_actions():
    known = tiny_policy(generation=None, foresight=None)
    one = Validator([BATCHES[0]], known.spec, ORIGINS, train_config(val_pictures=2))
    found = one.score(known.model)
    numbers = one.numbers(found.sums)
    assert found.picture is None and numbers["action_loss"] > 0
    assert [name for name in numbers if name.startswith("action_mae")]
    assert not [name for name in numbers if name.startswith("foresight")]


def test_losses_are_told_apart_by_dataset_and_robot():
    assert {name.rpartition("/")[0] for name in scored() if name.endswith("/foresight_loss")} == {
        "dataset/belt", "dataset/arm", "dataset/people",
        "embodiment/conveyor", "embodiment/mover", "embodiment/human",
    }  # fmt: skip
    assert "dataset/people/action_loss" not in scored(), "people have no actions"


@pytest.mark.parametrize(("ranks", "config"), [(2, {}), (5, {}), (2, {"micro": 1})])
def test_several_ranks_find_what_one_does(ranks, config):
    from vla_mot.train.config import ParallelConfig

    parallel = ParallelConfig(micro_batch=config.get("micro"))
    several = [validator(rank=rank, ranks=ranks, parallel=parallel, val_pictures=1) for rank in range(ranks)]
    found = [one.score(policy().model) for one in several]
    numbers = several[0].numbers(sum(one.sums for one in found))
    assert numbers == pytest.approx(scored(), rel=1e-4)
    assert found[0].picture is not None


def test_only_so_many_are_sampled_and_spread_evenly():
    few = validator(val_open_loop=3)
    places = [tuple(place) for batch, _ in few._chosen for place in batch.origin[:, [0, 2]].tolist()]
    assert sorted(places) == [(0, 100), (0, 103), (1, 100)], (
        "dataset and frame of the first, the middle and the last"
    )
    assert [(batch.batch_size, robot) for batch, robot in few._chosen] == [(2, 0), (1, 1)], (
        "one pass per robot"
    )
    none = validator(val_open_loop=0)
    found = none.score(policy().model)
    numbers = none.numbers(found.sums)
    assert numbers["action_loss"] == scored()["action_loss"]
    assert found.picture is None
    assert not [name for name in numbers if name.startswith(("action_mae", "action_rmse", "foresight/"))]


def test_without_origins_samples_are_of_the_only_robot_there_is():
    spec = replace(policy().spec, robots=policy().spec.robots[:1])
    bare = [replace(batch, origin=None) for batch in BATCHES]
    one = Validator(bare, spec, (), train_config())
    names = one.numbers(one.score(policy().model).sums)
    assert "action_mae/conveyor/x (m)" in names
    unknown = validator(bare, ())
    assert "action_mae_normalized" not in unknown.numbers(unknown.score(policy().model).sums)


# ---- pictures -----------------------------------------------------------------------------------------------


def test_the_picture_shows_what_was_seen_and_what_came():
    picture = validator(val_pictures=2).score(policy().model).picture
    assert picture is not None and picture.dtype == np.uint8
    tile, pitch = 144, 20 + 144 + 6
    assert picture.shape[1] == 6 + 4 * (tile + 6)
    rows = (picture.shape[0] - 26) / pitch
    assert rows == int(rows) >= 2
    # Of the first half of the samples the one in which most moves stands first; its first view is the top strip.
    tops = [
        np.asarray(picture[46 : 46 + tile, 6 + column * 150 : 6 + column * 150 + tile]) for column in range(4)
    ]
    shown = [
        (b, r) for b in range(2) for r in range(4) if matches(tops[1], BATCHES[b].observation.images[r, 0, 1])
    ]
    assert len(shown) == 1
    batch, row = BATCHES[shown[0][0]], shown[0][1]
    assert matches(tops[0], batch.observation.images[row, 0, 0])
    assert matches(tops[2], batch.future[row, 0])
    foreseen = policy().model.decode_latents(policy().model.prefill(batch.observation).foresight)[row, 0]
    assert matches(tops[3], (foreseen * 255).round().to(torch.uint8))


def matches(tile: np.ndarray, frame: Tensor) -> bool:
    """Whether a tile is a 32-pixel frame, enlarged."""
    middles = np.floor((np.arange(32) + 0.5) * 144 / 32).astype(int)
    difference = tile[middles][:, middles].astype(int) - frame.permute(1, 2, 0).numpy().astype(int)
    return bool(np.abs(difference).max() <= 1)


def test_cached_latents_are_decoded_where_there_are_no_other_pixels():
    model = policy().model
    cached = []
    for batch in BATCHES:
        seen = batch.observation
        latents = model.encode_frames(seen.images)
        gone = seen.images.clone()
        gone[:, :, 0] = 7  # nobody may look at these
        observation = replace(seen, images=gone, latents=latents)
        future = model.encode_frames(batch.future.unsqueeze(2)).squeeze(2)
        cached.append(
            replace(
                batch, observation=observation, future=torch.full_like(batch.future, 7), future_latents=future
            )
        )
    one = validator(cached, val_pictures=1)
    found = one.score(model)
    assert one.numbers(found.sums) == pytest.approx(scored(), rel=1e-3)
    assert found.picture is not None
    past, future = (found.picture[46:190, left : left + 144] for left in (6, 306))
    assert past.std() > 20 and future.std() > 20, "a picture, not one colour"


def test_a_large_picture_is_made_smaller_and_captions_say_where_it_comes_from():
    frame = np.full((224, 224, 3), 200, np.uint8)
    grid = draw_grid([Strip("belt, episode 5, frame 101, head", frame, frame, frame, frame)])
    assert grid.shape == (26 + 170, 606, 3)
    assert (grid[46:190, 6:150] == 200).all()
    assert (grid[26:46] != (24, 26, 30)).any(), "a caption"
