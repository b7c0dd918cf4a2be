#!/bin/sh
# Starts a server, asks it, ends it. The network of a step may be the host's: another port than the usual one.
set -eu
export KV_PORT=27379
./kv-server &
server=$!
tries=0
until ./kv-client PING; do
	tries=$((tries + 1))
	[ "$tries" -lt 300 ]
	kill -0 "$server"
	sleep 0.1
done
./kv-client SET two words
[ "$(./kv-client GET)" = '$two words' ]
kill "$server"
wait "$server"
echo passed > tests/passed
