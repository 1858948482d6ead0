"""What a request may hold, which frame becomes its history, and what a client is told otherwise."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.infer.server.serving import TASK, small
from tests.infer.tiny_policy import GRIPPER, HEAD, known_robot, tiny_policy
from vla_mot.errors import ConfigError
from vla_mot.hub.spec import PolicySpec
from vla_mot.infer.policy import Policy
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.errors import RequestError
from vla_mot.infer.server.metadata import metadata
from vla_mot.infer.server.service import Service, Work
from vla_mot.infer.server.wire import encode

Ask = Callable[..., Any]


def asking(policies: Policy | dict[str, Policy], work: Callable[[Ask], None], **config: Any) -> None:
    """Run `work` with a function that sends requests of one session as far as the policy."""

    async def run() -> None:
        named = policies if isinstance(policies, dict) else {"conveyor": policies}
        service = Service(named, ServerConfig(**config))
        session = service.open()
        work(lambda message: service.prepare(session, encode(message)))
        await service.stop()

    asyncio.run(run())


def picture(value: int, side: int = 8) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def at(step: int, **more: Any) -> dict[str, Any]:
    """An observation whose pictures hold their step."""
    return small(step=step) | {HEAD: picture(step), GRIPPER: picture(100 + step)} | more


@pytest.mark.parametrize(
    "change",
    [
        {},
        {HEAD: np.moveaxis(small()[HEAD], -1, 0)},
        {"observation.state": [0, 0.0, 0, 0]},
        {"observation.state": np.zeros(4, np.float64)},
        {"prompt": None, "task": TASK},
        {"prompt": np.str_(TASK)},
        {HEAD: None, "observation": {"images": {"head": small()[HEAD]}}},
        {HEAD: None, "observation/images/head": small()[HEAD]},
    ],
    ids=str,
)
def test_the_same_observation_in_other_forms(tiny, change):
    def work(ask):
        message = {key: value for key, value in (small() | change).items() if value is not None}
        plain, found = ask(small()).row, ask(message).row
        assert found.instruction == plain.instruction and np.array_equal(found.state, plain.state)
        assert all(np.array_equal(found.present[key], plain.present[key]) for key in (HEAD, GRIPPER))

    asking(tiny, work)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({HEAD: None}, "expects the cameras .*; missing: 'observation.images.head'"),
        ({"observation.images.haed": picture(1)}, "unknown key 'observation.images.haed'. Did you mean"),
        ({HEAD: picture(1).astype(np.float32)}, r"expected a uint8 array .* got float32 \(8, 8, 3\)"),
        ({HEAD: picture(1)[..., :2]}, "three colours, first or last"),
        ({HEAD: np.zeros((3, 8, 8, 3), np.uint8)}, "two frames"),
        ({HEAD: np.zeros((2, 8, 8, 3), np.uint8)}, "either all cameras carry their history"),
        ({HEAD: np.zeros((5000, 2, 3), np.uint8)}, "at most 4096 pixels a side, got 5000 × 2"),
        ({HEAD: np.zeros((4000, 2, 3), np.uint8)}, "too narrow to fit"),
        ({HEAD: "head.png"}, "got 'head.png'"),
        ({"observation.state": np.zeros(5)}, r"expected 4 numbers, got float64 \(5,\)"),
        ({"observation.state": [0, 0, 0, None]}, "expected 4 numbers, got list"),
        ({"observation.state": np.array([0, 0, 0, np.nan])}, "not every number is finite"),
        ({"observation.state": np.array([0, 0, 0, 1e39])}, "not every number is finite"),
        ({"prompt": ""}, "is a text under 'prompt' or 'task', got ''"),
        ({"prompt": None}, "got 0 of them"),
        ({"task": TASK}, "got 2 of them"),
        ({"prompt": 5}, "got '5'"),
        ({"step": -1}, "step is a whole number in 0 .* got '-1'"),
        ({"step": 1.5}, "step is a whole number"),
        ({"seed": 2**63}, "seed is a whole number"),
        ({"reset": 1}, "reset is true or false"),
        ({"remember": True}, "keeps the pictures of a 'step'"),
        ({"deadline_ms": 0}, "deadline_ms is a number of milliseconds above 0"),
        ({"deadline_ms": float("nan")}, "deadline_ms is a number"),
        ({"embodiment": "conveyer"}, "unknown embodiment 'conveyer'. Did you mean 'conveyor'"),
        ({"embodiment": 3}, "is the name of a robot"),
        ({"observation": {"state": [1]}}, "'observation.state' stands twice"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(tiny, change, words):
    def work(ask):
        message = {key: value for key, value in (small() | change).items() if value is not None}
        with pytest.raises(RequestError, match=words):
            ask(message)
        assert ask(small()).row.call == 0

    asking(tiny, work)


def test_a_state_of_several_features():
    """By its features in the robot's order, or whole; not both."""
    wide = tiny_policy(max_state_dim=8, max_action_dim=8)
    robot = known_robot("franka", wide.spec.model.chunk_size)
    policy = Policy(wide.model, PolicySpec(wide.spec.model, (robot,), wide.spec.sampler))
    cameras = {key: picture(1) for _, key in robot.embodiment.present_cameras}
    names = [(part.key, len(part.names)) for part in robot.embodiment.state]
    assert len(names) > 1
    parts = {key: np.full(width, place, np.float32) for place, (key, width) in enumerate(names)}
    whole = np.concatenate(list(parts.values()))

    def work(ask):
        backwards = dict(reversed(parts.items()))
        assert np.array_equal(ask(cameras | backwards | {"task": TASK}).row.state, whole)
        assert np.array_equal(ask(cameras | {"observation.state": whole, "task": TASK}).row.state, whole)
        with pytest.raises(RequestError, match="not both"):
            ask(cameras | parts | {"observation.state": whole, "task": TASK})

    asking({"franka": policy}, work)


def test_a_clients_own_names(tiny):
    """As openpi's examples call them."""
    rename = {"observation/image": HEAD, "observation.wrist_image": GRIPPER, "state": "observation.state"}

    def work(ask):
        found = ask(
            {
                "observation/image": picture(3),
                "observation/wrist_image": picture(4),
                "state": np.zeros(4),
                "prompt": TASK,
            }
        )
        assert (found.row.present[HEAD][0, 0, 0], found.row.present[GRIPPER][0, 0, 0]) == (3, 4)

    asking(tiny, work, rename=rename)


def history(found: Work) -> tuple[int, str, int | None]:
    """The step in the history's pictures, whence they came, and how old they are said to be."""
    head, gripper = (int(found.row.past[key][0, 0, 0]) for key in (HEAD, GRIPPER))
    assert gripper == head + 100
    return head, found.history.source, found.history.age


def test_the_frame_of_m_steps_ago(tiny):
    """m = 3: the first frame stands in while the episode is younger, as in a session beside the robot."""

    def work(ask):
        assert history(ask(at(10))) == (10, "first", 0)
        assert history(ask(at(12))) == (10, "first", 2)
        assert history(ask(at(13))) == (10, "received", 3)
        assert ask({HEAD: picture(17), GRIPPER: picture(117), "step": 17, "remember": True}) == {
            "remembered": 17
        }
        assert history(ask(at(20))) == (17, "received", 3)
        assert history(ask(at(24))) == (24, "present", 0)
        assert history(ask(at(24))) == (
            24,
            "present",
            0,
        )  # asked again, for instance when the server was busy

    asking(tiny, work)


def test_without_steps_the_present_stands_in_and_it_is_said(tiny):
    def work(ask):
        for value in (1, 2):
            found = ask(small() | {HEAD: picture(value), GRIPPER: picture(100 + value)})
            assert history(found) == (value, "present", 0)

    asking(tiny, work)


def test_history_that_comes_along(tiny):
    pair = {HEAD: np.stack([picture(1), picture(9)]), GRIPPER: np.stack([picture(101), picture(109)])}
    first = {key: np.moveaxis(value, -1, 1) for key, value in pair.items()}

    def work(ask):
        for frames in (pair, first):
            found = ask(small() | frames)
            assert history(found) == (1, "request", None)
            assert found.row.present[HEAD][0, 0, 0] == 9

    asking(tiny, work)


def test_a_near_frame_where_it_is_allowed(tiny):
    def work(ask):
        for step in (0, 10):
            ask(at(step))
        assert history(ask(at(14))) == (10, "near", 4)
        assert history(ask(at(19))) == (14, "near", 5)
        assert history(ask(at(26))) == (26, "present", 0)

    asking(tiny, work, history_tolerance=2)


def test_a_server_may_insist_on_history(tiny):
    def work(ask):
        with pytest.raises(RequestError, match="the frame of 3 steps ago is not here"):
            ask(small())
        assert history(ask(at(0))) == (0, "first", 0)
        with pytest.raises(RequestError, match="send that frame"):
            ask(at(30))

    asking(tiny, work, missing_history="error")


def test_a_new_episode_forgets(tiny):
    def work(ask):
        ask(at(40))
        with pytest.raises(RequestError, match="step 2 came after step 40: send reset = true"):
            ask(at(2))
        found = ask(at(2, reset=True, seed=7))
        assert history(found) == (2, "first", 0)
        assert (found.row.seed, found.row.call) == (7, 0)
        assert ask({"reset": True}) == {"reset": True, "seed": 4}
        assert history(ask(at(0))) == (0, "first", 0)

    asking(tiny, work, seed=4)


def test_old_frames_are_let_go(tiny):
    """A session holds at most m + 1 control steps, and as many bytes as it may."""

    async def run() -> None:
        service = Service({"conveyor": tiny}, ServerConfig(max_history_mib=1))
        session = service.open()
        for step in range(50):
            service.prepare(session, encode(at(step)))
        assert len(session._frames) == 4
        session.begin(0)
        for step in range(3):
            large = {HEAD: picture(step, 400), GRIPPER: picture(step, 400)}
            service.prepare(session, encode(at(step) | large))
        assert list(session._frames) == [2]
        await service.stop()

    asyncio.run(run())


def test_a_camera_keeps_its_size_in_an_episode(tiny):
    def work(ask):
        ask(at(0))
        with pytest.raises(RequestError, match=r"\(9, 9\) pixels now, \(8, 8\) before"):
            ask(at(1) | {HEAD: picture(1, 9)})
        ask(at(0, reset=True) | {HEAD: picture(1, 9)})

    asking(tiny, work)


def test_a_request_that_does_not_fit_changes_nothing(tiny):
    def work(ask):
        ask(at(10))
        with pytest.raises(RequestError):
            ask(at(13, reset=True, seed=5, prompt=""))
        found = ask(at(13))
        assert history(found) == (10, "received", 3) and found.row.seed == 0

    asking(tiny, work)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (at(5, seed=9), "step 5 came after step 10"),
        (at(5, embodiment="b"), "step 5 came after step 10"),
        (at(12, seed=9) | {HEAD: picture(1, 9)}, "pixels now"),
        (at(12, seed=9, embodiment="c"), "unknown embodiment"),
    ],
    ids=["step", "embodiment", "size", "robot"],
)
def test_one_that_does_not_fit_the_episode_changes_nothing(tiny, wrong, words):
    """Nothing was predicted yet, so that a seed may still change; the first frame came without a prediction."""

    def work(ask):
        first = {HEAD: picture(10), GRIPPER: picture(110), "step": 10, "remember": True, "embodiment": "b"}
        ask(first)
        with pytest.raises(RequestError, match=words):
            ask(wrong)
        found = ask(at(13))
        assert (found.row.robot, found.row.seed, history(found)) == ("b", 0, (10, "received", 3))

    asking({"a": tiny, "b": tiny}, work)


def test_a_reset_says_the_robot_anew(tiny):
    """Alone it may name the next one; with its first observation it does not go on with the last one."""

    def work(ask):
        assert ask({"reset": True, "embodiment": "b"})["reset"]
        assert ask(at(0)).row.robot == "b"
        with pytest.raises(RequestError, match="unknown embodiment 'c'"):
            ask({"reset": True, "embodiment": "c", "seed": 5})
        assert (ask(at(1)).row.robot, ask(at(1)).row.seed) == ("b", 0)
        with pytest.raises(RequestError, match="say embodiment = …: this server drives a, b"):
            ask(at(0, reset=True))
        assert ask(at(1)).row.robot == "b"

    asking({"a": tiny, "b": tiny}, work)


def test_what_is_kept_of_frames_with_history_is_what_is_counted(tiny):
    """A view of both frames would keep twice as much in memory."""

    async def run() -> None:
        service = Service({"conveyor": tiny}, ServerConfig())
        session = service.open()
        pairs = {key: np.zeros((2, 8, 8, 3), np.uint8) for key in (HEAD, GRIPPER)}
        service.prepare(session, encode(small(step=0) | pairs))
        assert [held(picture) for picture in session._frames[0].values()] == [8 * 8 * 3] * 2
        await service.stop()

    asyncio.run(run())


def held(view: Any) -> int:
    """Bytes that stay in memory with an array."""
    while isinstance(view, np.ndarray) and view.base is not None:
        view = view.base
    return view.nbytes if isinstance(view, np.ndarray) else len(view)


def test_several_robots(tiny):
    """One session drives one of them until it is reset."""

    def work(ask):
        assert ask({"reset": True})["reset"]
        with pytest.raises(RequestError, match="say embodiment = …: this server drives a, b"):
            ask(at(0))
        assert ask(at(0, embodiment="b")).row.robot == "b"
        assert ask(at(1)).row.robot == "b"
        with pytest.raises(RequestError, match="drives 'b'; send reset"):
            ask(at(2, embodiment="a"))
        assert ask(at(0, embodiment="a", reset=True)).row.robot == "a"

    asking({"a": tiny, "b": tiny}, work)


def test_a_server_without_a_robot():
    async def run() -> None:
        Service({}, ServerConfig())

    with pytest.raises(ConfigError, match="there is no robot to serve"):
        asyncio.run(run())


def test_the_seed_changes_only_with_an_episode(tiny):
    async def run() -> None:
        service = Service({"conveyor": tiny}, ServerConfig())
        session = service.open()
        assert service.prepare(session, encode(small(seed=3))).row.seed == 3
        session.calls = 1
        with pytest.raises(RequestError, match="only with a new episode"):
            service.prepare(session, encode(small(seed=4)))
        assert service.prepare(session, encode(small(seed=3))).row.call == 1
        await service.stop()

    asyncio.run(run())


@pytest.mark.parametrize("model", [{"generation": None, "foresight": None}, {"history": "present"}], ids=str)
def test_a_policy_that_reads_no_history_needs_none(model):
    policy, config = tiny_policy(**model), ServerConfig(missing_history="error")
    told = metadata({"conveyor": policy}, config)["robots"]["conveyor"]
    assert told["history_steps"] == 0

    def work(ask):
        assert history(ask({key: value for key, value in at(0).items() if key != "step"})) == (
            0,
            "present",
            0,
        )
        for step in (2, 9):
            assert history(ask(at(step))) == (step, "present", 0)

    asking(policy, work, missing_history="error")


def test_history_steps_are_the_robots():
    """m that is stated in seconds counts the robot's own frames."""
    policy = tiny_policy(offset_seconds=0.5)
    assert policy.spec.model.offset(policy.robot.embodiment) == 5

    def work(ask):
        ask(at(0))
        assert history(ask(at(5))) == (0, "received", 5)

    asking(policy, work)
