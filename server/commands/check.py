"""Check a run before Flower or Ray start: its configuration, and what this machine knows of its folders and files."""

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from common import plugins
from common.config import RunConfig, Value
from common.errors import UserError
from common.paths import check_writable
from common.storage.run_files import read_stored, refuse_taken
from server.commands.launch import run_folder
from strategies.configuration import read_config, read_resumed, unread
from strategies.registry import readers


def check_run(
    values: Mapping[str, Value], root: Path, *, here: bool = True, strategies: Collection[str] = ()
) -> RunConfig:
    """Return the configuration of a new or a resumed run; raises `UserError` with all mistakes at once.

    Args:
        values: configuration keys, as `read_run` returns them.
        root: the folder of all runs, unless `run.root` names another.
        here: whether this is a simulation, whose server uses the files of this machine.
        strategies: that read the configuration; (): the configured one.
    """
    if values.get("run.resume") and not here:
        return read_config(values)
    if values.get("run.resume"):
        folder = run_folder(values, root)
        config = read_config(read_resumed(read_stored(folder), folder).flat(), file_mistakes)
        allow_plugins(config)
        return config

    def further(config: RunConfig) -> Iterator[str]:
        yield from unread(config, strategies)
        yield from _device_mistakes(config, simulation=here)
        if here:
            yield from _taken(run_folder(values, root))
            yield from file_mistakes(config)

    config = read_config(values, further)
    if here:
        allow_plugins(config)
    return config


def allow_plugins(config: RunConfig) -> None:
    """Allow the functions that a run on this machine names, and import them; raises `UserError`."""
    named = {"network.name": config.network.name, "data.name": config.data.name}
    plugins.allow(named.values())
    plugins.check(named, "this command")


def file_mistakes(config: RunConfig) -> Iterator[str]:
    """Yield a sentence for every folder or file of the run that is missing or cannot be used."""
    data, weights = config.data.root, config.network.pretrained
    if data and not Path(data).is_dir():
        yield f"data.root is {data!r}, which is no folder: correct it"
    elif data and not os.access(data, os.R_OK | os.X_OK):
        yield f"data.root is {data!r}, which this user cannot read: change its permissions"
    if Path(weights).is_absolute() and not (Path(weights).is_file() and os.access(weights, os.R_OK)):
        yield f"network.pretrained is {weights!r}, which is no readable file: give a .safetensors file or a hub id"
    teacher = str(config.flat()["distree.teacher"])
    if teacher and config.run.strategy in readers("distree") and not os.access(teacher, os.R_OK):
        yield f"distree.teacher is {teacher!r}, which cannot be read: give a finished run's folder or a model file"
    for key, folder in {"run.root": config.run.root, "clients.store": config.clients.store}.items():
        try:
            if folder:
                check_writable(Path(folder), f"set {key} to another folder")
        except UserError as error:
            yield f"{key}: {error}"


def _device_mistakes(config: RunConfig, *, simulation: bool) -> Iterator[str]:
    """Yield a sentence where devices are given for a deployment, which has real ones, or lack in a simulation."""
    section = config.clients
    if simulation and section.clock == "simulated" and not section.devices:
        yield "clients.clock is 'simulated': set clients.devices, such as pi4:0.6,laptop:0.4"
    if not simulation and section.devices:
        yield (
            f"clients.devices is {section.devices!r}, but real devices declare their own capacity: leave it empty "
            "(client start --capacity)"
        )


def _taken(folder: Path) -> Iterator[str]:
    try:
        refuse_taken(folder)
    except (UserError, OSError) as error:
        yield str(error)
