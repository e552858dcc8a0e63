#!/bin/sh
# Starts the agent. For half an hour from here on an enrolment code is taken from the page, if the agent has no fleet yet:
# who starts programs is the owner, and who sees the page may be anybody in the network.
. "$(dirname "$0")/common.sh"

umask 022
rm -rf "$RUN"
mkdir -p "$RUN/given" && chmod 755 "$RUN" && chmod 1733 "$RUN/given" || exit 1
until=$(($(cut -d. -f1 /proc/uptime) + 1800))
printf '%s\n' "$until" >"$RUN/until"
FLOTILLA_STATUS=$RUN/status FLOTILLA_CODES_UNTIL=$until
export FLOTILLA_STATUS FLOTILLA_CODES_UNTIL
start_agent "$RUN/given/code"
