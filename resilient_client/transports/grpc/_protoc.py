"""`.proto` files at run time, by the compiler that comes with grpcio-tools, in its own process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from resilient_client.errors import ConfigurationError

_PATIENCE = 30.0  # seconds; it takes a twentieth of one


def compile_protos(paths: Sequence[str], includes: Sequence[str]) -> bytes:
    """The serialised `FileDescriptorSet` of these files and all they import.

    What they import is looked for in `includes`, in their own folders, and among Google's own.

    Raises:
        ConfigurationError: there is no such file, or it is not correct: the compiler's words.
    """
    files = tuple(str(Path(path).resolve()) for path in paths)
    for file in files:
        if not Path(file).is_file():
            raise ConfigurationError(f"proto={file!r}: there is no such file")
    folders = tuple(str(Path(folder).resolve()) for folder in includes)
    for folder in folders:
        if not Path(folder).is_dir():
            raise ConfigurationError(f"includes={folder!r}: there is no such folder")
    return _compiled(files, folders, tuple(Path(file).stat().st_mtime_ns for file in files))


@lru_cache(maxsize=32)
def _compiled(
    files: tuple[str, ...], includes: tuple[str, ...], _changed: tuple[int, ...]
) -> bytes:
    own = [str(Path(file).parent) for file in files]
    command = [sys.executable, "-m", "grpc_tools.protoc"]
    command += [f"-I{folder}" for folder in dict.fromkeys((*includes, *own))]
    command += [*_well_known(), "--include_imports", *files]
    try:
        temporary = TemporaryDirectory()
    except OSError as error:  # a file system that can be read only
        raise ConfigurationError(
            f"compiling a .proto takes a folder for temporary files: {error.strerror}",
            hint="set TMPDIR to a folder that can be written to",
        ) from None
    with temporary as folder:
        out = Path(folder, "set")
        command.append(f"--descriptor_set_out={out}")
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False)  # noqa: S603
        if done.returncode != 0:
            said = "; ".join(done.stderr.decode(errors="replace").split("\n")).strip("; ")
            raise ConfigurationError(f"the .proto cannot be used: {said[:2000]}")
        return out.read_bytes()


def _well_known() -> list[str]:
    """Where google/protobuf/*.proto and google/rpc/*.proto are."""
    tools = find_spec("grpc_tools")
    if tools is None or tools.origin is None:
        raise ConfigurationError(
            "reading a .proto needs the library 'grpcio-tools', which is not installed",
            hint='pip install "resilient-client[grpc]"',
        )
    rpc = find_spec("google.rpc")
    folders = () if rpc is None else rpc.submodule_search_locations or ()
    found = [
        Path(tools.origin).with_name("_proto"),
        *(Path(each).parent.parent for each in folders),
    ]
    return [f"-I{each}" for each in found]
