"""What type checkers must conclude about the public names; read by mypy and pyright, never run."""
