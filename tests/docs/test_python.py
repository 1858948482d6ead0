"""Python on the pages: it compiles, what it names is there, and what can be run is run, word for word but for ports."""

import ast
import importlib
import importlib.util
import itertools
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.docs.pages import Block, all_blocks
from tests.docs.runs import EXEC, python_of
from tests.infer.server.aloha import ToyTask, aloha_policy
from tests.infer.server.serving import serving
from tests.infer.tiny_policy import SIZE, conveyor_embodiment, frames, known_robot, states, tiny_policy
from tests.model.tiny import tiny_model
from vla_mot.hub.spec import PolicySpec, SamplerConfig
from vla_mot.infer.policy import Policy

PYTHON = [block for block in all_blocks() if block.language == "python"]
RUN = [block for block, verdict in python_of(all_blocks()) if verdict == EXEC]
ELSEWHERE = ("simpler_env",)
"""Modules of projects that cannot be installed here."""
PLACES = ("runs/a/checkpoints/last/pretrained_model", "outputs/demo/policy")


def name(block: Block) -> str:
    return f"{block.page}:{block.line}"


@pytest.mark.parametrize("block", PYTHON, ids=name)
def test_code_compiles_and_what_it_names_is_there(block):
    tree = ast.parse(block.text, name(block))
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    if not alias.name.startswith(ELSEWHERE):
                        module = importlib.import_module(alias.name)
                        known[alias.asname or alias.name.split(".")[0]] = (
                            module if alias.asname else sys.modules[alias.name.split(".")[0]]
                        )
            case ast.ImportFrom(module=module, names=names) if not module.startswith(ELSEWHERE):
                for alias in names:
                    found = importlib.import_module(module)
                    known[alias.asname or alias.name] = getattr(found, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            assert hasattr(known[node.value.id], node.attr), f"{name(block)}: {node.value.id}.{node.attr}"


class Countdown:
    """True a few times; knows when it was asked."""

    def __init__(self, steps: int) -> None:
        self._steps = iter(range(steps))
        self.asked: list[float] = []

    def __bool__(self) -> bool:
        self.asked.append(time.monotonic())
        return next(self._steps, None) is not None


class ToyRobot:
    """What the pages call `robot`: it looks, sees and is commanded."""

    def __init__(self) -> None:
        self.left, self._step = Countdown(7), itertools.count()
        self.commanded: list[Any] = []
        self.looked: list[float] = []

    def running(self) -> bool:
        return bool(self.left)

    def look(self) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        self.looked.append(time.monotonic())
        step = next(self._step)
        return {key: image[0] for key, image in frames(1, step).items()}, states(1, step)[0]

    def see(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        images, state = self.look()
        return {key: image.movedim(0, -1).numpy() for key, image in images.items()}, state.numpy()

    def command(self, action: Any) -> None:
        assert action.shape == (3,) and np.isfinite(np.asarray(action)).all()
        self.commanded.append(action)


class ServedRobot:
    """What the page on serving calls `robot`: its `look` is for a client, and it acts."""

    def __init__(self, robot: ToyRobot) -> None:
        self.look, self.act = robot.see, robot.command


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a policy where the pages have theirs."""
    folder = tmp_path_factory.mktemp("python")
    for where in PLACES:
        tiny_policy().save_pretrained(folder / where)
    return folder


@pytest.fixture(scope="module")
def port():
    with serving(tiny_policy()) as running:
        yield running.port


def run(block: Block, port: int | None = None, **names: Any) -> dict[str, Any]:
    text = block.text if port is None else block.text.replace("8000", str(port))
    assert port is None or text != block.text
    exec(compile(text, name(block), "exec"), names)
    return names


def assert_paced(times: list[float], steps: int) -> None:
    """That so many control steps lie between: whoever copies a page's loop gets one that keeps the rate."""
    assert len(times) == steps + 1
    assert times[-1] - times[0] > 0.95 * steps / conveyor_embodiment().fps


def on(page: str, number: int = 0) -> Block:
    return [block for block in PYTHON if block.page == f"docs/{page}.md"][number]


def test_every_block_that_is_to_run_is_run_here():
    tested = [
        on("install"),
        on("quickstart"),
        on("add_sampler"),
        on("inference"),
        on("real_time"),
        on("serving"),
    ]
    tested += [on("deploy", number) for number in range(3)] + [
        on("simulators", number) for number in range(2)
    ]
    assert sorted(map(name, tested)) == sorted(map(name, RUN))


@pytest.mark.parametrize("page", ["install", "quickstart", "add_sampler", "inference"])
def test_it_runs_as_it_stands(page, place, monkeypatch):
    import vla_mot

    monkeypatch.chdir(place)
    run(on(page), vla_mot=vla_mot)


@pytest.mark.parametrize("number", [0, 1])
def test_a_loop_that_waits_and_one_that_does_not(place, monkeypatch, number):
    monkeypatch.chdir(place)
    robot = ToyRobot()
    run(on("deploy", number), robot=robot)
    assert len(robot.commanded) == 7
    assert_paced(robot.left.asked, 7)


def test_a_loop_on_another_machine(port):
    robot = ToyRobot()
    names = run(on("deploy", 2), port, robot=robot)
    assert len(robot.commanded) == 7 and names["driver"].step == 7
    assert_paced(robot.left.asked, 7)


def test_the_loop_of_the_page_on_serving(port):
    robot = ToyRobot()
    run(on("serving"), port, robot=ServedRobot(robot), steps=7, task="pick the red block")
    assert len(robot.commanded) == 7
    assert_paced(robot.looked, 6)


def test_the_loop_of_the_page_on_time(place, monkeypatch):
    monkeypatch.chdir(place)
    robot, running = ToyRobot(), Countdown(5)
    images, state = robot.look()
    run(on("real_time"), robot=robot, images=images, state=state, instruction="go", running=running)
    assert len(robot.commanded) == 5
    assert_paced(running.asked, 5)


def test_robotwins_policy_folder(tmp_path):
    """The two files as RoboTwin reads them: a module and its settings."""
    import yaml

    settings = next(block.text for block in all_blocks() if block.title.endswith("deploy_policy.yml"))
    module = run(on("simulators", 0))
    with serving({"aloha": aloha_policy()}) as running:
        model = module["get_model"](yaml.safe_load(settings) | {"port": running.port, "task_name": "toy"})
        for episode in range(2):
            module["reset_model"](model)
            task = ToyTask(episode)
            module["eval"](task, model, task.get_obs())
            assert len(task.taken) == 30
    assert set(np.stack(task.taken)[:, [6, 13]].flatten()) <= {0.0, 1.0}


class ToySimpler:
    """SimplerEnv's methods around nothing."""

    def __init__(self, task: str) -> None:
        self.taken: list[np.ndarray] = []

    def reset(self) -> tuple[dict, dict]:
        return {"step": 0}, {}

    def get_language_instruction(self) -> str:
        return "put the spoon on the towel"

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        assert action.shape == (7,) and np.isfinite(action).all() and action[6] in (-1, 1)
        self.taken.append(action)
        return {"step": len(self.taken)}, 0.0, False, len(self.taken) == 5, {}


def test_simplers_loop(monkeypatch):
    def module(path: str, **names: Any) -> None:
        made = types.ModuleType(path)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, path, made)

    def picture(env: ToySimpler, seen: dict) -> np.ndarray:
        return np.full((SIZE, SIZE, 3), seen["step"], np.uint8)

    module("simpler_env", make=ToySimpler)
    for path in ("simpler_env.utils", "simpler_env.utils.env"):
        module(path)
    module("simpler_env.utils.env.observation_utils", get_image_from_maniskill2_obs_dict=picture)
    model = tiny_model(max_state_dim=8, max_action_dim=7)
    policy = Policy(model, PolicySpec(model.config, (known_robot("widowx", 4, "abs"),), SamplerConfig(2, 3)))
    with serving({"widowx": policy}) as running:
        names = run(on("simulators", 1), running.port, state_of=lambda seen: np.zeros(8, np.float32))
    assert len(names["env"].taken) == 5
