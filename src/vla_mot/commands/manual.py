"""What `--help` says: one entry per command, drawn with rich."""

from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_WIDTH = 100
_EXIT_CODES = (
    ("0", "done"),
    ("1", "it could not go on: a full disk, a dead data worker or rank, unanswered requests; or a defect"),
    ("2", "the input does not fit; the message says what was expected, what came, and where to fix it"),
    (
        "3",
        "training blew up: a loss or the weights are not finite, or useless; the last good checkpoint is kept",
    ),
    (
        "4",
        "training made no progress for train.safety.stuck_seconds; where, and all stacks, are in <run>/stuck/",
    ),
    (
        "75",
        "stopped by a scheduler's signal (SIGTERM, SIGUSR1, SIGUSR2); the last step is kept, to be resumed",
    ),
    ("130", "interrupted; the message says what was kept, if anything, and how to go on"),
)
_OPTIONS = (
    ("--config-dir DIR", "your own presets, beside the ones that come with vla-mot"),
    ("--cfg job", "print the composed configuration instead of running"),
    (
        "--multirun",
        "one run per combination of comma-separated values, in output/0, output/1, …; hydra/launcher=… submits them",
    ),
)


@dataclass(frozen=True)
class Command:
    """One command.

    name: the words after `vla-mot`. module: whose `run(config, overrides)` does it. config: its file in conf/.
    summary: one line. about: a paragraph. examples: lines. keys: (key, default, meaning) of what is changed most;
    the default is what the configuration composes to, `required` where it must be given, cut short by `…`.
    hub: keys whose value may name a Hub repository. Unless one does, the command keeps off the network.
    offline: False for a command that always needs it.
    positional: the key of a word that is no key=value. short: a name for a key that Hydra would take for a preset's.
    """

    name: str
    module: str
    config: str
    summary: str
    about: str
    keys: tuple[tuple[str, str, str], ...]
    examples: tuple[str, ...]
    hub: tuple[str, ...] = ()
    offline: bool = True
    positional: str | None = None
    short: tuple[tuple[str, str], ...] = ()


_OPENING = (
    ("checkpoint", "required", "a policy, checkpoint or run (its last checkpoint), or a Hub repository"),
    ("revision", "null", "branch, tag or commit on the Hub"),
    (
        "action_mode",
        "null",
        "of a released checkpoint's statistics: delta or abs; null: as it says, or delta",
    ),
    ("architecture", "null", "YAML file that completes a released checkpoint of an unpublished size"),
    ("embodiments", "[]", "YAML files that describe robots of a released checkpoint that are not known"),
)

COMMANDS = (
    Command(
        name="demo",
        module="vla_mot.commands.demo",
        config="demo",
        summary="the whole loop at small scale: data, training, evaluation, report",
        about=(
            "Records demonstrations of the embedded conveyor robot, trains a tiny policy on them, drives the robot "
            "with it and with four controls over the same scenes, scores what it foresees, and draws one HTML "
            "report. No network, no GPU. Run it again after an interruption: finished stages are kept, training "
            "goes on from its last checkpoint."
        ),
        keys=(
            ("output", "outputs/demo", "where everything lands"),
            ("scale", "null", "miniature: a minute or two, and a policy that has learned nothing"),
            ("train.seed", "0", "of weights, order and noise"),
            ("train.steps", "3000", "optimizer steps"),
            ("record.episodes", "300", "demonstrations"),
            ("evaluate.episodes", "200", "per arm"),
        ),
        examples=("vla-mot demo", "vla-mot demo output=/tmp/mini scale=miniature"),
    ),
    Command(
        name="data record",
        module="vla_mot.commands.record",
        config="record",
        summary="demonstrations of a simulated robot as a LeRobot v3 dataset",
        about=(
            "A scripted expert drives the robot; its motion is disturbed while the recorded actions stay clean, so "
            "that the data shows recoveries. Only successful episodes are kept, the number of dropped ones is said. "
            "Every scene is asked for with each instruction in turn. Recorded is what the embodiment lists: of "
            "conveyor_video pictures and instructions alone."
        ),
        keys=(
            ("output", "required", "the dataset's folder; must be new"),
            ("env", "conveyor", "the simulator (conf/env/)"),
            ("env.robot", "planar", "fingers: a drive per finger, another camera; hand: a person's"),
            ("embodiment", "conveyor", "what is recorded of it (conf/embodiment/), e.g. conveyor_fingers"),
            ("episodes", "200", "successful demonstrations"),
            ("seed", "0", "of the first scene"),
            ("static_fraction", "0.0", "share of the scenes in which nothing moves by itself"),
            ("env.image_size", "64", "pixels"),
            ("noise.tremor", "0.004", "m, deviation of the disturbance; further noise.* in conf/noise/"),
        ),
        examples=(
            "vla-mot data record env=conveyor output=outputs/conveyor",
            "vla-mot data record output=outputs/mixed episodes=400 static_fraction=0.5",
            "vla-mot data record env.robot=fingers embodiment=conveyor_fingers output=outputs/fingers",
            "vla-mot data record env.robot=hand embodiment=conveyor_video output=outputs/video",
        ),
    ),
    Command(
        name="data inspect",
        module="vla_mot.commands.inspect",
        config="inspect",
        summary="how a dataset maps to a robot, with pictures, and what does not fit",
        about=(
            "Prints what a LeRobot v3 dataset holds, where every dimension and camera goes, and all that does not fit; "
            "ends with exit code 2 then. With output=… it draws a page: frames t − m, t and t + m of every camera as "
            "the model sees them, and states and actions as recorded and as they are learned."
        ),
        keys=(
            ("root", "required", "the dataset's folder"),
            (
                "embodiment.name",
                "auto",
                "auto (the dataset's robot type), generic (inferred), or a name; in short embodiment=…",
            ),
            (
                "embodiment.files",
                "[]",
                "YAML files of robots that are not in conf/embodiment/, or folders of them",
            ),
            (
                "save_embodiment",
                "null",
                "a YAML file to write: to be corrected, and given in embodiment.files",
            ),
            ("output", "null", "folder of a page with pictures; must be new"),
            ("model", "a1_3b", "whose widths, slots, view and chunk are compared (conf/model/)"),
            ("action_mode", "delta", "or abs: how the page shows actions as they are learned"),
            ("episodes", "3", "of which the page shows pictures"),
        ),
        examples=(
            "vla-mot data inspect datasets/mine",
            "vla-mot data inspect datasets/mine embodiment=generic save_embodiment=robots/mine.yaml",
            "vla-mot data inspect root=datasets/mine embodiment.files=[robots/mine.yaml] output=outputs/mine",
        ),
        positional="root",
        short=(("embodiment", "embodiment.name"),),
    ),
    Command(
        name="data convert",
        module="vla_mot.commands.convert_dataset",
        config="convert_dataset",
        summary="a LeRobot v2.1 dataset as a new v3.0 one",
        about=(
            "Calls lerobot's own converter on a local folder, offline, and compares the result with the input before "
            "it is kept: number and lengths of episodes, and pictures of every camera. The input stays as it is."
        ),
        keys=(
            ("root", "required", "the v2.1 dataset's folder"),
            ("output", "required", "the v3.0 dataset's folder; must be new"),
        ),
        examples=("vla-mot data convert root=datasets/old output=datasets/new",),
    ),
    Command(
        name="data mixture",
        module="vla_mot.commands.mixture",
        config="mixture",
        summary="what a mixture of datasets resolves to: weights, frames, epochs, workers",
        about=(
            "Reads only the info file of every dataset. Says what each group and dataset weighs, how often its frames "
            "are seen, what a data worker holds, and whether the mixture that comes out is the one that was asked for."
        ),
        keys=(
            ("data", "mixture", "a preset (conf/data/), e.g. a1_pretrain, whose frames are declared"),
            ("data.root", "required", "folder of the datasets"),
            ("data.groups", "null", "name → {pattern, weight, by, exponent, embodiment, foresight_only}"),
            ("data.assignment", "exact", "or lpt, as published"),
            ("data.workers", "0", "data workers per rank"),
            ("ranks", "1", "processes that train"),
            ("steps", "700000", "of training, for the epochs; and batch_size"),
            ("manifest", "null", "a JSON file to write: dataset, revision, frames, weight"),
        ),
        examples=(
            "vla-mot data mixture data=a1_pretrain ranks=64 data.workers=8",
            "vla-mot data mixture data=conveyors data.root=outputs/three",
        ),
    ),
    Command(
        name="pretrain",
        module="vla_mot.commands.pretrain",
        config="pretrain",
        summary="train a policy on a mixture of LeRobot v3 datasets of several robots",
        about=(
            "Like posttrain, on a mixture: groups of datasets with weights, each dataset read as the robot that "
            "recorded it, videos without actions for foresight alone. The mixture comes out as asked for on any number "
            "of ranks and workers. resume=<run> goes on bit by bit, also with other workers as long as they divide "
            "data.shards."
        ),
        keys=(
            ("experiment", "null", "a whole preset (conf/experiment/): pretrain_tiny, pretrain_a1_3b"),
            ("data", "mixture", "a mixture (conf/data/); `vla-mot data mixture` shows one"),
            ("data.root", "required", "folder of the datasets"),
            ("output", "required", "the run's folder; must be new"),
            (
                "resume",
                "null",
                "a run's folder: go on with its own configuration; auto: with the run in output, if there is one",
            ),
            ("init_from", "null", "a policy, its run, or a Hub repository: start from its weights"),
            ("dry_run", "false", "only say what a step would be: batch, tokens, FLOPs, memory per rank"),
            ("ranks", "null", "how many ranks a dry run is for; null: as many as launched it"),
            ("model", "tiny", "a preset (conf/model/), which chooses backbone and foresight"),
            ("data.workers", "0", "processes that prepare batches"),
            (
                "data.statistics",
                "null",
                "a file of `vla-mot data stats`; null: computed when training starts",
            ),
            ("data.skip_broken", "0", "episodes or datasets that may be unreadable"),
            ("train.steps", "700000", "optimizer steps; further train.* in conf/train/"),
        ),
        examples=(
            "vla-mot pretrain experiment=pretrain_tiny data.root=outputs/three output=outputs/pretrained",
            "vla-mot pretrain resume=outputs/pretrained data.workers=2",
            "vla-mot posttrain experiment=conveyor data.root=… output=… init_from=outputs/pretrained",
        ),
        hub=("init_from", "backbone.weights"),
    ),
    Command(
        name="data stats",
        module="vla_mot.commands.stats",
        config="stats",
        summary="normalization statistics of one dataset, or of a mixture, per robot",
        about=(
            "Counts states over frames, and actions over the real chunk windows of the training episodes, and writes "
            "mean, deviation, extremes and quantiles of every robot, for data.statistics=… of a training run. What is "
            "counted of a dataset is kept: an interrupted command goes on, and one more dataset costs only itself."
        ),
        keys=(
            ("data.root", "required", "the dataset's folder; of a mixture, the folder of its datasets"),
            ("output", "required", "the file; must be new"),
            ("data", "lerobot", "or a mixture (conf/data/)"),
            ("embodiment", "null", "the robot (conf/embodiment/); null: what each dataset or its group says"),
            ("chunk_size", "50", "steps of a window: the model's chunk_size"),
            ("data.action_mode", "delta", "actions less the state at their window's start; or abs"),
            ("data.validation_fraction", "0.1", "share of the episodes that is left out, as training does"),
            ("jobs", "1", "processes; the result does not depend on it"),
            ("kept", "null", "folder of what is counted of each dataset; null: the user's cache folder"),
        ),
        examples=(
            "vla-mot data stats data.root=outputs/conveyor chunk_size=12 output=outputs/stats.json",
            "vla-mot data stats data=conveyors data.root=outputs/data chunk_size=12 jobs=2 output=outputs/stats.json",
        ),
    ),
    Command(
        name="posttrain",
        module="vla_mot.commands.posttrain",
        config="posttrain",
        summary="train a policy on one LeRobot v3 dataset",
        about=(
            "Writes checkpoints (safetensors, the LeRobot layout), log.jsonl and TensorBoard logs into the run's "
            "folder. Ctrl-C saves a checkpoint; resume=<run> goes on bit by bit. init_from=<policy> is another "
            "thing: a new run that starts from a policy's weights."
        ),
        keys=(
            ("experiment", "null", "a whole preset (conf/experiment/), e.g. conveyor"),
            ("data.root", "required", "the dataset's folder"),
            ("output", "required", "the run's folder; must be new"),
            (
                "resume",
                "null",
                "a run's folder: go on with its own configuration; auto: with the run in output, if there is one",
            ),
            ("init_from", "null", "a policy, its run, or a Hub repository: start from its weights"),
            ("dry_run", "false", "only say what a step would be: batch, tokens, FLOPs, memory per rank"),
            ("ranks", "null", "how many ranks a dry run is for; null: as many as launched it"),
            ("model", "tiny", "a preset (conf/model/), which chooses backbone and foresight"),
            ("backbone", "qwen3_vl_tiny", "another understanding expert (conf/backbone/)"),
            ("embodiment", "conveyor", "the robot of the dataset (conf/embodiment/)"),
            ("train.steps", "60000", "optimizer steps; further train.* in conf/train/"),
            (
                "foresight.offset_frames",
                "6",
                "distance of history and foresight; or foresight.offset_seconds",
            ),
            ("train.device", "cpu", "or cuda"),
        ),
        examples=(
            "vla-mot posttrain experiment=conveyor data.root=outputs/conveyor output=outputs/run",
            "vla-mot posttrain resume=outputs/run train.steps=5000",
            "vla-mot posttrain experiment=conveyor data.root=… output=… init_from=outputs/run",
        ),
        hub=("init_from", "backbone.weights"),
    ),
    Command(
        name="evaluate",
        module="vla_mot.commands.evaluate",
        config="evaluate",
        summary="closed loop over seeded episodes, with a confidence interval",
        about=(
            "Runs a policy in the simulator. An episode depends on its seed alone, so two evaluations with the same "
            "seeds are paired. Writes results.json, episodes.csv and a few videos. To compare with recordings instead: "
            "`vla-mot evaluate open_loop`."
        ),
        keys=(
            (
                "checkpoint",
                "null",
                "a policy, checkpoint or run (its last checkpoint), or a Hub repository; only the expert needs none",
            ),
            ("output", "required", "folder of results and videos; must be new"),
            ("episodes", "100", "how many"),
            ("seed", "100000", "of the first episode"),
            ("history", "past", "present: the history frame is replaced by the present one"),
            ("instruction", "own", "other: the other object's instruction"),
            ("controller", "policy", "untrained: random weights; expert: scripted, needs no checkpoint"),
            ("env", "conveyor", "the robot (conf/env/)"),
            ("robot", "null", "of a policy that knows several: conveyor_fingers, with env.robot=fingers"),
            ("n_action_steps", "null", "steps executed of each chunk; null: as the checkpoint says"),
            ("engine", "eager", "static or compiled; engine.understanding_every=2, … (docs/inference.md)"),
            ("delay_ms", "0", "simulated latency, from an observation to the arrival of its chunk"),
            ("chunks", "naive", "ensemble or rtc: what is done with chunks in time (docs/real_time.md)"),
            ("dataset", "null", "a LeRobot dataset: foresight is scored on it too"),
        ),
        examples=(
            "vla-mot evaluate checkpoint=outputs/run output=outputs/run/evaluation",
            "vla-mot evaluate checkpoint=outputs/run output=outputs/no_history history=present",
            "vla-mot evaluate checkpoint=outputs/run output=outputs/late delay_ms=200 chunks=rtc",
            "vla-mot evaluate controller=expert output=outputs/expert env.motion=static",
        ),
        hub=("checkpoint",),
    ),
    Command(
        name="evaluate open_loop",
        module="vla_mot.commands.open_loop",
        config="open_loop",
        summary="predicted beside recorded chunks on any dataset, in numbers and pictures",
        about=(
            "Asks a policy for a chunk at moments of recordings, every chunk_size frames, and compares it with what "
            "was done: squared and absolute error per dimension in physical units, per horizon step and embodiment, "
            "joints and grippers apart, beside holding still; PSNR and SSIM of the foreseen pictures, beside copying "
            "the last frame. Writes errors.csv, foresight.csv, open_loop.json and one HTML page (docs/open_loop.md). "
            "Every dataset is read as its own robot; videos without actions are scored for foresight alone."
        ),
        keys=(
            (
                "checkpoint",
                "required",
                "a policy, checkpoint or run (its last checkpoint), or a Hub repository",
            ),
            ("dataset", "required", "a LeRobot dataset, a folder of datasets, or [one,another]"),
            ("output", "required", "folder of tables, plots and the page; must be new"),
            ("robot", "null", "read every dataset as this one; null: by its robot type"),
            ("episodes", "10", "the first ones of each dataset; null: all"),
            ("held_out", "false", "true: only of those that the checkpoint's run held out"),
            ("stride", "null", "frames between two moments; null: one chunk"),
            ("plots", "2", "episodes of each dataset that are drawn"),
            ("rerun", "false", "true: the drawn episodes as open_loop.rrd, too (extra `rerun`)"),
            ("num_steps", "null", "of the sampler; and solver"),
            ("engine", "eager", "static or compiled (docs/inference.md)"),
            ("device", "cpu", "where it computes"),
        ),
        examples=(
            "vla-mot evaluate open_loop checkpoint=outputs/run dataset=outputs/conveyor output=outputs/open_loop",
            "vla-mot evaluate open_loop checkpoint=outputs/run dataset=outputs/three output=outputs/all episodes=null",
            "vla-mot evaluate open_loop checkpoint=outputs/run dataset=outputs/conveyor output=outputs/rrd rerun=true",
        ),
        hub=("checkpoint",),
    ),
    Command(
        name="report",
        module="vla_mot.commands.report",
        config="report",
        summary="one self-contained HTML page about a run",
        about=(
            "Draws what the run logged (losses, also by dataset and robot; validation in physical units with its "
            "newest picture; gradient norms, rates, utilisation), success of every evaluation found under the run, and "
            "foresight beside the truth and beside copying the last frame, as far as they are there."
        ),
        keys=(
            ("run", "required", "the folder of a run or of a demo"),
            ("output", "null", "the page; null: <run>/report.html"),
        ),
        examples=("vla-mot report run=outputs/demo",),
    ),
    Command(
        name="info",
        module="vla_mot.commands.info",
        config="info",
        summary="what a checkpoint is: model, robot, statistics, sampler",
        about="Prints what a policy was made for, without running it.",
        keys=_OPENING,
        examples=(
            "vla-mot info checkpoint=outputs/demo/policy",
            "vla-mot info checkpoint=InternRobotics/InternVLA-A1-3B",
        ),
        hub=("checkpoint",),
    ),
    Command(
        name="verify",
        module="vla_mot.commands.verify",
        config="verify",
        summary="whether a checkpoint is whole and answers as it did when it was written",
        about=(
            "Compares every file with its recorded hash, loads every weight, looks at the statistics, and replays the "
            "small golden observation that was stored with the policy. Ends with exit code 2 when anything fails, so "
            "that a broken pipeline is found before a robot moves."
        ),
        keys=(*_OPENING, ("device", "cpu", "where the golden observation is replayed")),
        examples=("vla-mot verify checkpoint=outputs/demo/policy",),
        hub=("checkpoint",),
    ),
    Command(
        name="serve",
        module="vla_mot.commands.serve",
        config="serve",
        summary="a policy behind a websocket, for robots and simulators elsewhere",
        about=(
            "Speaks openpi's websocket protocol (msgpack with numpy arrays), so that its clients work unchanged; ours, "
            "packages/vla_mot_client, needs no torch. Clients have sessions of their own and share batches. Listens "
            "on this machine alone unless told otherwise, and on others only with a token. SIGTERM answers what "
            "came and ends. docs/serving.md has the messages."
        ),
        keys=(
            *_OPENING,
            ("robot", "null", "one that the checkpoint knows; null: all of them"),
            ("device", "cpu", "where it computes"),
            ("engine", "eager", "static or compiled: the same actions, faster (docs/inference.md)"),
            ("host", "127.0.0.1", "address to listen on"),
            ("port", "8000", "0: any that is free"),
            (
                "token_file",
                "null",
                "file with the token; null: the environment variable VLA_MOT_TOKEN, or none",
            ),
            ("tls_cert", "null", "PEM file; and tls_key"),
            ("max_batch", "8", "requests of different clients that are predicted together"),
            ("deadline_ms", "null", "answers that come later are errors, unless a request says otherwise"),
        ),
        examples=(
            "vla-mot serve checkpoint=outputs/demo/policy",
            "vla-mot serve checkpoint=runs/a device=cuda host=0.0.0.0 token_file=token tls_cert=a.pem tls_key=b.pem",
        ),
        hub=("checkpoint",),
    ),
    Command(
        name="convert",
        module="vla_mot.commands.convert",
        config="convert",
        summary="a checkpoint into another layout or dtype",
        about=(
            "Turns a released checkpoint (config types qwena1 and interna1) into ours, and such a one back, without "
            "loss. Ours gets hashes and a golden observation, which `vla-mot verify` replays."
        ),
        keys=(
            *_OPENING,
            ("output", "required", "the new checkpoint's folder; must be new"),
            ("layout", "native", "or released: the authors' layout, for a checkpoint that came from it"),
            ("dtype", "null", "float32 or bfloat16; null: as stored"),
        ),
        examples=(
            "vla-mot convert checkpoint=InternRobotics/InternVLA-A1-3B output=outputs/a1_3b",
            "vla-mot convert checkpoint=outputs/a1_3b output=outputs/as_released layout=released",
        ),
        hub=("checkpoint",),
    ),
    Command(
        name="export",
        module="vla_mot.commands.export",
        config="export",
        summary="a policy as programs without vla_mot: torch.export, ONNX, AOTInductor",
        about=(
            "Writes prefill (pictures, state, instruction to keys and values) and denoise (one velocity), with "
            "program.json, which says what goes in and comes out and how a robot's numbers are normalized, and golden "
            "answers; then opens them and compares. ExportedPolicy runs such a folder like any policy."
        ),
        keys=(
            *_OPENING,
            ("output", "required", "folder of the programs; must be new"),
            ("format", "torch_export", "onnx, or aoti: compiled ahead of time for this kind of machine"),
            (
                "stages",
                "['prefill', 'denoise']",
                "also sample (all steps in one), encode (frames to latents)",
            ),
            ("batch", "1", "robots at once; null: any number"),
            ("device", "cpu", "where the programs run; ONNX runs anywhere"),
            ("dtype", "null", "float32 or bfloat16; null: as stored, or float32 for ONNX"),
            ("robot", "null", "the embodiment, where the policy knows several; embodiment=… is the same"),
            ("check", "true", "open what was written and replay the golden answers"),
        ),
        examples=(
            "vla-mot export checkpoint=outputs/demo/policy output=outputs/program",
            "vla-mot export checkpoint=outputs/demo/policy output=outputs/onnx format=onnx batch=null",
        ),
        hub=("checkpoint",),
        short=(("embodiment", "robot"),),
    ),
    Command(
        name="push",
        module="vla_mot.commands.push",
        config="push",
        summary="a checkpoint to the Hugging Face Hub, with a model card filled from its run",
        about=(
            "Uploads the checkpoint's files as they are, and a README.md that says what they are: robots, cameras, "
            "chunk, training, validation losses, and the success that evaluations under the run found for this very "
            "checkpoint. Everything is checked before anything is sent. Log in first: `hf auth login`, or HF_TOKEN."
        ),
        keys=(
            ("checkpoint", "required", "a policy, checkpoint or run (its last checkpoint)"),
            ("repo", "required", "org/name; made when it does not exist"),
            ("license", "required", "of the weights, as the Hub spells it: apache-2.0, cc-by-nc-sa-4.0, …"),
            ("private", "null", "true or false; null: as the repository is, or the account's default"),
            ("revision", "null", "a branch, made when it does not exist"),
            ("message", "Upload a …", "of the commit"),
        ),
        examples=(
            "vla-mot push checkpoint=outputs/run repo=org/name license=apache-2.0",
            "vla-mot push checkpoint=outputs/run/checkpoints/000500 repo=org/name license=mit revision=trial",
        ),
        offline=False,
    ),
)


def show_overview(group: str | None = None) -> None:
    """Print every command with its summary (only those of a group such as `data`)."""
    console = _console()
    console.print(Text("vla-mot", style="bold") + Text(": one model that understands, foresees and acts."))
    console.print("\nUsage: vla-mot <command> [key=value …]\n", markup=False)
    shown = [c for c in COMMANDS if group is None or c.name.split()[0] == group]
    _print_rows(console, [(command.name, command.summary) for command in shown])
    console.print("\n`vla-mot <command> --help` says more; `vla-mot --version` says which version this is.")


def show_command(command: Command) -> None:
    """Print what a command does, its most used keys, examples and exit codes."""
    console = _console()
    console.print(Text(f"vla-mot {command.name}", style="bold") + Text(f": {command.summary}\n"))
    console.print(command.about)
    _heading(console, "Usage")
    console.print(f"  vla-mot {command.name} [key=value …] [options]", markup=False)
    if command.positional:
        console.print(
            f"  vla-mot {command.name} <{command.positional}> [key=value …] [options]", markup=False
        )
    _heading(
        console,
        f"Keys used most (all of them: vla-mot {command.name} --cfg job, or conf/{command.config}.yaml)",
    )
    table = _grid()
    for key, default, meaning in command.keys:
        table.add_row(Text(key, style="cyan"), Text(default, style="dim"), Text(meaning))
    console.print(Padding(table, (0, 0, 0, 2)))
    _heading(console, "Options")
    _print_rows(console, _OPTIONS)
    _heading(console, "Examples")
    for example in command.examples:
        console.print(f"  {example}", markup=False, soft_wrap=True)
    _heading(console, "Exit codes")
    _print_rows(console, _EXIT_CODES)


def _console() -> Console:
    console = Console(highlight=False)
    console.width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    return console


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def _print_rows(console: Console, rows: tuple[tuple[str, str], ...] | list[tuple[str, str]]) -> None:
    table = _grid()
    for left, right in rows:
        table.add_row(Text(left, style="cyan"), Text(right))
    console.print(Padding(table, (0, 0, 0, 2)))


def _grid() -> Table:
    return Table.grid(padding=(0, 3, 0, 0))
