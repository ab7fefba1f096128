"""Every benchmark of this folder, one after the other: `python -m benchmarks [NAME ...]`."""

from __future__ import annotations

import subprocess
import sys
from pkgutil import iter_modules


def main() -> int:
    """Run the named ones, or all; the number of those that failed."""
    known = [m.name for m in iter_modules(__path__) if not m.ispkg and not m.name.startswith("_")]
    chosen = sys.argv[1:] or known
    failed = 0
    for name in chosen:
        print(f"\n== {name}", flush=True)
        failed += (
            subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
            != 0
        )
    return failed


if __name__ == "__main__":
    from benchmarks import __path__

    raise SystemExit(main())
