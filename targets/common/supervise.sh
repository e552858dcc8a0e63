#!/bin/sh
# Keeps the agent running: NAS boxes start a program once and do not look after it. $1: the program, $2: the state's
# folder, further ones: files in which an enrolment code may be given. Ends the agent and itself on SIGTERM. POSIX sh, as
# BusyBox has it. FLOTILLA_STATUS, if set: a file that tells what is going on, in a word; FLOTILLA_CODES_UNTIL: seconds
# since the machine's start after which no code is taken any more; FLOTILLA_CONFIG and FLOTILLA_DATA: where the agent's
# configuration and data lie if not in that folder.
program=$1 state=$2
shift 2
config=${FLOTILLA_CONFIG:-$state/agent.toml} data=${FLOTILLA_DATA:-$state/agent}
log=$state/agent.log
umask 077
# Its memory has keys in it.
ulimit -c 0
printf '%s\n' "$$" >"$state/supervise.pid" || exit 1

child=''
end_agent() {
    if [ -n "$child" ]; then kill "$child" 2>/dev/null && wait "$child"; fi
    child=''
    rm -f "$state/agent.pid"
}

leave() {
    # A signal may come before the number was noted: then it is that of the last one that was begun.
    [ -n "$child" ] || child=$!
    end_agent
    rm -f "$state/supervise.pid"
    status stopped
    exit 0
}
trap leave TERM INT

say() {
    printf '%s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*" >>"$log"
}

told=''
status() {
    if [ -n "${FLOTILLA_STATUS:-}" ] && [ "$told" != "$1" ]; then
        told=$1
        (umask 022 && printf '%s\n' "$1" >"$FLOTILLA_STATUS")
    fi
}

# The machine's own seconds: clocks of such boxes jump.
look_at_clock() {
    read -r now _ </proc/uptime
    now=${now%%.*}
}

# One megabyte and the one before: a NAS has no log rotation for packages. The agent appends, so that it may be emptied.
rotate() {
    size=$(wc -c <"$log" 2>/dev/null) || return 0
    if [ "$size" -gt 1048576 ]; then
        cp "$log" "$log.1" || rm -f "$log.1"
        : >"$log"
    fi
}

# Without the code's file a member is what it is, whatever somebody gives it.
is_member() {
    [ ! -e "$state/enrolment-code" ] && [ -e "$data/state.redb" ]
}

# What may be a code in a file: its characters alone, since editors and mail add spaces, line ends and marks of their own.
code_in() {
    [ -f "$1" ] && [ ! -L "$1" ] && head -c 4096 "$1" | tr -cd 'A-Za-z0-9_-'
}

# A code is taken when it was there for two looks: over a network a file is there before its content is.
seen='' taken=''
fetch_code() {
    if [ -n "${FLOTILLA_CODES_UNTIL:-}" ] && [ "$now" -ge "$FLOTILLA_CODES_UNTIL" ]; then return; fi
    for given in "$@"; do
        text=$(code_in "$given")
        case $text in
        flotilla-????????????????????????????????????????*) ;;
        *) continue ;;
        esac
        if [ "$text" != "$seen" ]; then
            seen=$text
        elif printf '%s\n' "$text" >"$state/enrolment-code.new" && sync &&
            mv -f "$state/enrolment-code.new" "$state/enrolment-code"; then
            rm -f "$given"
            seen='' taken=yes
            say "took the enrolment code that was given in $given"
        fi
        return
    done
    seen=''
}

# In a process of its own. What the agent makes in the owner's folders is for others to see.
run_agent() {
    umask 022
    if [ -e "$state/enrolment-code" ]; then set -- --bootstrap "$state/enrolment-code"; else set --; fi
    exec "$program" run --config "$config" --data "$data" "$@"
}

pause=10 next=0 turn=0 waits=''
while :; do
    look_at_clock
    is_member || fetch_code "$@"
    if [ -n "$taken" ]; then
        # Whatever it tried until now.
        end_agent
        taken='' pause=10 next=0
    fi
    if [ -n "$child" ] && ! kill -0 "$child" 2>/dev/null; then
        wait "$child"
        code=$?
        child=''
        rm -f "$state/agent.pid"
        # What fails at once will fail again: ever longer pauses, up to five minutes.
        lasted=$((now - begun))
        if [ "$lasted" -ge 60 ]; then pause=10; fi
        say "the agent ended with $code after $lasted s; it is started again in $pause s"
        next=$((now + pause))
        pause=$((pause * 2))
        if [ "$pause" -gt 300 ]; then pause=300; fi
    fi
    if [ -n "$child" ]; then
        :
    elif [ ! -e "$state/enrolment-code" ] && [ ! -e "$data/state.redb" ]; then
        # Nothing to start: no noise, and disks may sleep.
        [ -n "$waits" ] || say "no enrolment code yet"
        waits=yes
    elif [ "$now" -ge "$next" ]; then
        begun=$now
        run_agent >>"$log" 2>&1 &
        child=$!
        printf '%s\n' "$child" >"$state/agent.pid"
    fi
    if [ -e "$state/enrolment-code" ]; then
        status joining
    elif [ ! -e "$data/state.redb" ]; then
        status waiting
    elif [ -n "$child" ]; then
        status running
    else
        status ended
    fi
    turn=$((turn + 1))
    if [ $((turn % 12)) = 0 ]; then rotate; fi
    sleep 5 &
    wait $!
done
