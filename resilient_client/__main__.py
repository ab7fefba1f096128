"""`python -m resilient_client`, and the command `resilient-client`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; the exit code."""
    try:
        from resilient_client.cli import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:  # while all this is being loaded
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
