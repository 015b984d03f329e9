#!/bin/sh
# Put the worker's unit in place for this user; run again, it changes nothing that is right.
#   sh systemd/install.sh [ENV_FILE]      ENV_FILE: default ~/.config/imagen/imagen-worker.env
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
env_file=${1:-$HOME/.config/imagen/imagen-worker.env}

refuse() {
  echo "install.sh: $1" >&2
  exit 2
}

# a unit has no folder and no shell: it takes absolute paths, and ~ as a name like any other
case $env_file in
\~/*) env_file=$HOME/${env_file#??} ;;
\~*) refuse "$env_file: only ~/ is known (hint: write the path from / on)" ;;
/*) ;;
*) env_file=$PWD/${env_file#./} ;;
esac
for path in "$here" "$env_file"; do
  case $path in
  *[\"\'\\\$%\`]* | *[[:cntrl:]]*) refuse "$path: quotes, \\, \$, % and line breaks cannot stand in a unit (hint: another name)" ;;
  esac
done
case $env_file in */) refuse "$env_file is a folder (hint: name a file in it)" ;; esac
[ ! -d "$env_file" ] || refuse "$env_file is a folder (hint: name a file in it)"

units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
mkdir -p "$units" "$(dirname "$env_file")"
made=$units/.imagen-worker.service.new
while IFS= read -r line; do
  case $line in
  EnvironmentFile=*) printf 'EnvironmentFile=-%s\n' "$env_file" ;;
  ExecStart=*) printf 'ExecStart="%s/bin/imagen-listen"\n' "$here" ;;
  *) printf '%s\n' "$line" ;;
  esac
done <"$here/systemd/imagen-worker.service" >"$made"
if cmp -s "$made" "$units/imagen-worker.service"; then
  rm "$made"
  echo "$units/imagen-worker.service: as it should be"
else
  mv "$made" "$units/imagen-worker.service"
  echo "$units/imagen-worker.service: written"
fi
if [ ! -e "$env_file" ]; then
  (umask 077 && cp "$here/systemd/imagen-worker.env.example" "$env_file")
  echo "$env_file: fill it in"
fi
echo 'then: systemctl --user daemon-reload && systemctl --user enable --now imagen-worker'
