"""Finds nginx's stream module, which passes plain TCP: built in (as in nginx's images), a separate file, or missing."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")  # Debian's path


@cache
def stream_module() -> str | None:
    """Return the directive that loads the module, "" if it is built in, None if it is missing."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if not nginx:
        return None
    options = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=True).stderr.split()
    if "--with-stream" in options:
        return ""
    return f"load_module {MODULE}; " if MODULE.exists() else None
