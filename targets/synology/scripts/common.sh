# shellcheck shell=sh disable=SC2034
# What every script of the package knows: sourced, never run. POSIX sh, as BusyBox has it.

NAME=flotilla-agent
DEST=${SYNOPKG_PKGDEST:-/var/packages/$NAME/target}

# DSM 7 keeps a folder of its own across upgrades; before, state lies in the program's folder, which an upgrade replaces.
if [ -n "${SYNOPKG_PKGVAR:-}" ]; then
    STATE=$SYNOPKG_PKGVAR
elif [ -d "/var/packages/$NAME/var" ]; then
    STATE=/var/packages/$NAME/var
else
    STATE=$DEST/var
fi

# The shared folder that the package asks for (conf/resource). DSM 7 has a link to it; before, it lies on the volume that
# the package is on.
if [ -e "/var/packages/$NAME/shares/flotilla" ]; then
    SHARE=/var/packages/$NAME/shares/flotilla
else
    VOLUME=${SYNOPKG_PKGDEST_VOL:-}
    if [ -z "$VOLUME" ]; then
        VOLUME=$(readlink -f "$DEST" 2>/dev/null | sed -n 's|^\(/volume[0-9]*\)/.*|\1|p')
    fi
    SHARE=${VOLUME:-/volume1}/flotilla
fi

PID_FILE=$STATE/supervise.pid
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

# Writes standard input to a file that is whole or not there; $1: file, $2: mode.
put() {
    (umask 077 && cat >"$1.new") && chmod "$2" "$1.new" && mv -f "$1.new" "$1"
}
