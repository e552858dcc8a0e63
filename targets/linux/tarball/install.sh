#!/bin/sh
# Installs the agent where no package is for it, or upgrades it; removes it (uninstall), with its configuration and who it is
# (purge). For systemd, OpenRC, System V's and BusyBox's init. POSIX sh, as BusyBox has it.
here=$(cd "$(dirname "$0")" && pwd) || exit 1
dest=/usr/local/lib/flotilla-agent
state=/var/lib/flotilla-agent
user=flotilla-agent

fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

# What starts services here.
system() {
    if [ -d /run/systemd/system ]; then
        printf systemd
    elif [ -x /sbin/openrc-run ]; then
        printf openrc
    elif [ -x /usr/sbin/update-rc.d ] || [ -x /sbin/chkconfig ]; then
        printf sysv
    elif [ -f /etc/init.d/rcS ]; then
        printf busybox
    else
        printf none
    fi
}

case $(system) in
systemd) script=/etc/systemd/system/flotilla-agent.service ;;
busybox) script=/etc/init.d/S95flotilla-agent ;;
none) script='' ;;
*) script=/etc/init.d/flotilla-agent ;;
esac

# All that is installed, as `source target mode`; the configuration apart.
files() {
    printf '%s\n' \
        "bin/flotilla-agent $dest/bin/flotilla-agent 755" \
        "supervise.sh $dest/bin/supervise.sh 755" \
        "service.sh $dest/service.sh 644" \
        "service $dest/service 755" \
        "install.sh $dest/install.sh 755" \
        "flotilla-agent-enrol /usr/local/sbin/flotilla-agent-enrol 755" \
        "flotilla-agent.1 /usr/local/share/man/man1/flotilla-agent.1 644" \
        "flotilla-agent-enrol.8 /usr/local/share/man/man8/flotilla-agent-enrol.8 644"
    case $(system) in
    systemd) printf '%s\n' "flotilla-agent.service $script 644" ;;
    openrc) printf '%s\n' "init.openrc $script 755" ;;
    sysv | busybox) printf '%s\n' "init.sysv $script 755" ;;
    esac
}

stop() {
    case $(system) in
    systemd) systemctl stop flotilla-agent.service 2>/dev/null ;;
    *) if [ -x "$dest/service" ]; then "$dest/service" stop; fi ;;
    esac
}

# Where it had a code it runs from now on, otherwise flotilla-agent-enrol starts it.
start() {
    case $(system) in
    systemd)
        systemctl daemon-reload
        systemctl enable --quiet flotilla-agent.service
        systemctl restart flotilla-agent.service
        ;;
    openrc)
        rc-update add flotilla-agent default >/dev/null
        rc-service flotilla-agent restart
        ;;
    sysv)
        if [ -x /usr/sbin/update-rc.d ]; then update-rc.d flotilla-agent defaults; else chkconfig --add flotilla-agent; fi
        "$script" restart
        ;;
    *) "$dest/service" restart ;;
    esac
}

# The agent's own user, if this system can make one.
make_user() {
    id "$user" >/dev/null 2>&1 && return
    if command -v useradd >/dev/null 2>&1; then
        useradd --system --user-group --no-create-home --home-dir "$state" --shell /bin/false "$user"
    elif command -v adduser >/dev/null 2>&1 && command -v su >/dev/null 2>&1; then
        addgroup -S "$user" && adduser -S -D -H -h "$state" -s /bin/false -G "$user" "$user"
    fi
    id "$user" >/dev/null 2>&1 || printf 'No user could be made: the agent runs as root.\n' >&2
}

own() {
    if id "$user" >/dev/null 2>&1; then chown "$user:$user" "$1"; fi
}

install() {
    # Before anything is changed.
    "$here/bin/flotilla-agent" version >/dev/null || fail "the program does not run here; is it for another processor?"
    make_user
    # First all of it beside what is there: a full disk shows now.
    if ! files | while read -r source target mode; do
        mkdir -p "${target%/*}" && cp "$here/$source" "$target.new" && chmod "$mode" "$target.new" || exit 1
    done; then
        files | while read -r _ target _; do rm -f "$target.new"; done
        fail 'there is no room for it; nothing was changed'
    fi
    sync
    if [ "$(system)" != systemd ]; then stop; fi
    files | while read -r _ target _; do mv -f "$target.new" "$target" || exit 1; done || fail 'half of it is in place; run it again'
    mkdir -p /usr/local/bin && ln -sf "$dest/bin/flotilla-agent" /usr/local/bin/flotilla-agent
    mkdir -p /etc/flotilla
    if [ ! -s /etc/flotilla/agent.toml ]; then
        cp "$here/agent.toml" /etc/flotilla/agent.toml.new && sync && mv -f /etc/flotilla/agent.toml.new /etc/flotilla/agent.toml ||
            fail 'cannot write /etc/flotilla/agent.toml'
    fi
    if [ ! -d "$state" ]; then mkdir -p "$state" && chmod 700 "$state" && own "$state"; fi
    if [ ! -e /srv/flotilla ]; then mkdir -p /srv/flotilla && own /srv/flotilla; fi
    start || fail 'it is installed, and does not start'
    if [ ! -e "$state/state.redb" ]; then
        printf 'Now give this machine its enrolment code: /usr/local/sbin/flotilla-agent-enrol\n'
    fi
}

uninstall() {
    stop
    case $(system) in
    systemd) systemctl disable --quiet flotilla-agent.service ;;
    openrc) rc-update del flotilla-agent >/dev/null ;;
    esac
    files | while read -r _ target _; do rm -f "$target"; done
    rm -f /usr/local/bin/flotilla-agent
    rmdir "$dest/bin" "$dest" 2>/dev/null
    case $(system) in
    systemd) systemctl daemon-reload ;;
    sysv) if [ -x /usr/sbin/update-rc.d ]; then update-rc.d flotilla-agent remove; else chkconfig --del flotilla-agent; fi ;;
    esac
}

purge() {
    uninstall
    rm -rf /etc/flotilla
    # `folders` is where files of jobs lie if the configuration named no place for them.
    for path in "$state"/* "$state"/.[!.]*; do
        if [ "$path" != "$state/folders" ] || [ ! -d "$path" ]; then rm -rf "$path"; fi
    done
    rmdir "$state" /srv/flotilla 2>/dev/null
    if [ -e /srv/flotilla ]; then printf 'What jobs brought is left in /srv/flotilla.\n'; fi
}

[ "$(id -u)" = 0 ] || fail 'run it as root'
case ${1:-install} in
install) install ;;
uninstall) uninstall ;;
purge) purge ;;
*)
    printf 'usage: install.sh [install|uninstall|purge]\n' >&2
    exit 2
    ;;
esac
