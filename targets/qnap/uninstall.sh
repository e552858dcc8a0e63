#!/bin/sh
# Run by QTS when the app is removed: the program goes, state (_flotilla-agent_state beside it) and files stay.
. "$(dirname "$(readlink -f "$0")")/common.sh"

stop_agent
rm -f "/etc/init.d/$NAME.sh" "/etc/rcS.d/QS101$NAME" "/etc/rcK.d/QK899$NAME"
for icon in .gif _80.gif _gray.gif; do rm -f "/home/httpd/RSS/images/$NAME$icon"; done
case $DEST in */"$NAME") rm -rf "$DEST" ;; esac
exit 0
