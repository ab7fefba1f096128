#!/bin/sh
# Run the fast part of the suite on every other supported Python that this machine has.
set -eu
cd "$(dirname "$0")/.."
default=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')

for version in 3.11 3.12 3.13; do
    [ "$version" != "$default" ] || continue
    if ! python=$(scripts/find_python.sh "$version"); then
        echo "==== SKIPPED on Python $version: not on this machine. Install it (pyenv install $version, or your system's"
        echo "==== package) and run make test again; nothing else is needed."
        continue
    fi
    venv=.venv-$version
    if [ -z "$(find "$venv/.has-test" -newer pyproject.toml -newer constraints/pins.txt -newer scripts/environment.sh 2>/dev/null)" ]; then
        scripts/environment.sh "$venv" test "$python"
    fi
    echo "==== the fast part on Python $version"
    "$venv/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup -m "not broker and not interop and not slow" "$@"
done
