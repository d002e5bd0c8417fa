"""`python -m client VERB`: the commands of a device."""

import argparse
import sys
from collections.abc import Sequence

from client.commands import infer, probe, serve_student, start
from common.errors import UserError

VERBS = (infer, serve_student, start, probe)  # each with add_parser(verbs), which sets `run`


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 2 with one line on stderr for a mistake of the user, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="python -m client", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # the shell's code for it


if __name__ == "__main__":
    sys.exit(main())
