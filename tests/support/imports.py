"""What a command imports."""

import subprocess
import sys

HEAVY = ("flwr", "ray", "torch", "torchvision")  # each takes a second or more
SCRIPT = """
import sys
from {package}.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print(code, *(name for name in {heavy} if name in sys.modules))
"""


def heavy_imports(package: str, *words: str) -> tuple[int, list[str]]:
    """Return the exit code of `python -m PACKAGE WORDS` and the heavy packages that it has imported."""
    script = SCRIPT.format(package=package, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    code, *found = done.stdout.splitlines()[-1].split()
    return int(code), found
