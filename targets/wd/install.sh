#!/bin/sh
# Moves what was unpacked to its place. $1: where it is, $2: the folder of programs.
set -u
from=${1:-$(dirname "$0")}
programs=${2:-/mnt/HD/HD_a2/Nas_Prog}
name=flotilla-agent
if [ ! -d "$programs" ] || [ ! -x "$from/bin/flotilla-agent" ]; then
    printf 'usage: %s UNPACKED PROGRAMS\n' "$0" >&2
    exit 1
fi
# Whole before it has its name: what is broken off, or fails on a full volume, leaves what was there.
rm -rf "$programs/.$name.new"
if ! cp -a "$from" "$programs/.$name.new"; then
    rm -rf "$programs/.$name.new"
    printf 'Flotilla could not be copied to %s; is the volume full?\n' "$programs" >&2
    exit 1
fi
rm -rf "$programs/${name:?}"
mv "$programs/.$name.new" "$programs/$name" || exit 1
state=$programs/_${name}_state
mkdir -p "$state" && chmod 700 "$state"
