#!/bin/sh
# Renew constraints/pins.txt: one set of versions for every supported Python, names and versions only.
# Versions already there are kept; `compile_constraints.sh --upgrade` takes the newest.
set -eu
cd "$(dirname "$0")/.."
pins=constraints/pins.txt
resolved=$(mktemp)
trap 'rm -f "$resolved"' EXIT
[ ! -f $pins ] || cp $pins "$resolved"

.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
    --no-annotate --no-header --no-emit-index-url --no-emit-package resilient-client \
    --all-extras --group test --group check --group docs --group bench --group build \
    --output-file "$resolved" "$@" pyproject.toml

# Environment markers are left out: a pin of something that is not installed does no harm.
sed 's/ *;.*//' "$resolved" | sort >$pins
twice=$(sed 's/==.*//' $pins | uniq -d)
[ -z "$twice" ] || { echo "no single version fits every Python: $twice" >&2; exit 1; }
