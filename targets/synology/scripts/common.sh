# shellcheck shell=sh disable=SC2034
# What every script of the package knows: sourced, never run. POSIX sh, as BusyBox has it.

NAME=flotilla-agent
DEST=${SYNOPKG_PKGDEST:-/var/packages/$NAME/target}
# By one name, whichever DSM calls it by.
DEST=$(readlink -f "$DEST" 2>/dev/null || printf '%s' "$DEST")

# DSM 7 keeps a folder of its own across upgrades; before, state lies in the program's folder, which an upgrade replaces.
if [ -n "${SYNOPKG_PKGVAR:-}" ]; then
    STATE=$SYNOPKG_PKGVAR
elif [ -d "/var/packages/$NAME/var" ]; then
    STATE=/var/packages/$NAME/var
else
    STATE=$DEST/var
fi

# The shared folder that the package asks for (conf/resource). It is there when the package is started, not before. DSM 7
# has a link to it; before, it is looked for, the package's own volume first.
find_share() {
    SHARE=/var/packages/$NAME/shares/flotilla
    [ -e "$SHARE" ] && return
    own=${SYNOPKG_PKGDEST_VOL:-$(readlink -f "$DEST" 2>/dev/null | sed -n 's|^\(/volume[0-9]*\)/.*|\1|p')}
    for volume in "$own" /volume[0-9]*; do
        SHARE=$volume/flotilla
        [ -n "$volume" ] && [ -d "$SHARE" ] && return
    done
    SHARE=${own:-/volume1}/flotilla
}

LOG=$STATE/agent.log
CONFIG=$STATE/agent.toml
CODE=$STATE/enrolment-code

# Shown to the owner by Package Center.
tell() {
    if [ -n "${SYNOPKG_TEMP_LOGFILE:-}" ]; then
        printf '%s\n' "$*" >>"$SYNOPKG_TEMP_LOGFILE"
    else
        printf '%s\n' "$*" >&2
    fi
}

. "$(dirname "$0")/service.sh"
