"""What commands import."""

import json
import subprocess
import sys
from collections.abc import Sequence

HEAVY = ("flwr", "ray", "torch", "torchvision")  # each takes a second or more
SCRIPT = """
import json, sys
from importlib import import_module
main, codes = import_module(sys.argv[1] + ".__main__").main, []
for words in json.loads(sys.argv[2]):
    try:
        codes.append(main(words))
    except SystemExit as ended:
        codes.append(ended.code)
print(json.dumps([codes, [name for name in json.loads(sys.argv[3]) if name in sys.modules]]))
"""


def heavy_imports(package: str, commands: Sequence[Sequence[str]]) -> tuple[list[int], list[str]]:
    """Return the exit codes of commands in one new process, and the heavy packages that they have imported together."""
    words = [sys.executable, "-c", SCRIPT, package, json.dumps(commands), json.dumps(HEAVY)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    codes, found = json.loads(done.stdout.splitlines()[-1])
    return codes, found
