# shellcheck shell=bash
# Starts systemd in namespaces of its own. Arguments: a folder, and the control groups that
# it is put in, one of each hierarchy. It is run twice: outside, then inside.
set -euo pipefail
dir=$1
shift
if [ -z "${FIRKIN_INSIDE:-}" ]; then
  for group in "$@"; do echo $$ >"$group/cgroup.procs"; done
  FIRKIN_INSIDE=1 exec unshare --fork --kill-child=SIGKILL --pid --mount --mount-proc --ipc --uts --cgroup \
    bash -c "$BASH_EXECUTION_STRING" start "$dir" "$@"
fi
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/stubs /run/empty
for target in sysinit basic shutdown umount final local-fs network network-online multi-user timers sockets paths slices default; do
  printf '[Unit]\nDescription=stub\nDefaultDependencies=no\n' >"/run/stubs/$target.target"
done
mount --bind /run/stubs /usr/lib/systemd/system
mount --bind /run/empty /usr/lib/systemd/system-generators
mount --bind "$dir/units" /etc/systemd/system
mount --bind "$dir/programs" /usr/local/bin
umount -R /sys/fs/cgroup
if [ $# = 1 ]; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
  mount -t tmpfs tmpfs /sys/fs/cgroup
  mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
  mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
  mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
fi
exec env -i container=firkin PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH=/etc/systemd/system:/usr/lib/systemd/system \
  /lib/systemd/systemd --system --unit=default.target --show-status=no --log-target=console --log-level=notice
