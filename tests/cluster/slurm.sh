#!/usr/bin/env bash
# A SLURM cluster of one node, this machine, without cgroups, munge or systemd.
#
#   sudo bash tests/cluster/slurm.sh start FOLDER     installs Debian's slurm-wlm when it is missing
#   export SLURM_CONF=FOLDER/slurm.conf               for sbatch, squeue and the others
#   sudo bash tests/cluster/slurm.sh stop FOLDER
#
# Partition `low` is the default; a job in `high` pre-empts its jobs, which are warned, get 60 s, and are requeued.

set -euo pipefail

ACTION="$1"
mkdir -p "$2"
FOLDER="$(cd "$2" && pwd)"
export SLURM_CONF="$FOLDER/slurm.conf"

stop() {
    local name
    for name in slurmd slurmctld; do
        [[ -f "$FOLDER/$name.pid" ]] || continue
        kill "$(<"$FOLDER/$name.pid")" 2>/dev/null || true
        rm -f "$FOLDER/$name.pid"
    done
}

case "$ACTION" in
    stop) stop; exit ;;
    start) ;;
    *) echo "ERROR: $ACTION; use start or stop." >&2; exit 1 ;;
esac
if ! command -v slurmctld >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm ||
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm; }
fi
HOST="$(hostname -s)"
mkdir -p "$FOLDER/state" "$FOLDER/spool"
# cred_expire: a requeued job waits until its first credential has expired, by default 2 minutes.
cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=${SLURMCTLD_PORT:-16817}
SlurmdPort=${SLURMD_PORT:-16818}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd.log
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$(nproc)
PartitionName=low Nodes=$HOST Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=$HOST PriorityTier=10 PreemptMode=OFF
CONF
rm -rf "$FOLDER/state"/* "$FOLDER/spool"/*
slurmctld -c
slurmd -c
for _ in $(seq 100); do
    [[ "$(sinfo --noheader --partition low --format %T 2>/dev/null)" == idle ]] && exit 0
    sleep 0.2
done
echo "ERROR: the node is not idle after 20 s:" >&2
tail -n 5 "$FOLDER"/slurm*.log >&2
stop
exit 1
