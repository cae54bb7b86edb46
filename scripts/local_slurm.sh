#!/usr/bin/env bash
# A real Slurm of two nodes on this machine, for trying sweeps and for the tests marked `slurm`.
#
#   scripts/local_slurm.sh start [--dir DIR] [--port PORT] [--install]
#   scripts/local_slurm.sh stop | status | restart-controller [--dir DIR]
#   scripts/local_slurm.sh kill-node n2 | start-node n2 [--dir DIR]
#   scripts/local_slurm.sh install
#
# `eval "$(scripts/local_slurm.sh start)"` points this shell at it: the one line on stdout is the
# export of SLURM_CONF. All state is in DIR (default: maxp-slurm-UID under XDG_RUNTIME_DIR or
# /tmp), so several can run side by side, and nothing in /etc/slurm is used or written. `install`
# (root, Debian) gets the packages and makes the host's name resolve. restart-controller kills
# slurmctld with -9 and starts it again: what it accepted in the last five seconds may be lost, as
# on a cluster. kill-node kills a node's slurmd and all that its jobs run there, as if its power had
# failed. Works as root, and as another user for that user's jobs.
set -euo pipefail
templates=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/local_slurm
PATH=$PATH:/usr/sbin:/sbin
packages='slurm-wlm munge'
daemons='munged slurmctld n1 n2'  # as their pid files are called; a slurmd goes by its node

say() { echo "local_slurm: $*" >&2; }
die() { say "error: $*"; exit 1; }
usage() { sed -n '2,/^set/ { s/^# \{0,1\}//p }' "${BASH_SOURCE[0]}" >&2; exit 2; }

# wait_for SECONDS COMMAND...: whether the command succeeds within SECONDS.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

# --- what must be there -------------------------------------------------------------------------

missing_commands() {
    local command
    for command in slurmctld slurmd munged sinfo; do
        command -v "$command" > /dev/null || echo "$command"
    done
}

name_resolves() { getent hosts "$(hostname -s)" > /dev/null; }

install_packages() {
    if [ -n "$(missing_commands)" ]; then
        [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null ||
            die "install needs root and Debian's apt-get; packages: $packages"
        say "installing $packages"
        # RUNLEVEL=1: the packages' own services are not started.
        export RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive
        apt-get -o DPkg::Lock::Timeout=300 -qq update > /dev/null
        # shellcheck disable=SC2086
        apt-get -o DPkg::Lock::Timeout=300 -qq -y install --no-install-recommends $packages > /dev/null
    fi
    if ! name_resolves; then
        say "adding $(hostname -s) to /etc/hosts"
        echo "127.0.0.1 $(hostname -s)" >> /etc/hosts
    fi
}

check_requirements() {
    local missing
    missing=$(missing_commands | tr '\n' ' ')
    [ -z "$missing" ] || die "not installed: ${missing% }; as root: bash scripts/local_slurm.sh install" \
        "(or: apt-get install --no-install-recommends $packages)"
    name_resolves || die "this host's name does not resolve; as root:" \
        "bash scripts/local_slurm.sh install (or add '127.0.0.1 $(hostname -s)' to /etc/hosts)"
    # Steps listen on Unix sockets under DIR, whose paths the system limits to 107 characters.
    [ ${#dir} -le 65 ] || die "--dir $dir: too long a path for Slurm's sockets; at most 65 characters"
    [ ! -e "$dir" ] || [ -e "$marker" ] || [ -z "$(ls -A "$dir")" ] ||
        die "--dir $dir holds other files; name a new or an empty folder"
    [ ! -e "$dir" ] || [ -O "$dir" ] || die "--dir $dir belongs to another user"
}

# A Slurm that this script did not start is never touched, nor one started next to it.
check_no_other_slurm() {
    local pid other
    [ ! -e /etc/slurm/slurm.conf ] ||
        die "/etc/slurm/slurm.conf exists: this machine belongs to another Slurm, which is left alone"
    for pid in $(pgrep -x 'slurm(ctl)?d' || true); do
        other=$(tr '\0' '\n' 2>/dev/null < "/proc/$pid/cmdline" | grep -A1 -xF -- -f | tail -n 1) || true
        # An ended process that nobody has waited for has no arguments left.
        [ -n "$(tr -d '\0' 2>/dev/null < "/proc/$pid/cmdline")" ] || continue
        [ -n "$other" ] && [ -e "$(dirname "$other")/$(basename "$marker")" ] ||
            die "process $pid is a $(cat "/proc/$pid/comm") that this script did not start; stop it first"
    done
}

# --- which processes are ours -------------------------------------------------------------------

# alive DAEMON: prints its id if it runs. The folder is among its arguments, so another process that
# was given the same id since is not taken for it.
alive() {
    local pid name=$1
    case $name in n[12]) name=slurmd ;; esac
    pid=$(cat "$dir/$1.pid" 2>/dev/null) && [ -n "$pid" ] &&
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$name" ] &&
        tr '\0' ' ' 2>/dev/null < "/proc/$pid/cmdline" | grep -qF -- "$dir/" && echo "$pid"
}
dead() { ! alive "$1" > /dev/null; }
all_alive() { local each; for each in $daemons; do alive "$each" > /dev/null || return 1; done; }
none_alive() { local each; for each in $daemons; do dead "$each" || return 1; done; }

# node_processes NODE: a node's slurmd and slurmstepd, by the log that they hold open, and its tasks,
# by what Slurm puts into their environment; this also finds those whose daemons are gone.
node_processes() {
    local pid
    for pid in $(pgrep -x 'slurm(d|stepd)' || true); do
        [ -z "$(find "/proc/$pid/fd" -lname "$dir/log/$1.log" 2>/dev/null)" ] || echo "$pid"
    done
    grep -lzxF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ 2>/dev/null |
        xargs -r grep -lzxF "SLURMD_NODENAME=$1" 2>/dev/null | cut -d/ -f3
}

kill_node() {
    local pids
    node_is_dead() {
        pids=$(node_processes "$1") || true
        [ -n "$pids" ] || return 0
        # Stopped first: none may live to report the death of another, as if the job had failed.
        # shellcheck disable=SC2086
        kill -STOP $pids 2>/dev/null || true
        # shellcheck disable=SC2086
        kill -KILL $pids 2>/dev/null || true
        return 1
    }
    wait_for 60 node_is_dead "$1" || die "node $1: processes ${pids//$'\n'/ } do not end"
}

# end DAEMON SIGNAL: ends it and waits until it is gone.
end() {
    local pid
    pid=$(alive "$1") || return 0
    kill "-$2" "$pid" 2>/dev/null || true
    wait_for 60 dead "$1" || { say "$1 ignores $2: KILL"; kill -KILL "$pid" 2>/dev/null || true; }
    wait_for 60 dead "$1" || die "$1 (process $pid) does not end"
}

# --- starting and stopping ----------------------------------------------------------------------

is_free() { ! (exec 3<> "/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Three ports in a row: slurmctld, n1, n2.
choose_port() {
    local try base
    for try in $(shuf -i 0-99); do
        # Below the ports of the jobs' ranks, and those that the system gives to outgoing connections.
        base=${port:-$((19000 + 4 * try))}
        if is_free "$base" && is_free $((base + 1)) && is_free $((base + 2)); then
            echo "$base"
            return
        fi
        [ -z "$port" ] || die "--port $port: it or one of the two after it is in use"
    done
    die "no three free ports found from 19000 on; name the first with --port"
}

write_configuration() {
    local base file gpu
    base=$(choose_port)
    mkdir -p "$dir"/{log,state,dev,spool/n1,spool/n2}
    touch "$marker"
    for file in slurm gres cgroup; do
        sed "s#@DIR@#$dir#g; s#@HOST@#$(hostname -s)#g; s#@USER@#$(id -un)#g; s#@PORT@#$base#g
             s#@PORT1@#$((base + 1))#g; s#@PORT2@#$((base + 2))#g
             s#@FIRST_JOB@#$((base / 4 % 100 * 100 + 1))#g" "$templates/$file.conf" \
            > "$dir/$file.conf.new"
        mv "$dir/$file.conf.new" "$dir/$file.conf"
    done
    for gpu in 0 1; do ln -sfn /dev/null "$dir/dev/gpu$gpu"; done
    if [ ! -e "$dir/munge.key" ]; then
        (umask 077 && head -c 1024 /dev/urandom > "$dir/munge.key.new")
        mv "$dir/munge.key.new" "$dir/munge.key"
    fi
}

launch() {
    dead "$1" || return 0
    # The lock (9) is not for daemons to inherit.
    case $1 in
        # --force: a socket in a folder that other users cannot enter is what is wanted here.
        munged) munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
            --pid-file="$dir/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/munge.seed" ;;
        slurmctld) slurmctld -f "$SLURM_CONF" ;;
        *) slurmd -N "$1" -f "$SLURM_CONF" ;;
    esac > "$dir/log/$1.start" 2>&1 9>&- || fail "$1 does not start"
    wait_for 60 alive "$1" > /dev/null || fail "$1 ended at once"
}

# What went wrong, with the daemons' last words, and nothing left running.
fail() {
    tail -qn 3 "$dir"/log/*.start "$dir"/log/*.log >&2 || true
    stop_all
    die "$1; logs: $dir/log"
}

nodes_ready() {
    [ "$(timeout 30 sinfo -hNp main -o %T 2>/dev/null | grep -cxE 'idle|mixed|allocated|completing')" = 2 ]
}

# slurmctld keeps what it could not tell a dead node and tells it after a minute, such as to end a
# step. A job that was queued again since has steps of the same names: the node gets no job before.
start_node() {
    dead "$1" || return 0
    scontrol update NodeName="$1" State=DRAIN Reason=returning || die "node $1 cannot be drained"
    launch "$1"
    wait_for 300 all_told || die "slurmctld keeps messages for node $1; logs: $dir/log"
    scontrol update NodeName="$1" State=RESUME || die "node $1 cannot be resumed"
}
all_told() {
    [ "$(timeout 30 sdiag | grep -cE '^Agent (queue size|count): +0$')" = 2 ]
}

answers() { timeout 30 sinfo > /dev/null 2>&1; }
no_jobs() { [ -z "$(timeout 30 squeue -h -o %F 2>/dev/null)" ]; }

start_all() {
    local each
    if all_alive; then
        say "already running in $dir"
    else
        check_no_other_slurm
        # Ports stay while something still runs that listens on them.
        if none_alive; then write_configuration; fi
        for each in $daemons; do launch "$each"; done
        wait_for 300 nodes_ready || fail "after 300 s the two nodes are not ready"
        say "two nodes (n1, n2; 2 CPUs and gpu:2 each), partitions main and urgent, in $dir"
    fi
    say "stop it with: bash scripts/local_slurm.sh stop --dir $dir"
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop_all() {
    local node
    if ! dead slurmctld; then
        timeout 10 squeue -h -o %F 2>/dev/null | sort -u | timeout 20 xargs -r scancel || true
        wait_for 10 no_jobs || say "some jobs do not end when cancelled: they are killed"
    fi
    end slurmctld TERM
    for node in n1 n2; do end "$node" TERM; kill_node "$node"; done
    end munged TERM
}

show_status() {
    local each
    for each in $daemons; do echo "$each: $(alive "$each" || echo 'not running')"; done
    all_alive || return 3
    echo "export SLURM_CONF=$SLURM_CONF"
    timeout 10 sinfo -N
}

# --- command line -------------------------------------------------------------------------------

[ $# -gt 0 ] || usage
action=$1
shift
node='' port='' install='' dir=${XDG_RUNTIME_DIR:-/tmp}/maxp-slurm-$(id -u)
case $action in kill-node | start-node)
    node=${1:-}
    [[ $node == n[12] ]] || die "$action: name n1 or n2"
    shift
esac
while [ $# -gt 0 ]; do
    case $1 in
        --dir) dir=${2:?--dir needs a folder}; shift 2 ;;
        --port) port=${2:?--port needs a number}; shift 2 ;;
        --install) install=yes; shift ;;
        *) usage ;;
    esac
done
dir=$(realpath -m "$dir")
marker=$dir/.local-slurm
unset "${!SLURM@}"  # of a job that this may be called from
export SLURM_CONF=$dir/slurm.conf

case $action in
    install) install_packages; exit ;;
    status) show_status; exit ;;
    start)
        [ -z "$install" ] || install_packages
        check_requirements
        mkdir -p "$dir"
        touch "$marker" ;;
    stop) [ -e "$marker" ] || { say "nothing was started in $dir"; exit; } ;;
    restart-controller | kill-node | start-node)
        [ -e "$marker" ] || die "nothing was started in $dir; start it, or name its folder with --dir" ;;
    *) usage ;;
esac

# One action at a time on a folder.
exec 9> "$dir/lock"
flock -w 600 9 || die "another local_slurm.sh is at work on $dir"
case $action in
    start) start_all ;;
    stop) stop_all; say "stopped ($dir keeps the logs)" ;;
    restart-controller)
        end slurmctld KILL
        launch slurmctld
        wait_for 300 answers || die "slurmctld does not answer; logs: $dir/log" ;;
    kill-node) kill_node "$node" ;;
    start-node) start_node "$node" ;;
esac
