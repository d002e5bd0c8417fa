"""`python -m server offload`: serve a finished split training run's layers to its devices.

Devices ask with `python -m client infer --mode split`. No run is live then, so both sides share a token in a file: copy
it to every device, and off loopback the certificate too. With the token, gRPC's health service and
reflection answer here as well.
"""

import argparse
import shlex
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from common.devices import keep_memory, pick_device
from common.errors import UserError
from common.paths import store_root
from common.rpc import standalone
from common.rpc.channels import Limits
from common.rpc.methods import SPLIT
from common.storage.model_file import FILE, StoredModel, load_model
from strategies.hetero_splitee.offload import Suffixes
from strategies.hetero_splitee.service import Expected, SplitService
from strategies.hetero_splitee.statistics import SERVER_HALF, statistics_by_cut

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

CALLS = 64  # at a time; one is computed, the others wait


def add_parser(verbs: "Verbs") -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("offload", help="answer devices that infer with a split network", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a finished split training run's folder")
    standalone.add_options(parser)
    parser.add_argument("--batch", type=int, default=64, help="images that a call may bring (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM. Raises `UserError` before anything starts."""
    if options.batch < 1:
        raise UserError(f"--batch {options.batch}: give 1 or more")
    bundle = load_server(options.model)
    keep_memory()
    try:
        statistics = statistics_by_cut(bundle.others)
    except ValueError as error:
        raise UserError(f"{options.model} does not hold a whole model: {error}") from error
    suffixes = Suffixes(bundle.network, pick_device(options.device), statistics)
    folder = options.model if options.model.is_dir() else options.model.parent
    reached = standalone.access(options, folder, "offload.token")
    expected = Expected(bundle.run, suffixes.shapes, bundle.network.num_classes, options.batch)
    service = SplitService(expected, suffixes.logits, offloads=CALLS)
    limits = Limits(suffixes.message_bytes(options.batch), CALLS)
    device = _a_device(options.model, bundle.run)
    standalone.serve_until_stopped(
        service.register, SPLIT, reached, limits, lambda address: _next_command(address, reached, device)
    )
    return 0


def load_server(path: Path) -> StoredModel:
    """Return a split training run's finished network; raises `UserError` when this is another model."""
    bundle = load_model(path)
    if bundle.cut:
        raise UserError(f"{path} is a device's part: give --model the run's folder, it holds the server's layers")
    if not bundle.values.get(SERVER_HALF):
        raise UserError(f"{path} is no split training run (run.strategy hetero_splitee): no device has a cut of it")
    return bundle


def _next_command(address: str, reached: standalone.Access, device: Path) -> str:
    """Return what to type on a device."""
    words = ["python", "-m", "client", "infer", "--mode", "split", "--server", address]
    words += ["--token-file", str(reached.token_file)]
    if reached.certificate_file:
        words += ["--certificate", str(reached.certificate_file)]
    return shlex.join([*words, "--model", str(device), "--images", "FOLDER"])


def _a_device(model: Path, run: str) -> Path:
    """Return the folder of a device that has stored its part on this machine, else what stands for one."""
    try:
        stored = tomllib.loads((model / "config.toml").read_text())["clients"]["store"]
    except (OSError, tomllib.TOMLDecodeError, KeyError):
        stored = ""
    found = sorted(file.parent for file in (store_root(stored) / run).glob(f"client-*/{FILE}"))
    return found[0] if found else Path("DEVICE_FOLDER")
