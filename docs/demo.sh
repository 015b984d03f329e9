#!/bin/sh
# The main job for real: six request lines through imagen-render and the tools behind it.
set -eu
cd "$(dirname "$0")/.."
PATH=$PWD/bin:$PATH
out=$PWD/demo-output
mkdir -p "$out"
export IMAGEN_CONFIG="$out/config.yaml" IMAGEN_LEDGER="$out/ledger.sqlite3"
printf 'default_backend: mock\noutput: {dir: "%s", preview: "off", cloud_sync: "off"}\n' "$out" > "$IMAGEN_CONFIG"

run() { printf '\n$ %s\n' "$1"; sh -c "$1"; }
echo "Settings for this demo: IMAGEN_CONFIG=$IMAGEN_CONFIG"
run 'imagen-config validate'
run 'imagen-backends --check'
run 'imagen-render < docs/demo.jsonl | imagen-preview > demo-output/records.jsonl'
run 'imagen-render --dry-run --id demo-1 "a cat in a fishbowl, studio light" --seed 7'
run 'wc -l < demo-output/records.jsonl'
run 'imagen-sheet --output demo-output/sheet.png --force --cell 160 < demo-output/records.jsonl > demo-output/sheet.jsonl'
run 'imagen-sheet --pick B2 demo-output/sheet.png'
echo
echo "All six on one picture: $out/sheet.png"
echo "Six images with their sidecars are in $out:"
sed -n 's/.*"file":"\([^"]*\)".*/\1/p' "$out/records.jsonl"
