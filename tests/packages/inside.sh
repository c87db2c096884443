#!/bin/sh
# What run.sh tries in the container that it boots.  Stops at the first thing that is not as it should be.
set -eu
trap '[ $? = 0 ] || journalctl -b -u "mamba2d*" --no-pager | tail -n 40' EXIT
export DEBIAN_FRONTEND=noninteractive
example=/usr/share/mamba2d/examples/ecg

say() { printf '\n== %s\n' "$*"; }
property() { systemctl show --value -p "$1" "${2:-mamba2d}"; }
# There is no network: only what was fetched before can be installed.
install() { apt-get -qq -y install --no-install-recommends "$@" >/dev/null; }
# Send 1000 rows to a stream, and say at which position it went in.
send() { mamba2ctl send --ingest "tcp://127.0.0.1:$2" "$1" /trial/rows.npy; }

say "install: the service is there, and waits to be started"
install /trial/mamba2d.deb
[ "$(property ActiveState)" = inactive ]
[ "$(property UnitFileState)" = disabled ]

say "start: it serves the example"
systemctl start mamba2d
mamba2ctl status | grep -E '^(state|model|window|device)'

say "the example, through the Python client"
install /trial/python3-mamba2d.deb python3-matplotlib
mkdir /trial/ecg
$example/consume.py --publish tcp://127.0.0.1:5702 --out /trial/ecg --check $example/prediction_error.npy \
	>/trial/ecg/log 2>&1 &
for _ in $(seq 600); do
	! grep -q subscribed /trial/ecg/log || break
	sleep 0.1
done
$example/publish.py --ingest tcp://127.0.0.1:5701 --speed 0
wait $!
cat /trial/ecg/log

say "a group may use the ipc sockets where drop-in and configuration say so, others may not"
groupadd sensors
useradd --groups sensors sensor
cp /etc/mamba2d/mamba2d.yaml /trial
printf 'security:\n  ipc_mode: "0660"\n' >>/etc/mamba2d/mamba2d.yaml
mkdir -p /etc/systemd/system/mamba2d.service.d
printf '[Service]\nGroup=sensors\n' >/etc/systemd/system/mamba2d.service.d/group.conf
systemctl daemon-reload
systemctl restart mamba2d
runuser -u sensor -- mamba2ctl status --control ipc:///run/mamba2d/control | grep '^state '
if runuser -u nobody -- mamba2ctl status --control ipc:///run/mamba2d/control; then
	exit 1
fi
cp /trial/mamba2d.yaml /etc/mamba2d
rm -r /etc/systemd/system/mamba2d.service.d
systemctl daemon-reload
systemctl restart mamba2d

say "a second instance, and a changed configuration"
sed 's/570/580/; s/:9464/:9465/; s,/var/lib/mamba2d,/var/lib/mamba2d-second,' /etc/mamba2d/mamba2d.yaml \
	>/etc/mamba2d/second.yaml
systemctl start mamba2d@second
echo '# changed here' >>/etc/mamba2d/mamba2d.yaml
/usr/bin/python3 -c 'import numpy; numpy.save("/trial/rows.npy", numpy.ones((1000, 64), "f4"))'
send kept 5701
send kept 5801

say "upgrade: both are restarted, with their states and the configuration"
before="$(property MainPID) $(property MainPID mamba2d@second)"
install /trial/later.deb
dpkg-query -W mamba2d
[ "$(property ActiveState) $(property ActiveState mamba2d@second)" = "active active" ]
after="$(property MainPID) $(property MainPID mamba2d@second)"
echo "processes $before, then $after"
[ "${before% *}" != "${after% *}" ] && [ "${before#* }" != "${after#* }" ]
tail -n 1 /etc/mamba2d/mamba2d.yaml | grep 'changed here'
send kept 5701 | tee /trial/sent
grep -q 'position 1000 on' /trial/sent
send kept 5801 | tee /trial/sent
grep -q 'position 1000 on' /trial/sent

say "remove: stopped; the configuration and the states stay"
apt-get -qq -y remove mamba2d >/dev/null
[ "$(property ActiveState) $(property ActiveState mamba2d@second)" = "inactive inactive" ]
[ ! -e /usr/bin/mamba2d ]
ls -d /etc/mamba2d/mamba2d.yaml /var/lib/private/mamba2d /var/lib/private/mamba2d-second

say "install again: they are used"
install /trial/mamba2d.deb
systemctl start mamba2d
send kept 5701 | tee /trial/sent
grep -q 'position 2000 on' /trial/sent

say "purge: nothing is left"
apt-get -qq -y purge mamba2d python3-mamba2d >/dev/null
rm -f /var/cache/apt/archives/*mamba2d*
find / -xdev -name '*mamba2d*' ! -path '/trial/*' ! -path '/proc/*' | tee /trial/left
[ ! -s /trial/left ]
if grep -rl mamba2d /etc /var/lib --exclude-dir=apt; then
	exit 1
fi
say "all well"
