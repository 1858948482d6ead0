"""Meta-World through our wrapper and through LeRobot's own: the same scenes, pictures and verdicts."""

import numpy as np
import pytest

from vla_mot.errors import ConfigError
from vla_mot.evaluate.metaworld import graphics

pytestmark = pytest.mark.sim
pytest.importorskip("metaworld", reason="vla-mot[metaworld] is not installed")

TASKS = ("button-press-topdown-v3", "drawer-open-v3")


@pytest.fixture(scope="module")
def worlds():
    """The module of the environment; skipped where nothing can draw."""
    try:
        graphics.choose()
    except ConfigError as error:
        pytest.skip(str(error))
    from vla_mot.evaluate.metaworld import env

    return env


@pytest.fixture(scope="module")
def made(worlds):
    """An environment of two tasks and three cameras."""
    env = worlds.MetaworldEnv(TASKS, image_size=96)
    yield env
    env.close()


def test_stock_rendering_is_what_lerobot_shows(worlds):
    ours = worlds.MetaworldEnv(TASKS, cameras=["corner2"], image_size=480, render="stock")
    theirs = worlds.LeRobotMetaworld(TASKS[1], obs_type="pixels_agent_pos")
    seen, _ = ours.reset(seed=7)
    shown, _ = theirs.reset(seed=7)
    np.testing.assert_array_equal(seen["pixels"]["observation.image"], shown["pixels"])
    action = ours.expert_action()
    (seen, *_, told), (shown, *_, info) = ours.step(action), theirs.step(action)
    np.testing.assert_array_equal(seen["pixels"]["observation.image"], shown["pixels"])
    np.testing.assert_array_equal(seen["agent_pos"], shown["agent_pos"].astype(np.float32))
    assert told["is_success"] == info["is_success"]
    assert ours.task == ours.task_description == theirs.task_description
    ours.close()
    theirs.close()


def test_96_pixels_are_every_fifth_of_lerobots_480(worlds):
    """So a policy whose view is 96 pixels sees in `lerobot-eval` what was recorded."""
    pictures = {}
    for size in (96, 480):
        env = worlds.MetaworldEnv(TASKS, cameras=["corner2"], image_size=size)
        pictures[size] = env.reset(seed=0)[0]["pixels"]["observation.image"].astype(int)
        env.close()
    fifth = np.abs(pictures[480][2::5, 2::5] - pictures[96]).mean()
    elsewhere = np.abs(pictures[480][2::5, 2::5] - np.roll(pictures[96], 1, axis=1)).mean()
    assert fifth < 2 < elsewhere


def test_the_seed_picks_task_and_scene(made):
    first, _ = made.reset(seed=2)
    assert (made.task_name, made.task) == (TASKS[0], "Press a button from the top")
    other, _ = made.reset(seed=3)
    assert (made.task_name, made.task) == (TASKS[1], "Open a drawer")
    moved, _ = made.reset(seed=4)
    again, _ = made.reset(seed=2)
    camera = "observation.image"
    np.testing.assert_array_equal(first["pixels"][camera], again["pixels"][camera])
    assert (first["pixels"][camera] != moved["pixels"][camera]).any()
    assert (first["pixels"][camera] != other["pixels"][camera]).any()


def test_environments_in_one_process_do_not_draw_each_others_pictures(worlds, made):
    alone, _ = made.reset(seed=3)
    beside = worlds.MetaworldEnv(["push-v3"], cameras=["corner2"], image_size=64)
    beside.reset(seed=0)
    np.testing.assert_array_equal(made.reset(seed=3)[0]["pixels"]["corner"], alone["pixels"]["corner"])
    beside.close()


def test_pictures_stand_upright_and_differ_between_cameras(made):
    pixels = made.reset(seed=0)[0]["pixels"]
    assert list(pixels) == ["observation.image", "corner", "gripperPOV"]
    assert made.observation_space.contains(made.reset(seed=0)[0])
    for camera in ("observation.image", "corner"):  # the wall above is grey, the table below brown
        top, bottom = pixels[camera][2].astype(int), pixels[camera][60:].astype(int)
        spread = lambda rows: (rows.max(-1) - rows.min(-1)).mean()  # noqa: E731
        assert spread(top) < spread(bottom)


def test_lazy_pictures_are_the_same_and_of_their_moment(worlds):
    lazy, eager = (worlds.MetaworldEnv(TASKS, ["corner2"], lazy=how) for how in (True, False))
    (then, _), (expected, _) = lazy.reset(seed=3), eager.reset(seed=3)
    assert type(expected["pixels"]) is dict and list(then["pixels"]) == list(expected["pixels"])
    np.testing.assert_array_equal(
        then["pixels"]["observation.image"], expected["pixels"]["observation.image"]
    )
    now = lazy.step(np.ones(4, np.float32))[0]
    np.testing.assert_array_equal(
        then["pixels"]["observation.image"], expected["pixels"]["observation.image"]
    )
    lazy.step(np.ones(4, np.float32))
    with pytest.raises(RuntimeError, match="before the environment's next step"):
        now["pixels"]["observation.image"]
    lazy.close()
    eager.close()


def test_the_expert_ends_with_success_and_time_runs_out_without(worlds, made):
    made.reset(seed=0)
    for _ in range(worlds.LONGEST):
        *_, terminated, truncated, info = made.step(made.expert_action())
        if terminated or truncated:
            break
    assert terminated and not truncated and info["verdict"] == "success"
    short = worlds.MetaworldEnv(["push-v3"], cameras=["topview"], image_size=32, max_steps=2)
    short.reset(seed=0)
    assert short.step(np.zeros(4))[4]["verdict"] == "running"
    *_, terminated, truncated, info = short.step(np.zeros(4))
    assert (
        truncated
        and not terminated
        and info
        == {
            "is_success": False,
            "verdict": "time_out",
            "task": "push-v3",
        }
    )
    short.close()


def test_demonstrations_are_disturbed_and_their_labels_clean(worlds):
    from vla_mot.evaluate.metaworld.demonstrate import DemonstrationNoise, demonstrate

    env = worlds.MetaworldEnv(TASKS[:1], cameras=["corner2"], image_size=32)
    steps = list(demonstrate(env, 4, DemonstrationNoise(dwell_steps=3)))
    assert [step.verdict for step in steps[-4:]] == ["success"] * 4 and steps[-5].verdict == "running"
    env.reset(seed=4)
    np.testing.assert_array_equal(steps[0].action, env.expert_action())
    calm = list(demonstrate(env, 4, DemonstrationNoise(tremor=0, push_rate=0, dwell_steps=0)))
    assert calm[-1].verdict == "success" and calm[-2].verdict == "running"
    assert np.abs(calm[20].observation["agent_pos"] - steps[20].observation["agent_pos"]).max() > 1e-3
    assert all(np.abs(step.action).max() <= 1 for step in steps)
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["drawer-open-v2"]}, "drawer-open-v3"),
        ({"tasks": []}, "list of different names"),
        ({"tasks": "push-v3"}, "list of different names"),
        ({"cameras": ["corner2", "corner2"]}, "list of different names"),
        ({"cameras": ["corner4"]}, "corner3"),
        ({"render": "slow"}, "shadows"),
        ({"image_size": 481}, "1 … 480"),
        ({"max_steps": 0}, "1 … 500"),
    ],
)
def test_options_that_are_none(worlds, options, message):
    with pytest.raises(ValueError, match=message):
        worlds.MetaworldEnv(**options)


@pytest.mark.parametrize("noise", [{"tremor": -1}, {"correlation": 2}, {"push_steps": (3, 2)}])
def test_noise_out_of_range(worlds, noise):
    from vla_mot.evaluate.metaworld.demonstrate import DemonstrationNoise

    with pytest.raises(ValueError, match=next(iter(noise))):
        DemonstrationNoise(**noise)


def test_a_backend_that_was_named_stays_and_none_is_an_error(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert graphics.choose() == "glfw"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(graphics.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    monkeypatch.setattr(graphics.sys, "platform", "linux")
    with pytest.raises(ConfigError, match="apt-get install libegl1 libgl1 libgl1-mesa-dri, or libosmesa6"):
        graphics.choose()
