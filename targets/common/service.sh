# shellcheck shell=sh disable=SC2154
# Starts, stops and tells of the agent on a NAS box: sourced, by scripts that have set DEST (the program's folder), STATE
# and LOG, and have a function tell. POSIX sh, as BusyBox has it.

PID_FILE=$STATE/supervise.pid

# Whether the process of a pid file is ours: numbers are given again after a restart of the machine. $1: the file, $2: a
# part of its command line. The number is in $pid.
lives() {
    [ -r "$1" ] || return 1
    pid=$(cat "$1")
    case $pid in '' | *[!0-9]*) return 1 ;; esac
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$2"
}

supervisor() {
    lives "$PID_FILE" "$DEST/bin/supervise.sh"
}

# $1: a pid file, $2: a part of the command line, $3: seconds that it has before it is killed.
end() {
    left=$3
    lives "$1" "$2" && kill "$pid" 2>/dev/null
    while lives "$1" "$2" && [ "$left" -gt 0 ]; do
        sleep 1
        left=$((left - 1))
    done
    lives "$1" "$2" && kill -9 "$pid" 2>/dev/null
    rm -f "$1"
}

# The supervisor, which ends the agent, which takes leave of its peers and closes its state; and an agent that lost its
# supervisor.
stop_agent() {
    end "$PID_FILE" "$DEST/bin/supervise.sh" 20
    end "$STATE/agent.pid" "$DEST/bin/flotilla-agent run" 20
}

# $@: files in which an enrolment code may be given. 150, as DSM has it, if the program is missing.
start_agent() {
    supervisor && return 0
    [ -x "$DEST/bin/flotilla-agent" ] || {
        tell "The program is missing; install the package again."
        return 150
    }
    mkdir -p "$STATE" || return 1
    stop_agent
    # In a session of its own: what stops this script is not to stop the agent.
    if command -v setsid >/dev/null 2>&1; then away=setsid; else away=; fi
    $away "$DEST/bin/supervise.sh" "$DEST/bin/flotilla-agent" "$STATE" "$@" </dev/null >/dev/null 2>&1 &
    # It writes its own number, or ends.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        supervisor && return 0
        sleep 1
    done
    tell "The agent does not start; is the volume full? See $LOG"
    return 1
}

# 0 running, 1 dead with a pid file, 3 not running.
agent_status() {
    supervisor && return 0
    [ -e "$PID_FILE" ] && return 1
    return 3
}

# Writes standard input to a file that is whole and on the disk, or not there; $1: file, $2: mode.
put() {
    (umask 077 && cat >"$1.new") && chmod "$2" "$1.new" && sync && mv -f "$1.new" "$1"
}

# The configuration where there is none; $1: the folder that relative folders of jobs lie in.
first_config() {
    folder=$(readlink -f "$1") || return 1
    [ -s "$STATE/agent.toml" ] || put "$STATE/agent.toml" 600 <<CONFIG
# What the package began with; yours to change. An upgrade leaves it as it is.
# All settings: flotilla-agent run --help
# The enrolment code is deleted when it has served.
consume_bootstrap = true
# Relative folders of jobs lie here, and jobs may have no others. Add folders to the list that they may have as well.
folders_storage_path = "$folder"
allowed_paths = ["$folder"]
# The port of the box's firewall for Flotilla.
listen = "0.0.0.0:7702"
CONFIG
}
