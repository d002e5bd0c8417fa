"""`python -m server VERB`: run simulations, serve devices on other machines, and infer with them."""

import sys
from collections.abc import Sequence

from common.console.verbs import Verb, call

COMPUTING = "server.commands.computing"
VERBS = {
    "run": Verb("run one simulation to its end", "server.commands.run"),
    "compare": Verb("run several methods with one seed and show them side by side", "server.commands.compare"),
    "study": Verb("run methods x settings x seeds and show means and spreads", "server.commands.study"),
    "config": Verb("print every configuration key with its value and what it means", "server.commands.config"),
    "data": Verb("show what a run would read: classes, counts, samples per client", COMPUTING, "add_data"),
    "env": Verb(
        'print the environment for typing flwr commands: eval "$(python -m server env)"', "server.commands.env"
    ),
    "certificates": Verb("make the certificates and keys of a server and its devices", "server.commands.certificates"),
    "start": Verb("run a SuperLink for devices on other machines", "server.commands.start"),
    "register": Verb("register the keys of new devices with a SuperLink", "server.commands.register"),
    "submit": Verb("run the app on a SuperLink's devices", "server.commands.submit"),
    "export": Verb("write a finished network as ONNX graphs for devices without torch", COMPUTING, "add_export"),
    "offload": Verb("serve a split network's upper layers to devices", COMPUTING, "add_offload"),
    "teacher": Verb(
        "train a network with its last exit only, on the server's own images",
        COMPUTING,
        "add_students",
    ),
    "students": Verb("partition a teacher and train its students jointly", COMPUTING, "add_students"),
    "calibrate": Verb("fit finished students' exits to a target", COMPUTING, "add_calibrate"),
    "infer": Verb("classify with students on several devices", COMPUTING, "add_infer"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code of the verb that the arguments name."""
    return call("python -m server", __doc__, VERBS, arguments)


if __name__ == "__main__":
    sys.exit(main())
