#!/bin/sh
# Takes back what init.sh made.
. "$(dirname "$0")/common.sh"

rm -f "/var/www/$NAME" "/var/www/apps/$NAME" /var/www/cgi-bin/flotilla-agent.cgi /usr/bin/flotilla-agent
exit 0
