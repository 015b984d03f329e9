#!/bin/sh
# Build wheel and sdist with the Python $1, install each into a fresh venv outside the checkout,
# render there, and find workflows, sql and units.
set -eu
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
"$python" -m build --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
for package in "$work"/dist/*.whl "$work"/dist/*.tar.gz; do
    rm -rf "${work:?}/venv" "${work:?}/home"
    mkdir "$work/home"
    "$python" -m venv "$work/venv"
    PIP_ROOT_USER_ACTION=ignore "$work/venv/bin/python" -m pip --disable-pip-version-check install --quiet "$package"
    (
        cd "$work/home"
        HOME=$work/home
        XDG_STATE_HOME=$work/home/state
        export HOME XDG_STATE_HOME
        unset IMAGEN_CONFIG IMAGEN_LEDGER
        "$work/venv/bin/imagen-render" 'a paper boat' --seed 1 --out-dir "$work/home/out" >record.jsonl
        find "$work/home/out" -name a-paper-boat-1.png -size +0 | grep -q .
        "$work/venv/bin/imagen-config" sample >config.yaml
        "$work/venv/bin/imagen-config" validate config.yaml >/dev/null
        "$work/venv/bin/python" - <<'END'
import imagen, pathlib
data = pathlib.Path(imagen.__file__).parent / "data"
for wanted in ("workflows/flux1-schnell.json", "sql/queries.sql", "systemd/imagen-batch@.service", "sample.yaml"):
    assert (data / wanted).is_file(), f"not in the package: {wanted}"
assert "lib" not in [part.name for part in data.parents][:2], "the checkout was found, not the package"
END
    )
    echo "wheel-check: ${package##*/} installs, renders, and has its workflows, sql and units"
done
