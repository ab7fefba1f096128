"""`python -m resilient_client`, and the command `resilient-client`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; the exit code."""
    from resilient_client.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
