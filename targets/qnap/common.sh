# shellcheck shell=sh disable=SC2034
# What both scripts of the package know: sourced, never run. POSIX sh, as BusyBox has it.

NAME=flotilla-agent
# The box starts the program by links.
DEST=$(dirname "$(readlink -f "$0")")
# Upgrades and removals take the program's folder away: state is kept beside it.
STATE=$(dirname "$DEST")/_${NAME}_state
LOG=$STATE/agent.log

tell() {
    printf '%s\n' "$*" >&2
    if [ -x /sbin/log_tool ]; then
        /sbin/log_tool -t2 -uSystem -p127.0.0.1 -mlocalhost -a "[Flotilla] $*"
    fi
}

share() {
    path=$(/sbin/getcfg "$1" path -f /etc/config/smb.conf)
    [ -n "$path" ] && [ -d "$path" ] && printf '%s' "$path"
}

# Relative folders of jobs: the share flotilla, if the owner made one, or a folder of that name in Public.
find_files() {
    FILES=$(share flotilla) && return
    public=$(share Public) || {
        tell "There is neither a share flotilla nor the share Public; is the volume locked?"
        return 1
    }
    FILES=$public/flotilla
    mkdir -p "$FILES"
}

. "$DEST/service.sh"
