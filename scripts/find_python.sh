#!/bin/sh
# find_python.sh VERSION: print the path of an installed CPython VERSION (such as 3.12), or fail. Downloads nothing.
set -eu
version=$1
uv=$(dirname "$0")/../.venv/bin/uv

is_it() { # pyenv's shims are on PATH for versions that do not start, so run it
    [ "$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ]
}

for candidate in \
    "python$version" \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python"$version" \
    "$("$uv" python find --quiet --system --no-project --no-python-downloads "$version" 2>/dev/null || true)"; do
    if [ -n "$candidate" ] && is_it "$candidate"; then
        command -v "$candidate"
        exit 0
    fi
done
exit 1
