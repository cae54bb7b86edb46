"""A checkpoint's manifest: the run that it belongs to, and a checksum of each of its files.

The manifest is written after the checkpoint is complete. It also holds a checksum of itself, so
that any changed byte in the checkpoint's folder is noticed.
"""

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.run.files import parse_record, to_json, write_whole
from train.run.owner import Owner

MANIFEST = "manifest.json"
_CHUNK = 1 << 20  # bytes
_THREADS = 8  # crc32 and reading release the GIL


class DamagedError(Exception):
    """A manifest that cannot be read or was changed."""


@dataclass(frozen=True)
class Manifest:
    """Content of a checkpoint's manifest.

    Attributes:
        owner: the run that wrote the checkpoint.
        files: [size in bytes, CRC-32 in hex] by the file's name.
    """

    owner: Owner
    files: dict[str, list[Any]]


def write_manifest(folder: Path, owner: Owner) -> None:
    """Write the manifest of a complete checkpoint; reads all of its files."""
    names = [f.name for f in sorted(folder.iterdir()) if f.is_file() and not _ours(f.name)]
    with ThreadPoolExecutor(_THREADS) as threads:
        sums = list(threads.map(lambda name: _checksum(folder / name), names))
    write_whole(folder / MANIFEST, _text(Manifest(owner, dict(zip(names, sums, strict=True)))))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint; None if it has none, as those of earlier versions.

    Raises:
        DamagedError: it is there, but not as it was written.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(f"its {MANIFEST} cannot be read ({error.strerror})") from error
    content = parse_record(raw) or {}
    try:
        manifest = Manifest(Owner(**content["run"]), content["files"])
        intact = _text(manifest).encode() == raw
    except (KeyError, TypeError):
        intact = False
    if not intact:
        raise DamagedError(f"its {MANIFEST} is damaged")
    return manifest


def damage(folder: Path, manifest: Manifest) -> str | None:
    """Why the files of a checkpoint are not those of its manifest; None if they are."""

    def reason(name: str) -> str | None:
        size, _ = expected = manifest.files[name]
        try:
            there = _checksum(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if there[0] < size:
            return f"{name} is truncated ({there[0]} of {size} bytes)"
        return None if there == expected else f"{name} is damaged (its checksum differs)"

    with ThreadPoolExecutor(_THREADS) as threads:
        return next(filter(None, threads.map(reason, manifest.files)), None)


def _ours(name: str) -> bool:
    return name == MANIFEST or name.startswith(f".{MANIFEST}.")  # the latter is being written


def _checksum(file: Path) -> list[Any]:
    size = crc = 0
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, f"{crc:08x}"]


def _text(manifest: Manifest) -> str:
    run = {"name": manifest.owner.name, "identity": manifest.owner.identity}
    content = {"run": run, "files": manifest.files}
    own = f"{zlib.crc32(to_json(content).encode()):08x}"
    return to_json({**content, "crc32": own}, indent=1) + "\n"
