#!/bin/sh
. "$(dirname "$0")/common.sh"

stop_agent
rm -rf "$RUN"
exit 0
