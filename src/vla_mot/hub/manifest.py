"""`manifest.json`: what a checkpoint consists of, so that a changed, missing or added file is found."""

from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath

from vla_mot.errors import CheckpointError
from vla_mot.hub.files import read_json, sha256, write_json
from vla_mot.hub.lerobot_processors import PROCESSOR_FILES
from vla_mot.version import __version__

MANIFEST_FILE, FORMAT = "manifest.json", 1
EVERYTHING = ("**",)
_PACKAGES = ("torch", "transformers", "diffusers", "safetensors")
_FREE = (MANIFEST_FILE, "README.md", ".gitattributes", "train_config.json")  # may be written or edited later
_LEROBOT = (
    PROCESSOR_FILES.keys()
)  # lerobot-train writes them again, with its own device; nothing of ours reads them
_STATES = tuple(
    f"{Path(name).stem}_step_" for name in PROCESSOR_FILES
)  # and the normalizers' numbers beside them


@dataclass(frozen=True)
class Manifest:
    """versions: package → version that wrote the checkpoint. files: name → (SHA-256, bytes).

    covers: patterns of the files that belong to it, each of one folder, `**` for all that there are.
    """

    versions: dict[str, str]
    files: dict[str, tuple[str, int]]
    covers: tuple[str, ...] = EVERYTHING


def write_manifest(folder: Path, covers: tuple[str, ...] = EVERYTHING) -> None:
    """Hash every file of the folder that it covers. What else lies there, a licence or a film, is nobody's business."""
    found = {name: (folder / name) for name in _names(folder, covers)}
    write_json(
        folder / MANIFEST_FILE,
        {
            "format": FORMAT,
            "versions": versions(),
            "covers": list(covers),
            "files": {
                name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in found.items()
            },
        },
    )


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json`. Raises CheckpointError when it is missing, damaged or of a later format."""
    content = read_json(folder / MANIFEST_FILE)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / MANIFEST_FILE} is of format {content.get('format')!r}, this vla_mot reads {FORMAT}; "
            "install a newer vla_mot."
        )
    try:
        files = {
            str(name): (str(told["sha256"]), int(told["bytes"])) for name, told in content["files"].items()
        }
        versions = {str(name): str(told) for name, told in content["versions"].items()}
        covers = tuple(map(str, content.get("covers", EVERYTHING)))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{folder / MANIFEST_FILE} is damaged ({error!r}).") from error
    return Manifest(versions, files, covers)


def compare(folder: Path) -> list[str]:
    """What differs between a folder and its manifest, as sentences; empty when nothing does."""
    manifest = read_manifest(folder)
    present = set(_names(folder, manifest.covers))
    problems = [f"{name} is missing" for name in manifest.files if name not in present]
    problems += [f"{name} is not in the manifest" for name in sorted(present - manifest.files.keys())]
    for name, (digest, size) in manifest.files.items():
        if name not in present or name in _LEROBOT:
            continue
        if (found := (folder / name).stat().st_size) != size:
            problems.append(f"{name} has {found:,} bytes instead of {size:,}")
        elif sha256(folder / name) != digest:
            problems.append(f"{name} was changed: its SHA-256 is another one")
    return problems


def identity(folder: Path) -> str | None:
    """One hash for all that a checkpoint consists of, None for a folder without a manifest.

    It tells checkpoints apart wherever they lie. It trusts the manifest: `compare` looks at the files.
    """
    file = folder / MANIFEST_FILE
    return sha256(file) if file.is_file() else None


def _names(folder: Path, covers: tuple[str, ...]) -> list[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in files
        if path.as_posix() not in _FREE
        and not path.name.startswith(_STATES)
        and not any(part.startswith(".") for part in path.parts)
        and any(_covered(path, pattern) for pattern in covers)
    )


def _covered(path: PurePath, pattern: str) -> bool:
    wanted = PurePath(pattern)
    return pattern in EVERYTHING or (path.parent == wanted.parent and fnmatch(path.name, wanted.name))


def versions() -> dict[str, str]:
    """Package → version of what writes checkpoints here."""
    found = {"vla_mot": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
