"""Write README's tables of measurements anew from `benchmarks/results`, or check that they are what the results say.

python -m benchmarks.readme [--check]
"""

import argparse
import sys

from benchmarks.readme.document import README, rendered, stale
from common.errors import UserError


def main() -> int:
    """Return the process's exit status: 1 if the check found a table that is not as the results have it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, name the tables that differ")
    options = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    try:
        names = list(stale(text))
        for name in names:
            print(f"{'differs from the results' if options.check else 'written anew'}: table {name}")
        if options.check:
            return int(bool(names))
        if names:
            README.write_text(rendered(text), encoding="utf-8")
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
