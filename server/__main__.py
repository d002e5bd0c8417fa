"""`python -m server VERB`: run simulations, serve devices on other machines, and infer with them."""

import argparse
import sys
from collections.abc import Sequence

from common.errors import UserError
from server.commands import certificates, compare, env, offload, register, run, start, submit
from server.commands.distree import calibrate, infer, students

# each with add_parser(verbs), which sets `run`; `students` also adds the verb `teacher`
VERBS = (run, compare, env, certificates, start, register, submit, offload, students, calibrate, infer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 2 with one line on stderr for a `UserError`, 130 if interrupted, else the verb's."""
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
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
        return 130  # as a shell reports it


if __name__ == "__main__":
    sys.exit(main())
