#!/bin/sh
# environment.sh FOLDER SETS [PYTHON]: make FOLDER a virtual environment that holds SETS of this project.
#
# SETS is `demo` (what the demo imports), `test` (all extras and what the tests import) or `all` (the
# tools of `make check`, `docs` and `bench` too). Versions come from constraints/, names from
# pyproject.toml, packages from wherever this machine's pip and uv are set up to find them. The first
# FOLDER is .venv: it holds the uv that makes the others.
set -eu
cd "$(dirname "$0")/.."

folder=$1
sets=$2
wanted=${3:-${PYTHON:-}}
pins=constraints/pins.txt
export UV_PYTHON_DOWNLOADS=never PIP_DISABLE_PIP_VERSION_CHECK=1

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for candidate in ${wanted:-python3 python3.13 python3.12 python3.11}; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    {
        echo "resilient_client needs Python 3.11 or newer; tried: ${wanted:-python3 python3.13 python3.12 python3.11}"
        python3 --version 2>/dev/null || true
        echo "Install one (Debian: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3.12 ..."
    } >&2
    return 1
}

uv=.venv/bin/uv
if ! new_enough "$folder/bin/python"; then
    python=$(find_python)
    echo "making $folder with $("$python" --version)"
    rm -rf "$folder"
    if [ -x $uv ]; then
        $uv venv --quiet --python "$python" "$folder"
    elif ! "$python" -m venv "$folder"; then
        rm -rf "$folder"
        echo "$python cannot make virtual environments (Debian: apt-get install python3-venv)" >&2
        exit 1
    fi
fi

if [ ! -x $uv ]; then
    if .venv/bin/python -m pip --version >/dev/null 2>&1; then
        .venv/bin/python -m pip install --quiet --constraint $pins uv
    else # made by another uv, which leaves pip out
        uv pip install --quiet --python .venv/bin/python --constraint $pins uv
    fi
fi

case $sets in
    demo) set -- --editable ".[cli,fast]" ;;
    test) set -- --editable ".[all]" --group test ;;
    all) set -- --editable ".[all]" --group test --group check --group docs --group bench ;;
    *) echo "unknown set: $sets" >&2; exit 2 ;;
esac
$uv pip install --quiet --python "$folder/bin/python" --constraint $pins --build-constraint $pins "$@"

# A fuller set satisfies the smaller ones.
touch "$folder/.has-demo"
case $sets in test | all) touch "$folder/.has-test" ;; esac
case $sets in all) touch "$folder/.has-all" ;; esac
