"""Tensors and plain values on disk: safetensors with a JSON object in its header, never pickle."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open

from common.errors import UserError

if TYPE_CHECKING:  # importing torch takes seconds, and many processes write only text
    from torch import Tensor


class StorageError(UserError, OSError):
    """A file cannot be written, mostly because the disk is full; its old content is unchanged."""


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], values: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object as one safetensors file, atomically and durably; raises `StorageError`."""
    from safetensors.torch import save_file

    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with _replacing(path) as temporary:
        save_file(contiguous, temporary, metadata={"values": json.dumps(values)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Inverse of `write_tensors`; raises `UserError` when the file is missing or damaged."""
    with _opened(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        return tensors, _values(file)


def read_values(path: Path) -> dict[str, Any]:
    """Return the JSON object of `write_tensors` alone, without torch; raises `UserError` as `read_tensors`."""
    with _opened(path, "np") as file:
        return _values(file)


@contextlib.contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read: it is damaged, or no file of this project ({error})") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _values(file: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((file.metadata() or {}).get("values", "{}"))
    return found


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically and durably; raises `StorageError`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably; raises `StorageError`."""
    with _replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file durably, or nothing at all; raises `StorageError`."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)  # a later line must not be appended to half a line
        raise _unwritten(path, error) from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which replaces `path` once it is written."""
    # not the process id: two containers that share a folder may have the same; not `tempfile`: its files have mode 600
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield temporary
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise _unwritten(path, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder outlast a power cut, where the system can."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _unwritten(path: Path, error: Exception) -> StorageError:
    return StorageError(f"{path.name} cannot be written into {path.parent}: {error}")
