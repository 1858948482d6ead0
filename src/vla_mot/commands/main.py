"""`vla-mot <command> key=value …`: finds the command, and turns every error into a sentence and an exit code.

Nothing heavy is imported before a command is known to be asked for properly, so that `--help` is quick.
"""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vla_mot.commands.manual import COMMANDS, Command, show_command, show_overview
from vla_mot.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    DataWorkerError,
    JobError,
    NonFiniteLossError,
    RankLostError,
    TrainingStoppedError,
    unknown_name,
)
from vla_mot.version import __version__

OK, FAILED, BAD_INPUT, NOT_FINITE, STOPPED, INTERRUPTED = 0, 1, 2, 3, os.EX_TEMPFAIL, 130
TRACEBACK = "VLA_MOT_TRACEBACK"
_EXTRAS = dict.fromkeys(("gymnasium", "pymunk", "pygame"), "conveyor") | dict.fromkeys(
    ("lerobot", "datasets", "av", "pyarrow", "matplotlib", "tensorboard"), "lerobot"
)
_EXTRAS |= dict.fromkeys(("hydra_submitit_launcher", "submitit"), "slurm") | {"peft": "peft"}
_EXTRAS |= dict.fromkeys(("websockets", "msgpack"), "serve") | {"rerun": "rerun"}
_EXTRAS |= dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export")
_HELP = ("-h", "--help")
_TRAINING = ("pretrain", "posttrain")
_ADVICE_TRAINING = (
    "train.parallel.micro_batch=1 and train.parallel.recompute=full need less, and docs/low_memory.md knows more; "
    "dry_run=true says beforehand what a rank will need."
)
_ADVICE = (
    "Smaller batches or a narrower dtype need less, where this command has them (--help); or another device."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.

    0 done, 1 an error that is neither input nor the rest, 2 input that does not fit, 3 a loss that is not finite,
    4 training made no progress, 75 stopped by a signal after a checkpoint was written, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _explained():
            _dispatch(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else OK if end.code is None else FAILED
    return OK


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in _HELP:
        return show_overview()
    if arguments[0] in ("--version", "-V"):
        return print(f"vla-mot {__version__}")  # noqa: T201
    command, rest = _find(arguments)
    if command is None:
        return show_overview(group=arguments[0])
    if any(word in _HELP for word in rest):
        return show_command(command)
    _keep_quiet()
    from vla_mot.commands.hydra_app import run_command
    from vla_mot.commands.repositories import named

    def task(config: dict, overrides: list[str]) -> None:
        # Inside Hydra, where an exception would be printed with Hydra's own frames.
        with _explained(command):
            if command.offline and not named(command.hub, config, rest):
                _go_offline()
            importlib.import_module(command.module).run(config, overrides)

    run_command(command, rest, task)


def _find(arguments: list[str]) -> tuple[Command | None, list[str]]:
    """The command that the first words name, and what follows; None for a group such as `data` alone.

    Of `evaluate` and `evaluate open_loop` the longer one is meant where all its words are there.
    """
    for command in sorted(COMMANDS, key=lambda command: -len(command.name.split())):
        words = command.name.split()
        if arguments[: len(words)] == words:
            _require_no_word(command, arguments[len(words) :])
            return command, arguments[len(words) :]
    groups = {command.name.split()[0] for command in COMMANDS if " " in command.name}
    if arguments[0] in groups:
        if len(arguments) == 1 or arguments[1] in _HELP:
            return None, []
        known = [c.name for c in COMMANDS if c.name.startswith(f"{arguments[0]} ")]
        raise ConfigError(unknown_name("command", " ".join(arguments[:2]), known))
    raise ConfigError(unknown_name("command", arguments[0], [command.name for command in COMMANDS]))


def _require_no_word(command: Command, rest: list[str]) -> None:
    """Raise ConfigError for a word behind `evaluate`, say, that belongs to no longer command."""
    longer = [other.name for other in COMMANDS if other.name.startswith(f"{command.name} ")]
    if longer and rest and rest[0].replace("_", "").isalpha():
        raise ConfigError(unknown_name("command", f"{command.name} {rest[0]}", longer))


@contextmanager
def _explained(command: Command | None = None) -> Iterator[None]:
    """Turn an exception into a message on stderr and a `SystemExit` with its code. command: what runs, if it does."""
    try:
        yield
    except (ConfigError, DatasetError, CheckpointError) as error:
        _say(error)
        raise SystemExit(BAD_INPUT) from error
    except NonFiniteLossError as error:
        _say(error)
        raise SystemExit(NOT_FINITE) from error
    except TrainingStoppedError as stop:
        sys.stderr.write(f"\n{stop}.\n")
        raise SystemExit(STOPPED) from stop
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"\ninterrupted. {interrupt}".rstrip() + "\n")
        raise SystemExit(INTERRUPTED) from interrupt
    except ModuleNotFoundError as error:
        if (extra := _EXTRAS.get((error.name or "").split(".")[0])) is None:
            raise
        _say(
            ConfigError(f"this needs {error.name!r}, which is not installed: pip install 'vla-mot[{extra}]'.")
        )
        raise SystemExit(BAD_INPUT) from error
    except (DataWorkerError, RankLostError, JobError, OSError) as error:
        _say(error)  # a killed process, a full disk, a folder that may not be written, a job that failed
        raise SystemExit(FAILED) from error
    except Exception as error:
        if _is_out_of_memory(error):
            error.add_note(_ADVICE_TRAINING if command and command.name in _TRAINING else _ADVICE)
            _say(error)
            raise SystemExit(FAILED) from error
        traceback.print_exc()
        sys.stderr.write(
            f"\nunexpected {type(error).__name__}: this is a defect of vla-mot; please report it.\n"
        )
        raise SystemExit(FAILED) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a device had no room. Torch is not imported for that: who met it has done so."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _say(error: Exception) -> None:
    if os.environ.get(TRACEBACK):
        traceback.print_exc()
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", []))
    sys.stderr.write(f"error: {error}{notes}\n")


def _keep_quiet() -> None:
    """No windows, no sound, no telemetry, no warnings about threads; and data sets are local folders."""
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    # Where they are installed, diffusers imports them, and they warn of what nobody here asks for.
    for name in ("bitsandbytes", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _go_offline() -> None:
    """Nothing that this command was asked for lies on the network; keep the libraries from looking there.

    They read this when they are imported, so it is decided before the command's module is.
    """
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")


if __name__ == "__main__":
    sys.exit(main())
