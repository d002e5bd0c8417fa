"""Register devices' public keys with a SuperLink: one process for all keys, since each `flwr` computes for a second.

`registration.py CONNECTION DEVICE FILE ...` prints, in the form of `flwr`'s JSON, the status that each key had before,
"" for a new one.
"""

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from click import ClickException
from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.supernode.register import try_load_public_key
from flwr.cli.utils import (
    cli_output_handler,
    flwr_cli_exc_handler,
    init_http_client_from_connection,
    print_json_to_stdout,
)
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest

TAKEN = "already in use"  # in Flower's error for a key that another process has registered meanwhile


def register(connection: str, keys: Mapping[str, bytes]) -> dict[str, str]:
    """Register the keys, by device, that the SuperLink never had; returns the status of each before.

    Raises `ClickException` if the SuperLink refuses one.
    """
    with closing(init_http_client_from_connection(read_superlink_connection(connection))) as client:
        with flwr_cli_exc_handler():
            nodes = client.ListNodes(ListNodesRequest()).nodes_info
        status = {node.public_key: node.status for node in nodes}
        found = {device: status.get(key, "") for device, key in keys.items()}
        for device in (device for device, before in found.items() if not before):
            try:
                with flwr_cli_exc_handler():
                    client.RegisterNode(RegisterNodeRequest(public_key=keys[device], name=device))
            except ClickException as error:
                if TAKEN not in error.message:
                    raise ClickException(f"the key of {device}: {error.message}") from error
    return found


def read_key(device: str, file: Path) -> bytes:
    """Return a device's public key; raises `ClickException`."""
    try:
        return try_load_public_key(file)
    except SystemExit as error:  # by which Flower ends its own command
        raise ClickException(f"{file} holds no public key of {device} that Flower takes: make it anew") from error


def main(name: str, *words: str) -> None:
    """Print what `register` returns, or what went wrong."""
    try:
        keys = {device: read_key(device, Path(file)) for device, file in zip(words[::2], words[1::2], strict=True)}
    except ClickException as error:
        print(json.dumps({"success": False, "error-message": error.message}))
        return
    with cli_output_handler("json"):
        print_json_to_stdout({"success": True, "status": register(name, keys)})


if __name__ == "__main__":
    main(*sys.argv[1:])
