#!/bin/sh
# Make a virtual environment at $1 with $PYTHON, or with the first Python 3.11 or newer found.
set -eu
venv=$1
[ -x "$venv/bin/python" ] && exit 0
new='import sys; sys.exit(sys.version_info < (3, 11))'
for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
    command -v "$python" >/dev/null 2>&1 || continue
    "$python" -c "$new" 2>/dev/null || continue
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "make: $python has no venv module (Debian: apt install python3-venv)" >&2
        exit 2
    fi
    "$python" -m venv "$venv" || { rm -rf "$venv"; exit 2; }
    exit 0
done
echo "make: no Python 3.11 or newer here (Debian: apt install python3 python3-venv; or make PYTHON=/path/to/python)" >&2
exit 2
