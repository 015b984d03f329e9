#!/bin/sh
# Print every shell file of the repository, for `make lint`: what begins with #! and a shell.
set -eu
cd "$(dirname "$0")/../.."
git ls-files | while IFS= read -r file; do
    if [ ! -f "$file" ] || [ -L "$file" ]; then continue; fi
    case $(head -n 1 "$file" | tr -d '\0') in
    '#!'*/sh | '#!'*/sh\ * | '#!'*/dash* | '#!'*/bash* | '#!'*'env sh'* | '#!'*'env bash'*) printf '%s\n' "$file" ;;
    esac
done
