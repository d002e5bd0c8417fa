"""Write README's table of methods and benchmarks/RESULTS.md anew from `benchmarks/results`, or check them.

python -m benchmarks.tables [--check]
"""

import argparse
import sys

from benchmarks.tables.document import README, RESULTS, TEMPLATE, rendered, results
from common.errors import UserError


def main() -> int:
    """Return the process's exit status: 1 if the check found a document that differs from the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, name the documents that differ")
    options = parser.parse_args()
    differ = False
    try:
        wanted = {
            README: rendered(README.read_text(encoding="utf-8")),
            RESULTS: results(TEMPLATE.read_text(encoding="utf-8")),
        }
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    for file, text in wanted.items():
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            differ = True
            print(f"{'differs from the results' if options.check else 'written anew'}: {file.name}")
            if not options.check:
                file.write_text(text, encoding="utf-8")
    return int(differ and options.check)


if __name__ == "__main__":
    raise SystemExit(main())
