#!/bin/sh
# Removes the program alone: an upgrade runs this too, so state stays (_flotilla-agent_state beside the program), and so do
# the files.
. "$(dirname "$0")/common.sh"

stop_agent
rm -rf "$RUN"
case $DEST in */$NAME) rm -rf "$DEST" ;; esac
exit 0
