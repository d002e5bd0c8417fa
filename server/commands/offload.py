"""`python -m server offload`: serve the server's layers of a finished split training run to its devices."""

import argparse
import shlex
import tomllib
from pathlib import Path

from common.devices import keep_memory, pick_device
from common.errors import UserError
from common.paths import store_root
from common.rpc import standalone
from common.rpc.channels import Limits
from common.rpc.methods import SPLIT
from common.storage.model_file import FILE, StoredModel, load_model
from strategies.hetero_splitee.offload import Suffixes
from strategies.hetero_splitee.prior import counts_of
from strategies.hetero_splitee.service import Expected, SplitService
from strategies.hetero_splitee.statistics import SERVER_HALF, statistics_of

CALLS = 64  # open at a time; one is computed, the others wait


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM. Raises `UserError` before anything starts."""
    if options.batch < 1:
        raise UserError(f"--batch {options.batch}: give 1 or more")
    stored = load_server(options.model)
    keep_memory()
    try:
        running = statistics_of(stored.others)
        counts = counts_of(stored.others, stored.network.num_classes)
    except ValueError as error:
        raise UserError(f"--model {options.model} does not hold a whole model: {error}") from error
    suffixes = Suffixes(stored.network, pick_device(options.device), running, counts)
    folder = options.model if options.model.is_dir() else options.model.parent
    reached = standalone.access(options, folder, "offload.token")
    expected = Expected(stored.run, suffixes.shapes, stored.network.num_classes, options.batch)
    service = SplitService(expected, suffixes.logits, offloads=CALLS)
    limits = Limits(suffixes.message_bytes(options.batch), CALLS)
    device = _a_device(options.model, stored.run)
    standalone.serve_until_stopped(
        service.register, SPLIT, reached, limits, lambda address: _next_command(address, reached, device)
    )
    return 0


def load_server(path: Path) -> StoredModel:
    """Return the finished network of a split training run; raises `UserError` for another model."""
    stored = load_model(path)
    if stored.cut:
        raise UserError(f"--model {path} is a device's part: give the run's folder, which holds the server's layers")
    if not stored.values.get(SERVER_HALF):
        raise UserError(f"--model {path} is not a split training run: give a run of run.strategy=hetero_splitee")
    return stored


def _next_command(address: str, reached: standalone.Access, device: Path) -> str:
    """Return what to type on a device."""
    words = ["python", "-m", "client", "infer", "--mode", "split", "--server", address]
    words += ["--token-file", str(reached.token_file)]
    if reached.certificate_file:
        words += ["--certificate", str(reached.certificate_file)]
    return shlex.join([*words, "--model", str(device), "--images", "FOLDER"])


def _a_device(model: Path, run: str) -> Path:
    """Return the folder of a device that keeps its part on this machine, else a placeholder."""
    try:
        stored = tomllib.loads((model / "config.toml").read_text(encoding="utf-8"))["clients"]["store"]
    except (OSError, ValueError, KeyError):
        stored = ""
    found = sorted(file.parent for file in (store_root(stored) / run).glob(f"client-*/{FILE}"))
    return found[0] if found else Path("DEVICE_FOLDER")
