"""All of LeRobot's commands on the policy as a user has it: wheels in an environment of their own beside stock lerobot.

Every fixture is a command or two, typed as docs/lerobot.md has them, in a folder that is not the checkout; later ones
go on from what earlier ones made. Adapters and the Hub ride along where they cost no command of their own.
"""

import json
import re
import socket
import subprocess
from base64 import urlsafe_b64encode
from contextlib import ExitStack
from csv import reader
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.hub.loopback_hub import OWNER, LoopbackHub, client_environment
from tests.policy.clean_environment import UV, CleanEnvironment, run
from tests.waiting import wait_for
from vla_mot.hub.files import read_json, write_json
from vla_mot.hub.manifest import compare
from vla_mot.hub.native import read_spec

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess, pytest.mark.sim]

NAME, TASK = "org/policy", "pick the red block"
STEP = "conveyor_glance"
LAST = Path("checkpoints/last/pretrained_model")
TRAINING = ["--env_eval_freq=0", "--num_workers=0", "--batch_size=4", "--log_freq=1", "--policy.device=cpu"]
SMALL = ["--policy.chunk_size=4", "--policy.n_action_steps=4", '--policy.model={"offset_frames": 3}']
ROBOT = ["--robot.type=conveyor", f"--task={TASK}", "--fps=10"]


@pytest.fixture(scope="module")
def environment(repository, tmp_path_factory) -> CleanEnvironment:
    made = CleanEnvironment(tmp_path_factory.mktemp("clean") / "environment", repository)
    made.install("vla_mot[lerobot,conveyor]")
    made.install("lerobot_env_conveyor", "lerobot_robot_conveyor")
    return made


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Where everything is typed."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def online(hub, work) -> dict[str, str]:
    return client_environment(hub.url, work / "home", HF_TOKEN=OWNER)


def spec_of(checkpoint: Path) -> dict:
    return read_spec(checkpoint).config_dict()


def lines(diary: Path) -> list[list[float]]:
    """The actions that the robot has written down."""
    return [json.loads(line) for line in diary.read_text().splitlines()] if diary.exists() else []


@pytest.fixture(scope="module")
def dataset(three_datasets) -> list[str]:
    return ["--dataset.repo_id=tests/conveyor", f"--dataset.root={three_datasets / 'conveyor'}"]


@pytest.fixture(scope="module")
def scratch(environment, work, dataset) -> Path:
    """Two steps from random weights."""
    options = [
        "--policy.type=vla_mot",
        *SMALL,
        "--policy.push_to_hub=false",
        "--steps=2",
        "--output_dir=scratch",
    ]
    run([environment.program("lerobot-train"), *dataset, *TRAINING, *options], work)
    return work / "scratch"


@pytest.fixture(scope="module")
def resumed(environment, work, scratch, online) -> Path:
    """Two steps more, and what came of them on the Hub."""
    config = f"--config_path={scratch / LAST / 'train_config.json'}"
    options = ["--resume=true", "--steps=4", "--policy.push_to_hub=true", f"--policy.repo_id={NAME}"]
    run([environment.program("lerobot-train"), config, *options, "--policy.license=apache-2.0"], work, online)
    return scratch / LAST


@pytest.fixture(scope="module")
def adapted(environment, work, dataset, resumed) -> Path:
    """Two steps of an adapter on the policy."""
    options = [f"--policy.path={resumed}", "--policy.push_to_hub=false", "--steps=2", "--output_dir=adapted"]
    adapter = ["--peft.method_type=LORA", "--peft.r=4"]
    run([environment.program("lerobot-train"), *dataset, *TRAINING, *options, *adapter], work)
    return work / "adapted" / LAST


def test_the_extra_brings_the_plugin_and_pip_finds_nothing_wrong(environment, work, repository):
    run([*UV, "pip", "check", "--python", environment.program("python")], work)
    installed = {path.name.split("-")[0] for path in environment.site.glob("*.dist-info")}
    assert {"vla_mot", "lerobot_policy_vla_mot", "lerobot"} <= installed
    code = "import lerobot_policy_vla_mot, vla_mot; print(vla_mot.__file__)"
    assert Path(run([environment.program("python"), "-c", code], work).strip()).is_relative_to(
        environment.site
    )
    assert not list(environment.site.glob("_editable_impl_*")), "nothing of the checkout is on the path"


def test_lerobot_is_the_stock_release(environment):
    """Every one of its files has the hash by which it was published."""
    (record,) = environment.site.glob("lerobot-*.dist-info/RECORD")
    rows = [
        row for row in reader(record.read_text().splitlines()) if row[0].startswith("lerobot/") and row[1]
    ]
    assert len(rows) > 300
    for name, known, _ in rows:
        digest = sha256((environment.site / name).read_bytes()).digest()
        assert known == "sha256=" + urlsafe_b64encode(digest).decode().rstrip("="), name


def test_training_from_scratch_makes_a_whole_checkpoint(scratch, resumed):
    saved = scratch / "checkpoints" / "000002" / "pretrained_model"
    assert compare(saved) == []
    spec = read_spec(saved)
    assert (spec.robots[0].embodiment.fps, spec.robots[0].action_mode, spec.model.offset_frames) == (
        10,
        "abs",
        3,
    )


def test_a_run_resumes(scratch, resumed):
    before, after = scratch / "checkpoints" / "000002", scratch / "checkpoints" / "000004"
    assert resumed.resolve() == after / "pretrained_model"
    assert read_json(after / "training_state" / "training_step.json")["step"] == 4
    assert spec_of(after / "pretrained_model") == spec_of(before / "pretrained_model")
    weights = [load_file(at / "pretrained_model" / "model.safetensors") for at in (before, after)]
    assert not torch.equal(*(found["action.out_proj.weight"] for found in weights))
    assert torch.equal(*(found["tokenizer.latent_std"] for found in weights)), (
        "fitted once, to the first batch"
    )


def test_the_hub_has_the_policy_its_processors_and_its_card(hub, resumed, tmp_path):
    repository = hub.repositories["model", NAME]
    for name, content in repository.commits[repository.branches["main"]].items():
        (tmp_path / name).write_bytes(content)
    assert compare(tmp_path) == []
    assert (tmp_path / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    assert read_json(tmp_path / "policy_preprocessor.json") == read_json(resumed / "policy_preprocessor.json")
    card = (tmp_path / "README.md").read_text()
    assert "license: apache-2.0" in card and "- lerobot" in card and "- steps: 4" in card


def test_lerobot_eval_opens_the_policy_on_the_hub(environment, work, online, resumed):
    options = ["--env.type=conveyor", "--env.image_size=48", "--env.max_steps=6", "--output_dir=evaluated"]
    few = ["--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false", "--policy.device=cpu"]
    run([environment.program("lerobot-eval"), f"--policy.path={NAME}", *options, *few], work, online)
    assert read_json(work / "evaluated" / "eval_info.json")["overall"]["n_episodes"] == 1


@pytest.fixture(scope="module")
def together(environment, work, dataset, resumed) -> str:
    """What two processes say that train from the checkpoint, as accelerate has it without more being said: by DDP."""
    options = [f"--policy.path={resumed}", "--policy.push_to_hub=false", "--steps=2", "--output_dir=two"]
    command = [*two_processes(environment), "-m", "lerobot.scripts.lerobot_train"]
    return run([*command, *dataset, *TRAINING, *options], work)


def two_processes(environment) -> list:
    return [environment.program("torchrun"), "--standalone", "--nproc-per-node=2"]


def test_two_processes_train_from_a_checkpoint(work, resumed, together):
    assert "Effective batch size: 4 x 2 = 8" in together
    saved = work / "two" / LAST
    assert compare(saved) == []
    assert spec_of(saved) == spec_of(resumed)
    assert read_json(saved / "stats.json") == read_json(resumed / "stats.json")


def test_sharded_training_is_the_same(environment, work, dataset, resumed, together, repository):
    """Losses and gradient norms of FSDP are those of DDP, to the last digit that LeRobot prints."""
    options = [f"--policy.path={resumed}", "--policy.push_to_hub=false", "--steps=2", "--output_dir=sharded"]
    script = [repository / "tests" / "policy" / "sharded.py", "--save_checkpoint=false"]
    said = run([*two_processes(environment), *script, *dataset, *TRAINING, *options], work)
    assert "sharding: DistributedType.FSDP" in said
    logged = [re.findall(r"step:(\d+) .* loss:(\S+) grdn:(\S+)", text) for text in (said, together)]
    assert len(logged[0]) == 2 and logged[0] == logged[1]
    assert compare(work / "gathered") == []
    saved = [load_file(at / "model.safetensors") for at in (work / "gathered", work / "two" / LAST)]
    assert saved[0].keys() == saved[1].keys()
    for name, weight in saved[0].items():
        torch.testing.assert_close(weight, saved[1][name], atol=1e-4, rtol=1e-3)


def test_the_adapter_is_on_every_expert_and_nothing_else_was_saved(adapted):
    assert not (adapted / "model.safetensors").exists()
    weights = load_file(adapted / "adapter_model.safetensors")
    raised = {name for name, weight in weights.items() if ".lora_B." in name and weight.any()}
    for part in ("understanding.self_attn.q_proj", "generation.mlp.up_proj", "action.self_attn.o_proj"):
        assert any(f"experts.{part}." in name for name in raised), part
    assert any(".action.out_proj." in name for name in raised)
    assert {weight.shape[0] for name, weight in weights.items() if ".lora_A." in name} == {4}


def test_lerobot_rollout_drives_a_robot_with_an_adapted_policy(environment, work, adapted):
    options = ["--duration=1", "--return_to_initial_position=false", "--robot.diary=synchronous"]
    run([environment.program("lerobot-rollout"), f"--policy.path={adapted}", *ROBOT, *options], work)
    assert len(lines(work / "synchronous")) >= 3


def test_lerobot_rollout_chunks_in_real_time_behind_a_strangers_processor(environment, work, resumed):
    """The step is registered by the robot's plugin on import, and read from the pretrained preprocessor."""
    own = work / "with_a_step"
    run(["cp", "-rL", resumed, own], work)
    processor = read_json(own / "policy_preprocessor.json")
    processor["steps"].insert(0, {"registry_name": STEP, "config": {}})
    write_json(own / "policy_preprocessor.json", processor)
    options = ["--duration=1", "--return_to_initial_position=false", "--robot.diary=real_time"]
    chunks = ["--inference.type=rtc", "--inference.rtc.execution_horizon=2"]
    command = [environment.program("lerobot-rollout"), f"--policy.path={own}", *ROBOT, *options, *chunks]
    said = run(command, work)
    assert f"{STEP} saw" in said and "RTC inference thread stopped" in said
    assert len(lines(work / "real_time")) >= 3


def started(stack: ExitStack, command: list, work: Path, log: str) -> tuple[subprocess.Popen, Path]:
    """A process that is killed at the end, and the file that gets what it says."""
    out = stack.enter_context((work / log).open("w"))
    process = subprocess.Popen(list(map(str, command)), cwd=work, stdout=out, stderr=subprocess.STDOUT)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process, work / log


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_the_asynchronous_server_drives_lerobots_own_client(environment, work, resumed):
    """Our process around LeRobot's server; the client is theirs as it is."""
    python, port, diary = environment.program("python"), free_port(), work / "asynchronous"
    server = [python, "-m", "vla_mot.policy.async_server", "--host=127.0.0.1", f"--port={port}", "--fps=10"]
    client = [
        *(python, "-m", "lerobot.async_inference.robot_client", f"--server_address=127.0.0.1:{port}"),
        *("--policy_type=vla_mot", f"--pretrained_name_or_path={resumed}", "--actions_per_chunk=4"),
        *(*ROBOT, f"--robot.diary={diary}"),
    ]
    with ExitStack() as stack:
        serving, log = started(stack, server, work, "server.log")
        wait_for(lambda: "serving vla_mot policies" in log.read_text(), serving)
        driving, _ = started(stack, client, work, "client.log")
        wait_for(lambda: len(lines(diary)) >= 10, driving, limit=120)  # three chunks
        assert serving.poll() is None
    said = (work / "server.log").read_text()
    assert said.count("Running inference for observation") >= 3
    assert "Error in StreamActions" not in said
