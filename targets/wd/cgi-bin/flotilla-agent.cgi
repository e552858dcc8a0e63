#!/bin/sh
# Tells the page how the agent is, and takes an enrolment code while start.sh allows it. Anybody in the network may call
# this: it tells nothing else and does nothing else. The code comes in a header of its own, which lands in no log, and which
# pages of others cannot send without being asked first.
run=/var/run/flotilla-agent

answer() {
    printf 'Status: %s\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n\r\n{"agent":"%s","takes_codes":%s}\n' \
        "$1" "$agent" "$takes"
    exit 0
}

agent=stopped takes=false
[ -r "$run/status" ] && read -r word <"$run/status" && case $word in waiting | joining | running | ended) agent=$word ;; esac
case $agent in
waiting | joining) read -r until <"$run/until" && [ "$(cut -d. -f1 /proc/uptime)" -lt "$until" ] && takes=true ;;
esac
code=${HTTP_X_FLOTILLA_CODE:-}
case ${REQUEST_METHOD:-} in
GET) answer '200 OK' ;;
POST) ;;
*) answer '405 Method Not Allowed' ;;
esac
[ "$takes" = true ] || answer '403 Forbidden'
case $code in
*[!A-Za-z0-9_-]*) answer '400 Bad Request' ;;
flotilla-????????????????????????????????????????*) ;;
*) answer '400 Bad Request' ;;
esac
[ ${#code} -le 2048 ] || answer '400 Bad Request'
# Whole before it has its name; the first one that is given counts until it was taken.
new=$run/given/new.$$
if (umask 022 && printf '%s\n' "$code" >"$new") && mv "$new" "$run/given/code"; then answer '202 Accepted'; fi
answer '500 Internal Server Error'
