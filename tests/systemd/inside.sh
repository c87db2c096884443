#!/bin/sh
# What run.sh tries in the container that it boots.  Stops at the first thing that is not as it should be.
set -eu
trap '[ $? = 0 ] || journalctl -b --no-pager | tail -n 40' EXIT

say() { printf '\n== %s\n' "$*"; }
property() { systemctl show --value -p "$1" mamba2d; }

# until COMMAND...: wait for up to a minute until it succeeds.
until_true() {
	for _ in $(seq 600); do
		if "$@" >/dev/null 2>&1; then
			return 0
		fi
		sleep 0.1
	done
	echo "never happened: $*"
	exit 1
}
status_has() { property StatusText | grep -q "$1"; }
restarted() { [ "$(property MainPID)" != "$1" ] && [ "$(property ActiveState)" = active ]; }
restarts() { property NRestarts; }

# The position at which a stream goes on, by sending it nothing new.
next_of() { mamba2ctl streams --json "$1" | sed 's/.*"next": \([0-9]*\).*/\1/'; }

say "what it may do"
systemd-analyze security mamba2d.service --no-pager | tail -n 1

say "start returns when it is ready"
systemctl start mamba2d
mamba2ctl status | grep -E '^(state|window|device)'
journalctl -u mamba2d -o cat --no-pager | grep -x ready

say "metrics are there"
bash -c 'exec 3<>/dev/tcp/127.0.0.1/9464 && printf "GET /readyz HTTP/1.0\r\n\r\n" >&3 && cat <&3' | grep -x ready

say "the status has live figures"
mamba2ctl send s /trial/rows.npy
until_true status_has 'serving 1 streams'
systemctl status mamba2d --no-pager | grep Status:

say "refusals have fields in the journal"
mamba2ctl send narrow /trial/narrow.npy || [ $? = 4 ]
until_true sh -c 'journalctl -u mamba2d STREAM=narrow CODE=bad_shape -o cat --no-pager | grep refused'
journalctl -u mamba2d STREAM=narrow -o json-pretty --no-pager | grep -E '"(STREAM|CODE|MESSAGE|PRIORITY)"'

say "reload applies what is live, and says what is not"
sed -i 's/idle_timeout: 600/idle_timeout: 700/; s/window: .*/window: 128/' /etc/mamba2d/mamba2d.yaml
systemctl reload mamba2d
journalctl -u mamba2d -o cat --no-pager | grep -i -E 'idle_timeout|window' | tail -n 3
[ "$(property ActiveState)" = active ]
echo 'nonsense: 1' >>/etc/mamba2d/mamba2d.yaml
if systemctl reload mamba2d; then
	exit 1
fi
[ "$(property ActiveState)" = active ]
mamba2ctl status | grep -E '^(state|window) '
sed -i '/nonsense/d; s/window: .*/window: 256/' /etc/mamba2d/mamba2d.yaml

say "SIGTERM keeps states"
systemctl restart mamba2d
mamba2ctl send s /trial/rows.npy | tee /trial/sent
grep -q 'position 1000 on' /trial/sent
mamba2ctl snapshot s

say "a worker stopped by a debugger is restarted"
mkdir -p /run/systemd/system/mamba2d.service.d
printf '[Service]\nWatchdogSec=2\n' >/run/systemd/system/mamba2d.service.d/hurry.conf
systemctl daemon-reload
systemctl restart mamba2d
pid=$(property MainPID)
gdb -q -batch -p "$pid" -ex 'shell sleep 60' >/trial/gdb 2>&1 &
until_true restarted "$pid"
journalctl -u mamba2d -o cat --no-pager | grep -E 'Watchdog timeout|watchdog' | tail -n 3
[ "$(restarts)" = 1 ]
mamba2ctl send s /trial/rows.npy | tee /trial/sent
grep -q 'position 2000 on' /trial/sent
mamba2ctl snapshot s

say "so is one stopped by SIGSTOP"
pid=$(property MainPID)
kill -STOP "$pid"
until_true restarted "$pid"
[ "$(restarts)" = 2 ]

say "an idle daemon is not"
pid=$(property MainPID)
sleep 8
[ "$(property MainPID)" = "$pid" ]

say "a second one beside it"
systemctl start mamba2d@second
mamba2ctl status --control ipc:///run/mamba2d-second/control | grep -E '^state'
systemctl stop mamba2d@second

say "a configuration that is wrong is said so, and nothing is started"
echo 'windw: 3' >>/etc/mamba2d/second.yaml
if systemctl start mamba2d@second; then
	exit 1
fi
journalctl -u mamba2d@second -o cat --no-pager | grep 'unknown key'

say "stop"
systemctl stop mamba2d
[ "$(property Result)" = success ]
journalctl -u mamba2d -o cat --no-pager | tail -n 4
say "all well"
