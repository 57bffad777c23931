#!/usr/bin/env bash
# A real Slurm of two nodes on one machine, from Debian's packages, with accounting and without systemd:
#   tests/slurm/cluster.sh install|start|stop|status
#
# `start` and `status` print one line, SLURM_CONF=<path>, for the environment of clients: export "$(tests/slurm/cluster.sh start)"
# Everything lies in SLURM_LAB_STATE; /etc is not touched. Jobs run as the user who started it; only `install` needs root or sudo.
set -euo pipefail
state=${SLURM_LAB_STATE:-/tmp/alignment_lab-slurm-$(id -u)}
timeout_s=${SLURM_LAB_TIMEOUT:-120} # seconds for each wait: this machine may have other work
nodes=(lab1 lab2)                   # names that nothing resolves: Slurm knows their addresses
daemons=(munged mariadbd slurmdbd slurmctld "${nodes[@]/#/slurmd-}") # the names of their pid files
etc=$state/etc run=$state/run log=$state/log spool=$state/spool
conf=$etc/slurm.conf
export SLURM_CONF=$conf PATH=$PATH:/usr/sbin:/sbin MYSQL_UNIX_PORT=$run/mariadbd.socket

die() { echo "cluster.sh: $*" >&2 && exit 1; }

installed() { command -v munged mariadbd slurmdbd slurmctld slurmd srun mariadb-install-db >/dev/null; }

install() {
    installed && return
    local root=(env) policy=/usr/sbin/policy-rc.d output
    [ "$(id -u)" = 0 ] || root=(sudo -n)
    output=$(mktemp)
    if [ ! -e $policy ]; then # the packages must start no services
        trap '"${root[@]}" rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | "${root[@]}" install -m 755 /dev/stdin $policy
    fi
    {
        "${root[@]}" apt-get -q -o DPkg::Lock::Timeout=300 update
        "${root[@]}" DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends \
            munge slurmctld slurmd slurm-client slurmdbd mariadb-server-core mariadb-client-core
    } >"$output" 2>&1 || { tail -n 15 "$output" >&2 && die "apt could not install Slurm: it needs root, or sudo without a password"; }
    rm -f "$output"
    installed || die "apt installed Slurm, but parts of it are missing"
}

# The process id of a daemon, if it runs. The pid file alone may be stale, or name a zombie.
pid() {
    local number
    number=$(cat "$run/$1.pid" 2>/dev/null) && tr '\0' ' ' 2>/dev/null <"/proc/$number/cmdline" | grep -q "^[^ ]*${1%-*}" && echo "$number"
}

register_cluster() { timeout 10 sacctmgr -i add cluster lab >"$log/sacctmgr.log" 2>&1; }

nodes_are() { # whether all nodes are in one of these states
    [ "$(timeout 10 sinfo -hN -o '%N %T' 2>/dev/null | sort -u | grep -cE " ($1)\$")" = ${#nodes[@]} ]
}

node_states() { timeout 10 sinfo -hN -o '%N %T %E' 2>&1 | sort -u; }

status() {
    local daemon
    for daemon in "${daemons[@]}"; do pid "$daemon" >/dev/null || die "$daemon does not run"; done
    nodes_are 'idle|mixed|allocated|completing' || die "a node accepts no jobs: $(node_states)"
    echo "SLURM_CONF=$conf"
}

# `wait_until WHAT COMMAND...`: until the command succeeds; else print the ends of the logs and stop everything.
wait_until() {
    local what=$1 end=$((SECONDS + timeout_s)) states
    shift
    until "$@"; do
        if [ $SECONDS -ge $end ]; then
            states=$(node_states || true)
            tail -n 12 "$log"/*.log >&2
            stop
            die "$what took more than $timeout_s s; the nodes: $states; the logs' ends are above"
        fi
        sleep 0.2
    done
}

configure() {
    local user host cpus memory port number
    user=$(id -un)
    host=$(uname -n) && host=${host%%.*}
    cpus=$(nproc) && cpus=$((cpus > 8 ? cpus : 8)) # more than there are, for several jobs at once on two cores
    memory=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
    port=$((10000 + $(cksum <<<"$state" | cut -d' ' -f1) % 2000 * 4)) # each state folder is a cluster with its own ports
    cat >"$conf" <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$spool/slurmctld
SlurmdSpoolDir=$spool/slurmd-%n
SlurmctldPidFile=$run/slurmctld.pid
SlurmdPidFile=$run/slurmd-%n.pid
SlurmctldLogFile=$log/slurmctld.log
SlurmdLogFile=$log/slurmd-%n.log

# A requeued job waits until its credential has expired: two minutes by default.
AuthType=auth/munge
AuthInfo=socket=$run/munged.socket,cred_expire=10

# No cgroups: they may be read-only. Memory is declared and not enforced.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PropagateResourceLimits=NONE
MpiDefault=none

# submitit asks sacct whether a job has ended.
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 1))
AccountingStoragePass=$run/munged.socket

# Short intervals, long time-outs for a busy machine. The queue shows ended jobs for a day.
KillWait=5
OverTimeLimit=0
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=1
MessageTimeout=60
SlurmdTimeout=600
ReturnToService=2
MinJobAge=86400

SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=DEFAULT CPUs=$cpus RealMemory=$memory Gres=gpu:2
CONF
    for number in "${!nodes[@]}"; do # Debian's Slurm refuses two nodes with one NodeHostname; the name given to slurmd -N need not be a host
        echo "NodeName=${nodes[number]} NodeHostname=${nodes[number]} NodeAddr=127.0.0.1 Port=$((port + 2 + number))"
    done >>"$conf"
    cat >>"$conf" <<CONF

# Jobs in spare and atonce are preempted by jobs in urgent: with a grace time, and at once.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=DEFAULT DefaultTime=60
PartitionName=lab Nodes=lab1 Default=YES PreemptMode=OFF
PartitionName=both Nodes=lab1,lab2 PreemptMode=OFF
PartitionName=spare Nodes=lab2 GraceTime=60
PartitionName=atonce Nodes=lab2
PartitionName=urgent Nodes=lab2 PriorityTier=2
CONF
    cat >"$etc/slurmdbd.conf" <<CONF
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + 1))
SlurmUser=$user
AuthType=auth/munge
AuthInfo=socket=$run/munged.socket
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=$user
PidFile=$run/slurmdbd.pid
LogFile=$log/slurmdbd.log
CONF
    # Slurm sets CUDA_VISIBLE_DEVICES only for device files.
    ln -s /dev/null "$etc/gpu0"
    ln -s /dev/zero "$etc/gpu1"
    echo "Name=gpu File=$etc/gpu[0-1]" >"$etc/gres.conf"
    (umask 077 && head -c 128 /dev/urandom >"$etc/munge.key")
    chmod 600 "$etc/slurmdbd.conf"
}

start() {
    (status) 2>/dev/null && return
    installed || die "Slurm is not installed: $0 install"
    stop
    [ ! -e "$state" ] || [ -e "$state/.slurm-lab" ] || die "$state exists, and was not made by this script"
    rm -rf "$state"
    mkdir -p "$etc" "$run" "$log" "$spool/slurmctld" "${nodes[@]/#/$spool/slurmd-}"
    touch "$state/.slurm-lab"
    chmod go-w "$state" "$state"/*
    configure
    munged --force --key-file="$etc/munge.key" --socket="$run/munged.socket" --pid-file="$run/munged.pid" --log-file="$log/munged.log" \
        --seed-file="$spool/munged.seed" 2>"$log/start.log" || { tail -n 12 "$log"/*.log >&2 && die "munged did not start"; }
    # The cluster's own database, on a socket in its folder, without passwords.
    mariadb-install-db --no-defaults --datadir="$spool/mariadb" --user="$(id -un)" --auth-root-authentication-method=normal --skip-test-db \
        >"$log/mariadb-install-db.log" 2>&1 || { tail -n 12 "$log"/*.log >&2 && die "the database for accounting could not be made"; }
    setsid mariadbd --no-defaults --datadir="$spool/mariadb" --user="$(id -un)" --skip-grant-tables --skip-networking \
        --socket="$MYSQL_UNIX_PORT" --pid-file="$run/mariadbd.pid" --log-error="$log/mariadbd.log" </dev/null >/dev/null 2>&1 &
    wait_until "the database" test -S "$MYSQL_UNIX_PORT"
    slurmdbd
    wait_until "slurmdbd" register_cluster
    slurmctld -c
    for node in "${nodes[@]}"; do slurmd -N "$node"; done
    wait_until "idle nodes" nodes_are idle
    status
}

stop() {
    local daemon process end
    if pid slurmctld >/dev/null; then # the daemons would leave their jobs running
        timeout 30 squeue -h -o %A | sort -u | xargs -r timeout 30 scancel || true
        end=$((SECONDS + 30))
        while [ $SECONDS -lt $end ] && timeout 10 squeue -h 2>/dev/null | grep -q .; do sleep 0.5; done
    fi
    for daemon in "${nodes[@]/#/slurmd-}" slurmctld slurmdbd mariadbd munged; do
        process=$(pid "$daemon") || continue
        kill "$process"
        end=$((SECONDS + 30))
        while pid "$daemon" >/dev/null; do
            [ $SECONDS -lt $end ] || kill -9 "$process"
            sleep 0.1
        done
    done
}

case ${1:-} in
    install | start | stop) # one at a time; -o: the daemons do not inherit the lock
        [ -n "${SLURM_LAB_LOCKED:-}" ] || SLURM_LAB_LOCKED=1 exec flock -o "${state%/}.lock" "$0" "$1"
        unset SLURM_LAB_LOCKED
        "$1"
        ;;
    status) status ;;
    *) die "give install, start, stop or status" ;;
esac
