from dataclasses import replace

import av
import gymnasium as gym
import numpy as np
import pytest

from vla_mot.errors import ConfigError
from vla_mot.evaluate.closed_loop import run_episodes
from vla_mot.evaluate.controllers import FunctionController, PolicyController
from vla_mot.evaluate.video import write_video

pytestmark = pytest.mark.sim


class Watched(gym.Wrapper):
    """Writes every action down under the episode's seed."""

    def __init__(self, env: gym.Env, actions: dict[int, list[np.ndarray]]) -> None:
        super().__init__(env)
        self.actions, self.seed = actions, -1

    def reset(self, *, seed=None, options=None):
        self.seed = seed
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        self.actions.setdefault(self.seed, []).append(np.array(action))
        return self.env.step(action)


def without_time(results):
    return [replace(result, seconds=0.0) for result in results]


def run_watched(make_env, controller, seeds, parallel):
    actions: dict[int, list[np.ndarray]] = {}
    results = run_episodes(lambda: Watched(make_env(), actions), controller, seeds, parallel=parallel)
    return without_time(results), {seed: np.stack(taken) for seed, taken in actions.items()}


def test_a_policy_acts_the_same_whatever_runs_beside_it(make_env, policy):
    """Alone, in waves of three, and all at once in another order; episodes that end early leave the batch."""
    seeds = [3, 4, 5, 6, 7]
    alone, taken_alone = run_watched(make_env, PolicyController(policy), seeds, parallel=1)
    assert len({result.steps for result in alone}) > 1
    for order, parallel in ((seeds, 3), (seeds[::-1], 5)):
        together, taken = run_watched(make_env, PolicyController(policy), order, parallel)
        assert {r.seed: (r.verdict, r.steps) for r in together} == {
            r.seed: (r.verdict, r.steps) for r in alone
        }
        for seed in seeds:
            assert np.allclose(taken[seed], taken_alone[seed], atol=1e-4)


def test_results_come_in_the_order_of_the_seeds(make_env, expert):
    seeds = [7, 4, 2, 1]  # the last one ends first
    ended = []
    results = run_episodes(make_env, expert, seeds, parallel=4, on_episode=lambda r: ended.append(r.seed))
    assert [result.seed for result in results] == seeds
    assert sorted(ended) == sorted(seeds) and ended != seeds
    assert without_time(results) == without_time(run_episodes(make_env, expert, seeds, parallel=2))


def test_a_result_is_the_environments_own_verdict(make_env, expert):
    for result in run_episodes(make_env, expert, range(6)):
        assert result.success == (result.verdict == "success")
        assert result.verdict in ("success", "failure", "time_out", "wrong_object")
        assert result.task == result.instruction and result.task.startswith("pick the ")
        assert 0 < result.steps <= 60 and result.seconds > 0


def test_the_other_instruction_is_told_but_not_asked(make_env, policy):
    own = run_episodes(make_env, PolicyController(policy), [1, 2])
    other = run_episodes(make_env, PolicyController(policy, instruction="other"), [1, 2])
    colours = {"pick the red block": "pick the blue block", "pick the blue block": "pick the red block"}
    for mine, theirs in zip(own, other, strict=True):
        assert theirs.task == mine.task == mine.instruction
        assert theirs.instruction == colours[mine.task]


def test_history_reaches_the_policy(make_env, policy):
    _, past = run_watched(make_env, PolicyController(policy), [1], parallel=1)
    _, present = run_watched(make_env, PolicyController(policy, history="present"), [1], parallel=1)
    assert np.array_equal(past[1][:10], present[1][:10])  # the first frame is its own history
    assert not np.allclose(past[1][10:20], present[1][10:20], atol=1e-4)


def test_a_film_shows_every_step_and_the_end(make_env, policy, tmp_path):
    results = run_episodes(
        make_env, PolicyController(policy), [1, 2, 3], video_seeds=[2], video_folder=tmp_path / "films"
    )
    assert [path.name for path in (tmp_path / "films").iterdir()] == ["2.mp4"]
    with av.open(str(tmp_path / "films" / "2.mp4")) as film:
        stream = film.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 10)
    assert len(frames) == results[1].steps + 1
    assert frames[0].shape == (432, 384, 3)  # two cameras, above them captions, below what was foreseen
    assert frames[0][240:].std() > 10


def test_a_function_that_foresees_nothing_is_filmed_too(make_env, expert, tmp_path):
    run_episodes(make_env, expert, [1], video_seeds=[1], video_folder=tmp_path)
    with av.open(str(tmp_path / "1.mp4")) as film:
        assert film.streams.video[0].height == 216


def test_a_film_of_several_sizes_is_refused(tmp_path):
    frames = [np.zeros((height, 32, 3), np.uint8) for height in (32, 64)]
    with pytest.raises(ValueError, match=r"must be of one size, got \[\(32, 32, 3\), \(64, 32, 3\)\]"):
        write_video(tmp_path / "a.mp4", frames, fps=10)
    with pytest.raises(ValueError, match="got none"):
        write_video(tmp_path / "a.mp4", [], fps=10)


def test_functions_get_their_own_episode_and_seed(make_env):
    begun = []

    def begin(env, seed):
        begun.append(seed)
        return lambda seen: seen["agent_pos"][:3]  # stay where you are

    results = run_episodes(make_env, FunctionController(begin), [4, 5, 6], parallel=2)
    assert begun == [4, 5, 6] and not any(result.success for result in results)


def test_what_cannot_run_is_refused(make_env, policy):
    with pytest.raises(ConfigError, match=r"unknown instruction 'othr'. Did you mean 'other'?"):
        PolicyController(policy, instruction="othr")
    with pytest.raises(ValueError, match="parallel must be at least 1"):
        run_episodes(make_env, PolicyController(policy), [1], parallel=0)
    blind = lambda: gym.make("vla_mot/Conveyor-v0", obs_type="agent_pos")  # noqa: E731
    with pytest.raises(ConfigError, match="gives no pictures, only agent_pos"):
        run_episodes(blind, PolicyController(policy), [1])
    with pytest.raises(ConfigError, match="has no attribute 'task'"):
        run_episodes(lambda: gym.make("CartPole-v1"), PolicyController(policy), [1])


def test_no_seed_is_no_episode(make_env, policy):
    assert run_episodes(make_env, PolicyController(policy), []) == []
