# shellcheck shell=sh disable=SC2034
# What every script of the package knows: sourced, never run. POSIX sh, as BusyBox has it.

NAME=flotilla-agent
# The system calls some scripts with the program's folder and some without; it is theirs anyway.
DEST=$(cd "$(dirname "$0")" && pwd -P)
# Reinstalling and upgrading run remove.sh as well: state is kept beside the program.
STATE=$(dirname "$DEST")/_${NAME}_state
# Relative folders of jobs: on the volume that programs are on.
FILES=$(dirname "$(dirname "$DEST")")/flotilla
RUN=/var/run/$NAME
LOG=$STATE/agent.log

tell() {
    printf '%s\n' "$*" >&2
}

. "$DEST/service.sh"
