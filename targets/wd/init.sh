#!/bin/sh
# At installation and at each boot, since the root file system is made anew: the configuration, the page, the program's name.
. "$(dirname "$0")/common.sh"

mkdir -p "$STATE" "$FILES" && chmod 700 "$STATE" && first_config "$FILES" || exit 1
for pages in /var/www /var/www/apps; do
    if [ -d "$pages" ]; then
        rm -rf "${pages:?}/$NAME"
        ln -s "$DEST/web" "$pages/$NAME"
    fi
done
if [ -d /var/www/cgi-bin ]; then ln -sf "$DEST/cgi-bin/flotilla-agent.cgi" /var/www/cgi-bin/flotilla-agent.cgi; fi
ln -sf "$DEST/bin/flotilla-agent" /usr/bin/flotilla-agent
exit 0
