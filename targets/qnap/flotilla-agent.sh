#!/bin/sh
# Starts, stops and tells of the agent: called by QTS, at boot, and by the owner. Exit codes of status: 0 running, 1 dead with a
# pid file, 3 not running.
. "$(dirname "$(readlink -f "$0")")/common.sh"

start() {
    if [ "$(/sbin/getcfg "$NAME" Enable -u -d FALSE -f /etc/config/qpkg.conf)" != TRUE ]; then
        tell "Flotilla is turned off in the App Center."
        return 1
    fi
    find_files && mkdir -p "$STATE" && chmod 700 "$STATE" && first_config "$FILES" || return 1
    # Anybody in the network may write to Public: a code is taken in the half hour after the app was started, by an agent that
    # has no fleet yet.
    FLOTILLA_CODES_UNTIL=$(($(cut -d. -f1 /proc/uptime) + 1800))
    export FLOTILLA_CODES_UNTIL
    umask 022
    start_agent "$FILES/flotilla-enrolment-code.txt"
}

case ${1:-} in
start) start ;;
stop) stop_agent ;;
restart)
    stop_agent
    start
    ;;
status) agent_status ;;
log) printf '%s\n' "$LOG" ;;
# Before the app is removed; state and files stay.
remove) exit 0 ;;
*)
    printf 'usage: %s start|stop|restart|status|log\n' "$0" >&2
    exit 1
    ;;
esac
