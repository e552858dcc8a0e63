#!/bin/sh
# Flotilla's agent for QNAP boxes: installs itself, or upgrades what is there. QTS runs it as root and shows how far it is
# (/tmp/update_process: 0 to 3, -1 failed). What it unpacks follows this text. POSIX sh, as BusyBox has it.
name=flotilla-agent
version='@VERSION@'
head_bytes=@HEAD_BYTES@
payload_bytes=@PAYLOAD_BYTES@
conf=/etc/config/qpkg.conf

progress() {
    printf '%s\n' "$1" >/tmp/update_process
}

# $1: 0 for information, 2 for an error.
log() {
    printf '%s\n' "$2"
    if [ -x /sbin/log_tool ]; then
        /sbin/log_tool -t"$1" -uSystem -p127.0.0.1 -mlocalhost -a "[App Center] $2"
    fi
}

fail() {
    if [ -n "${new:-}" ]; then rm -rf "$new"; fi
    progress -1
    log 2 "Flotilla $version was not installed: $1"
    exit 1
}

get() {
    /sbin/getcfg "$1" "$2" -f "$3"
}

set_field() {
    /sbin/setcfg "$name" "$1" "$2" -f "$conf" || fail "$conf could not be written"
}

progress 0
case $(uname -m) in
@MACHINES@) ;;
*) fail "this package is for boxes with @PROCESSOR@; this one says $(uname -m)" ;;
esac

# QTS names the folder where the owner chose a volume. Otherwise programs are on the volume of the share Public.
programs=${QINSTALL_PATH:-}
if [ -z "$programs" ]; then
    public=$(get Public path /etc/config/smb.conf)
    if [ -z "$public" ] || [ ! -d "$public" ]; then fail "there is no volume with the share Public"; fi
    programs=$(dirname "$public")/.qpkg
fi
dest=$programs/$name
new=$programs/.$name.new
old=$programs/.$name.old

# Whole, and known to run here, before anything is changed.
rm -rf "$new"
mkdir -p "$new" || fail "$programs cannot be written"
tail -c +$((head_bytes + 1)) "$0" | head -c "$payload_bytes" | tar -xzf - -C "$new" ||
    fail "it could not be unpacked; is the volume full, or the file damaged?"
"$new/bin/$name" version >/dev/null || fail "its program does not run on this box"
progress 1

enabled=$(get "$name" Enable "$conf")
# One that was broken off between two names.
if [ ! -d "$dest" ] && [ -d "$old" ]; then mv "$old" "$dest"; fi
if [ -x "$dest/$name.sh" ]; then "$dest/$name.sh" stop; fi
rm -rf "$old"
if [ -d "$dest" ]; then mv "$dest" "$old" || fail "the old program could not be put aside"; fi
if ! mv "$new" "$dest"; then
    if [ -d "$old" ]; then mv "$old" "$dest"; fi
    fail "the new program could not be put in place"
fi
rm -rf "$old"
sync
progress 2

set_field Name "$name"
set_field Display_Name Flotilla
set_field Version "$version"
set_field Author "The Flotilla developers"
set_field QPKG_File "$name.qpkg"
set_field Date "$(date +%F)"
set_field Shell "$dest/$name.sh"
set_field Install_Path "$dest"
set_field RC_Number 101
set_field Timeout 30,60
set_field Enable "${enabled:-TRUE}"

# Started and stopped with the box.
ln -sf "$dest/$name.sh" "/etc/init.d/$name.sh"
ln -sf "/etc/init.d/$name.sh" "/etc/rcS.d/QS101$name"
ln -sf "/etc/init.d/$name.sh" "/etc/rcK.d/QK899$name"
for icon in .gif _80.gif _gray.gif; do
    cp "$dest/icons/flotilla$icon" "/home/httpd/RSS/images/$name$icon" 2>/dev/null
done

if [ "${enabled:-TRUE}" = TRUE ]; then
    "$dest/$name.sh" start || log 2 "Flotilla $version is installed and does not start; see $name.sh log"
fi
log 0 "Flotilla $version is installed in $dest."
progress 3
# What QTS wants to hear: the file is not needed any more.
exit 10
