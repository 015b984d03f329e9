#!/bin/sh
# Install ComfyUI natively on this machine: a user of its own, a checkout, a venv made by uv, a system
# unit. Run again, it changes nothing that is right; killed, it goes on where it stopped.
set -eu
umask 022
here=$(cd "$(dirname "$0")" && pwd)
me=$(id -un)
name=${0##*/}

usage() {
    cat <<'END'
Usage: sh systemd/install-comfyui.sh [OPTIONS]

  Install ComfyUI natively: its user, its folder, a checkout, a venv, a unit.

Options:
  --dry-run             Print every command, run none.
  --folder DIR          Where all of it goes.  [/var/lib/comfyui]
  --user NAME           Whom it runs as; made when not there.  [comfyui]
  --listen ADDRESS      For a new env file.  [127.0.0.1]
  --port N              For a new env file.  [8188]
  --env-file FILE       Never overwritten.  [/etc/comfyui.env]
  --python VERSION      Of the venv; uv finds or fetches it.  [3.12]
  --torch-backend NAME  Of uv: auto, cpu, cu128, rocm6.4, xpu, ...  [auto]
  --revision REV        A tag or commit of ComfyUI; without it the newest,
                        and what is there stays as it is.
  --repository URL      Where ComfyUI comes from.
  --units DIR           Where the unit goes.  [/etc/systemd/system]
  -h, --help            Show this message and end.
END
}

refuse() { # with the exit status $2
    refused=yes
    echo "$name: $1" >&2
    exit "${2:-2}"
}

# -- what is asked --------------------------------------------------------------------------------

folder=/var/lib/comfyui
user=comfyui
env_file=/etc/comfyui.env
units=/etc/systemd/system
python=3.12
backend=auto
repository=https://github.com/Comfy-Org/ComfyUI.git
revision='' listen='' port='' dry='' bare='' marked='' lacks='' refused=''

while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --dry-run) dry=yes && shift && continue ;;
    --*=*) option=${1%%=*} value=${1#*=} && shift ;;
    --*)
        option=$1 value=${2-} && shift
        if [ $# -gt 0 ]; then shift; else bare=yes; fi
        ;;
    *) refuse "no argument '$1' is known (hint: --help lists the options)" ;;
    esac
    case $option in
    --folder) folder=$value ;;
    --user) user=$value ;;
    --listen) listen=$value ;;
    --port) port=$value ;;
    --env-file) env_file=$value ;;
    --python) python=$value ;;
    --torch-backend) backend=$value ;;
    --revision) revision=$value ;;
    --repository) repository=$value ;;
    --units) units=$value ;;
    *) refuse "no option $option is known (hint: --help lists the options)" ;;
    esac
    [ -z "$bare" ] || refuse "$option needs a value (hint: --help lists the options)"
done

is_made_of() { # whether $1 is made of the characters $2 and begins with no dash
    [ -n "$1" ] && [ "${1#-}" = "$1" ] && [ "$(printf %s "$1" | LC_ALL=C tr -d "$2" && echo .)" = . ]
}

absolute() { # sets $path to $1, absolute, without / at its end; $2 is the option
    case $1 in
    '') refuse "$2 is empty" ;;
    *[\"\'\\\$%\`]* | *[[:cntrl:]]*) refuse "$2 $1: quotes, \\, \$, % and line breaks cannot stand in a unit (hint: another name)" ;;
    /*) path=${1%/} ;;
    *) path=$PWD/${1%/} ;;
    esac
}

absolute "$folder" --folder && folder=$path
absolute "$env_file" --env-file && env_file=$path
absolute "$units" --units && units=$path
[ -n "$folder" ] || refuse "--folder / would be the whole machine (hint: /var/lib/comfyui)"
is_made_of "$user" 'A-Za-z0-9._-' || refuse "--user '$user' is no name of a user"
case $user in root | nobody) refuse "--user $user: ComfyUI runs the programs of its nodes (hint: give it a user of its own)" ;; esac
is_made_of "${listen:-x}" '0-9A-Za-z.:,' || refuse "--listen '$listen' is no address"
if ! is_made_of "${port:-1}" 0-9 || [ "${#port}" -gt 5 ] || [ "${port:-1}" -lt 1 ] || [ "${port:-1}" -gt 65535 ]; then
    refuse "--port '$port' is no port (hint: 1 to 65535)"
fi
is_made_of "$backend" 'a-z0-9.' || refuse "--torch-backend '$backend' is no name of a backend"
is_made_of "${revision:-x}" '0-9A-Za-z._/-' || refuse "--revision '$revision' is no tag or commit"
for value in "$python" "$repository"; do
    case $value in -* | *[[:cntrl:]]*) refuse "a value has a line break or begins with a dash: $value" ;; esac
done
[ ! -d "$repository" ] || repository=$(cd "$repository" && pwd)
[ ! -L "$folder" ] || { absolute "$(readlink -m "$folder")" --folder && folder=$path; } # what a unit may do goes by it

checkout=$folder/ComfyUI
venv=$folder/venv
data=$folder/data
marker=$folder/.restart # there while what runs is not yet what is installed
unit=$units/comfyui.service
[ -e "$env_file" ] || [ ! -L "$env_file" ] || refuse "$env_file is a link that leads nowhere (hint: remove it)"
[ ! -e "$unit" ] || grep -q 'make install-comfyui' "$unit" ||
    refuse "$unit is another's (hint: stop it and move it away)"

# -- how commands are run -------------------------------------------------------------------------

say() {
    if [ "$dry" ]; then printf '# %s\n' "$1"; else printf '%s\n' "$1"; fi
}

quoted() { # a command as a shell reads it
    line=''
    for word in "$@"; do
        if [ -z "$word" ] || ! is_made_of "x$word" 'A-Za-z0-9_./:=,+@-'; then
            word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'"
        fi
        line="${line:+$line }$word"
    done
    printf '%s\n' "$line"
}

run() {
    if [ "$dry" ]; then quoted "$@"; else "$@"; fi
}

as_root() {
    if [ "$(id -u)" = 0 ]; then run "$@"; else run sudo -- "$@"; fi
}

as_owner() { # git and uv with a home of their own: root's is closed to the user
    case $1 in
    git) set -- env "HOME=$folder" "$@" ;;
    "$uv") set -- env "HOME=$folder" "UV_CACHE_DIR=$folder/cache" "UV_PYTHON_INSTALL_DIR=$folder/python" "$@" ;;
    esac
    if [ "$me" = "$user" ]; then
        run "$@"
    elif [ "$(id -u)" = 0 ]; then
        run runuser -u "$user" -- "$@"
    else
        run sudo -u "$user" -- "$@"
    fi
}

placed() { # put stdin at $1, whole or not at all; with -n in $2 nothing that is there is replaced
    # root follows no link that somebody has put there: install makes a new file, mv -T moves to that name
    if [ "$dry" ]; then
        printf "%s <<'END'\\n" "$(as_root install -m 0644 /dev/stdin "$1.new")"
        cat && echo END
    else
        as_root install -m 0644 /dev/stdin "$1.new"
    fi
    as_root mv -T ${2:+"$2"} "$1.new" "$1"
}

changing() { # say what comes; what runs now is to be started again at the end
    say "$1"
    [ -e "$marker" ] || [ "$marked" ] || as_owner touch "$marker"
    marked=yes
}

# -- what must be there ---------------------------------------------------------------------------

lack() { # one line of what is missing, and how to get it
    lacks="$lacks
  $1"
}

look_for_programs() {
    uv=$(command -v uv) || uv=
    [ "$uv" ] || lack 'uv: pacman -S uv; Debian, Ubuntu: apt install pipx && PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install uv'
    [ -z "$uv" ] || "$uv" pip install --help 2>/dev/null | grep -q torch-backend ||
        lack "a newer uv than $uv, with --torch-backend: pacman -Syu uv; pipx upgrade uv"
    command -v git >/dev/null || lack 'git: pacman -S git; apt install git'
    command -v systemctl >/dev/null || lack 'systemd, whose units start ComfyUI'
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || lack 'root: run this as root, or install sudo'
}

has_nvidia() {
    command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1
}

look_for_driver() {
    nvidia='the driver of an NVIDIA GPU (nvidia-smi -L must name it): pacman -S nvidia-open nvidia-utils; Debian: apt install nvidia-driver; Ubuntu: ubuntu-drivers install; then start the machine again'
    amd='the driver of an AMD GPU (/dev/kfd must be there; rocminfo names it): pacman -S rocminfo; apt install firmware-amd-graphics rocminfo'
    case $backend in
    cu*) has_nvidia || lack "$nvidia" ;;
    rocm*) [ -e /dev/kfd ] || lack "$amd" ;;
    auto)
        has_nvidia || [ -e /dev/kfd ] || {
            lack "$nvidia"
            lack "  or $amd"
            lack '  or --torch-backend cpu, with which an image takes many minutes'
        }
        ;;
    esac
}

look_for_programs
look_for_driver
if [ "$lacks" ]; then
    echo "$name: missing here:$lacks" >&2
    [ "$dry" ] || exit 2
fi
uv=${uv:-uv}

if [ "$(id -u)" = 0 ]; then how=''; else how=' (through sudo)'; fi
say "root is needed$how for: the user $user, $folder itself, $env_file, $units/comfyui.service, systemctl"
say "as $user: all that is in $folder"

# -- the steps ------------------------------------------------------------------------------------

make_user() {
    if id "$user" >/dev/null 2>&1; then
        say "user $user: as it should be"
    else
        say "user $user: to be made"
        as_root useradd --system --user-group --no-create-home --home-dir "$folder" --shell /usr/sbin/nologin "$user"
    fi
}

is_owned() { # whether $1 belongs to the user
    [ "$(stat -c %U "$1" 2>/dev/null)" = "$user" ]
}

make_folder() {
    if is_owned "$folder"; then
        say "$folder: as it should be"
        return
    fi
    if [ -e "$folder" ] && [ "$(ls -A "$folder" 2>&1)" ]; then
        owner=$(stat -c %U "$folder")
        case $owner in root | nobody | UNKNOWN) other='' ;; *) other="--user $owner, or " ;; esac
        refuse "$folder is there, with something in it, and is not $user's (hint: ${other}another --folder)"
    fi
    say "$folder: to be made"
    above=$folder
    while [ ! -e "$above" ]; do above=$(dirname "$above"); done
    if is_owned "$above" || { [ "$me" = "$user" ] && [ -w "$above" ]; }; then
        as_owner mkdir -p "$folder" # root makes nothing where the user could put a link in its way
    else
        as_root mkdir -p "$folder"
        as_root chown -h "$user:" "$folder"
    fi
}

take_turn() { # one run at a time; what a killed one has left running counts as one
    if [ -e "$folder" ] && { [ ! -r "$folder" ] || [ ! -x "$folder" ]; }; then
        refuse "$folder is closed to $me (hint: run this as root)"
    fi
    [ "$dry" ] || {
        exec 9<"$folder"
        flock -n 9 || refuse "another run is at work in $folder (hint: wait for its end)" 75
    }
}

make_checkout() {
    if [ ! -d "$checkout" ]; then
        changing "$checkout: to be cloned"
        as_owner rm -rf "$folder/.ComfyUI.new"
        as_owner git clone --quiet "$repository" "$folder/.ComfyUI.new"
        [ -z "$revision" ] || as_owner git -C "$folder/.ComfyUI.new" checkout --quiet --detach "$revision"
        as_owner mv "$folder/.ComfyUI.new" "$checkout"
        return
    fi
    at=$(commit HEAD)
    [ "$at" ] || refuse "$checkout is no checkout that git can read (hint: move it away)"
    if [ -z "$revision" ] || [ "$at" = "$(commit "$revision")" ]; then
        say "$checkout: as it should be, at $at"
    else
        changing "$checkout: to be moved to $revision"
        [ "$(commit "$revision")" ] || as_owner git -C "$checkout" fetch --quiet --tags origin
        as_owner git -C "$checkout" checkout --quiet --detach "$revision"
    fi
}

commit() { # the commit that $1 names in the checkout, if it names one
    set -- git -c "safe.directory=$checkout" -C "$checkout" rev-parse --verify --quiet "$1^{commit}"
    if [ "$(id -u)" = 0 ]; then # what stands in a user's repository is not for root to follow
        set -- runuser -u "$user" -- env "HOME=$folder" "$@"
    fi
    "$@" || true
}

make_folders() {
    set --
    for one in models/checkpoints models/diffusion_models models/text_encoders models/vae custom_nodes input output user; do
        [ -d "$data/$one" ] || set -- "$@" "$data/$one"
    done
    [ -d "$checkout/user" ] || set -- "$@" "$checkout/user"
    if [ $# -eq 0 ]; then
        say "$data: as it should be"
    else
        changing "$data: folders to be made"
        as_owner mkdir -p "$@"
    fi
}

is_right_python() { # whether the venv has the Python that is asked for
    [ -x "$venv/bin/python" ] || return 1
    have=$(sed -n 's/^version_info *= *//p' "$venv/pyvenv.cfg")
    case $python in */*) return 0 ;; esac
    case $have in "$python" | "$python".*) return 0 ;; esac
    return 1
}

make_venv() {
    if is_right_python; then
        say "$venv: as it should be, Python $have"
        return
    fi
    [ ! -e "$venv" ] || [ -e "$venv/pyvenv.cfg" ] || refuse "$venv is no venv (hint: move it away)"
    [ "$dry" ] || as_owner "$uv" --version >/dev/null 2>&1 ||
        refuse "$user may not run $uv (hint: install uv for everybody, in /usr/local/bin or /usr/bin)"
    changing "$venv: to be made"
    as_owner rm -rf "$folder/.venv.new"
    as_owner "$uv" venv --quiet --relocatable --python "$python" "$folder/.venv.new"
    as_owner rm -rf "$venv"
    as_owner mv "$folder/.venv.new" "$venv"
}

install_packages() {
    # what was installed last stands in the venv, under the backend's name
    installed=$venv/installed-$backend.txt
    if [ "$(ls "$venv"/installed-*.txt 2>/dev/null)" = "$installed" ] && cmp -s "$checkout/requirements.txt" "$installed"; then
        say "packages: as they should be, for $backend"
        return
    fi
    changing "packages: to be installed, for $backend; gigabytes, the first time"
    set -- --torch-backend "$backend" --requirements "$checkout/requirements.txt"
    for other in "$venv"/installed-*.txt; do
        [ ! -e "$other" ] || [ "$other" = "$installed" ] ||
            set -- --reinstall-package torch --reinstall-package torchvision --reinstall-package torchaudio "$@"
    done
    # a second such file: whoever is killed from here on, whatever is asked for next, installs anew
    as_owner touch "$installed"
    # compiled now: the service may not write there
    as_owner "$uv" pip install --compile-bytecode --python "$venv/bin/python" "$@"
    as_owner cp "$checkout/requirements.txt" "$installed"
    for other in "$venv"/installed-*.txt; do
        [ ! -e "$other" ] || [ "$other" = "$installed" ] || as_owner rm "$other"
    done
}

write_env_file() {
    if [ -e "$env_file" ]; then
        say "$env_file: left as it is"
        for wanted in ${listen:+"COMFYUI_LISTEN=$listen"} ${port:+"COMFYUI_PORT=$port"}; do
            grep -qxF "$wanted" "$env_file" || echo "$name: $env_file has no line $wanted (hint: write it there, then systemctl restart comfyui)" >&2
        done
        return
    fi
    changing "$env_file: to be written"
    [ -d "${env_file%/*}/" ] || as_root mkdir -p "${env_file%/*}/"
    text=$(sed -e "s/^COMFYUI_LISTEN=.*/COMFYUI_LISTEN=${listen:-127.0.0.1}/" -e "s/^COMFYUI_PORT=.*/COMFYUI_PORT=${port:-8188}/" "$here/comfyui.env.example")
    printf '%s\n' "$text" | placed "$env_file" -n
}

rendered_unit() {
    groups=
    for group in render video; do
        ! getent group "$group" >/dev/null || groups="${groups:+$groups }$group"
    done
    home=yes root_home=$(getent passwd root | cut -d: -f6)
    case $folder in /home/* | "${root_home:-/}"/*) home=read-only ;; esac # below it ReadWritePaths holds
    sed -e "s|/var/lib/comfyui|$(for_sed "$folder")|g" -e "s|/etc/comfyui.env|$(for_sed "$env_file")|g" \
        -e "s|^User=.*|User=$user|" -e "s|^SupplementaryGroups=.*|SupplementaryGroups=$groups|" \
        -e "s|^ProtectHome=.*|ProtectHome=$home|" "$here/comfyui.service"
}

for_sed() {
    printf %s "$1" | sed 's/[&|]/\\&/g'
}

write_unit() {
    text=$(rendered_unit)
    if printf '%s\n' "$text" | cmp -s - "$unit"; then
        say "$unit: as it should be"
    else
        changing "$unit: to be written"
        printf '%s\n' "$text" | placed "$unit"
    fi
}

start() {
    if [ -z "$marked" ] && [ ! -e "$marker" ] && systemctl is-enabled --quiet comfyui && systemctl is-active --quiet comfyui; then
        say 'comfyui.service: enabled and running'
        return
    fi
    say 'comfyui.service: to be started'
    as_root systemctl daemon-reload
    as_root systemctl enable --quiet comfyui
    as_root systemctl restart comfyui
    as_owner rm -f "$marker"
}

last_words() {
    address=$(sed -n 's/^COMFYUI_LISTEN=//p' "$env_file" 2>/dev/null | tail -n 1) || true
    address=${address:-${listen:-127.0.0.1}}
    at=$(sed -n 's/^COMFYUI_PORT=//p' "$env_file" 2>/dev/null | tail -n 1) || true
    case $address in
    *,*) is_ours='' ;;
    127.* | ::1 | localhost) is_ours=yes ;;
    *) is_ours='' ;;
    esac
    [ "$is_ours" ] || echo "$name: it listens on $address without authentication (hint: a firewall; docs/guide/comfyui.md)" >&2
    address=${address%%,*}
    case $address in *:*) address="[$address]" ;; esac
    say "next: curl -sS http://$address:${at:-${port:-8188}}/system_stats; journalctl -u comfyui; models go to $data/models"
}

ended() {
    [ $? -ne 0 ] && [ -z "$refused" ] || return 0
    echo "$name: $step failed (hint: mend what it says above, and run the same again)" >&2
    exit 1
}
trap ended EXIT

cd / # whoever runs a step may not be allowed where we are
for step in make_user make_folder take_turn make_checkout make_folders make_venv install_packages write_env_file write_unit start last_words; do
    $step
done
