#!/bin/sh
# Keeps the agent running: Package Center starts a program once and does not look after it. $1: the program, $2: the
# state's folder, $3: the shared folder. Ends the agent and itself on SIGTERM. POSIX sh, as BusyBox has it.
program=$1 state=$2 share=$3
log=$state/agent.log
umask 077
printf '%s\n' "$$" >"$state/supervise.pid"

child='' rotator=''
leave() {
    kill $rotator 2>/dev/null && wait $rotator
    [ -n "$child" ] && kill "$child" 2>/dev/null && wait "$child"
    rm -f "$state/supervise.pid"
    exit 0
}
trap leave TERM INT

say() {
    printf '%s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*" >>"$log"
}

# One megabyte and the one before: a NAS has no log rotation for packages. The agent appends, so that it may be emptied.
rotate() {
    size=$(wc -c <"$log" 2>/dev/null) || return 0
    if [ "$size" -gt 1048576 ]; then
        cp "$log" "$log.1" && : >"$log"
    fi
}

# A machine that was installed without the wizard gets its code by the shared folder. It is taken when it has been there
# with one size for two looks: over a network a file is there before its content is.
given_size=''
fetch_code() {
    given=$share/flotilla-enrolment-code.txt
    if [ ! -f "$given" ] || [ -L "$given" ]; then
        given_size=''
        return
    fi
    size=$(wc -c <"$given") || return
    if [ "$size" != "$given_size" ] || ! grep -q '^flotilla-[A-Za-z0-9_-]\{40,\}' "$given"; then
        given_size=$size
        return
    fi
    cat "$given" >"$state/enrolment-code.new" &&
        mv -f "$state/enrolment-code.new" "$state/enrolment-code" && rm -f "$given" &&
        say "took the enrolment code from the shared folder"
}

# Ends with the supervisor, also one that was killed: `$$` is its number here too.
look_after_log() {
    nap=''
    trap 'kill $nap 2>/dev/null; exit 0' TERM
    while kill -0 $$ 2>/dev/null; do
        sleep 60 &
        nap=$!
        wait $nap
        rotate
    done
}

nap() {
    sleep "$1" &
    wait $!
}

look_after_log &
rotator=$!
pause=10
while :; do
    fetch_code
    # Without a code, and with no state of an earlier enrolment, there is nothing to start: no noise, and disks may sleep.
    if [ ! -e "$state/enrolment-code" ] && [ ! -e "$state/agent/state.redb" ]; then
        [ -n "${waits:-}" ] || say "no enrolment code; put one into $share/flotilla-enrolment-code.txt"
        waits=yes
        nap 10
        continue
    fi
    begun=$(date +%s)
    if [ -e "$state/enrolment-code" ]; then
        "$program" run --config "$state/agent.toml" --bootstrap "$state/enrolment-code" >>"$log" 2>&1 &
    else
        "$program" run --config "$state/agent.toml" >>"$log" 2>&1 &
    fi
    child=$!
    wait $child
    code=$?
    child=
    # What fails at once will fail again: ever longer pauses, up to five minutes.
    lasted=$(($(date +%s) - begun))
    if [ "$lasted" -ge 60 ]; then pause=10; fi
    say "the agent ended with $code after $lasted s; it is started again in $pause s"
    rotate
    nap "$pause"
    pause=$((pause * 2))
    if [ "$pause" -gt 300 ]; then pause=300; fi
done
