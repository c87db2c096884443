#!/bin/sh
# Boots a folder with a Debian as a container under its own systemd, runs a script there and shows what it printed; exits
# with its status.  Needs root, and the package systemd-container.
#
#	tests/container.sh ROOT SCRIPT SECONDS     SECONDS: for all of it
set -eu
root=$1
trial=$root/trial

mkdir -p "$trial"
rm -f "$trial/log" "$trial/status"
cp "$2" "$trial/inside.sh"
cat >"$root/etc/systemd/system/trial.service" <<'END'
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sh /trial/inside.sh >/trial/log 2>&1; echo $? >/trial/status'
ExecStopPost=systemctl poweroff --no-block
END
mkdir -p "$root/etc/systemd/system/default.target.wants"
ln -sf ../trial.service "$root/etc/systemd/system/default.target.wants/trial.service"

# Where systemd does not run the host it cannot be told of the container.
unmanaged=
[ -d /run/systemd/system ] || unmanaged="--register=no --keep-unit"
# shellcheck disable=SC2086 # two words
timeout "$3" systemd-nspawn -q $unmanaged --private-network --machine="mamba2d-trial-$$" -D "$root" --boot \
	>"$trial/console" 2>&1 </dev/null || true
cat "$trial/log" || tail -n 50 "$trial/console"
exit "$(cat "$trial/status")"
