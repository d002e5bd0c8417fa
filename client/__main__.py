"""`python -m client VERB`: the commands of a device."""

import sys
from collections.abc import Sequence

from common.console.verbs import Verb, call

COMPUTING = "client.commands.computing"
VERBS = {
    "infer": Verb("classify images with a stored model", COMPUTING, "add_infer"),
    "serve-student": Verb("answer with a student's features", COMPUTING, "add_serve_student"),
    "start": Verb("run a SuperNode on this device", "client.commands.start"),
    "probe": Verb("show this machine's depth and cut for every network", COMPUTING, "add_probe"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code of the verb that the arguments name."""
    return call("python -m client", __doc__, VERBS, arguments)


if __name__ == "__main__":
    sys.exit(main())
