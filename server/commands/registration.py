"""Register devices' public keys with a SuperLink: one process for all keys, since each `flwr` computes for a second.

`registration.py CONNECTION DEVICE FILE ...` prints, in the form of `flwr`'s JSON, the status that each key had before,
"" for a new one.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.supernode.register import try_load_public_key
from flwr.cli.utils import (
    cli_output_handler,
    flwr_cli_exc_handler,
    init_http_client_from_connection,
    print_json_to_stdout,
)
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest


def register(connection: str, files: Mapping[str, Path]) -> dict[str, str]:
    """Register the keys, by device, that the SuperLink never had; returns the status of each before."""
    keys = {device: try_load_public_key(file) for device, file in files.items()}
    client = init_http_client_from_connection(read_superlink_connection(connection))
    status = {node.public_key: node.status for node in client.ListNodes(ListNodesRequest()).nodes_info}
    found = {device: status.get(key, "") for device, key in keys.items()}
    for device, key in keys.items():
        if key not in status:
            client.RegisterNode(RegisterNodeRequest(public_key=key, name=device))
            status[key] = "registered"  # two devices' files may hold one key
    return found


if __name__ == "__main__":
    with cli_output_handler("json"), flwr_cli_exc_handler():
        name, *words = sys.argv[1:]
        given = {device: Path(file) for device, file in zip(words[::2], words[1::2], strict=True)}
        print_json_to_stdout({"success": True, "status": register(name, given)})
