#!/usr/bin/env bash
# MindFormers' launcher script: one to nine positional arguments, and MF_LOG_SUFFIX and LOG_MF_PATH from the environment.
# It ends by becoming the launcher itself, so that a signal to this process reaches the one that can act on it.

usage() {
    echo "Usage: bash $0 EXECUTE_ORDER"
    echo "       bash $0 EXECUTE_ORDER WORKER_NUM"
    echo "       bash $0 EXECUTE_ORDER WORKER_NUM MASTER_PORT LOG_DIR JOIN CLUSTER_TIME_OUT"
    echo "       bash $0 EXECUTE_ORDER WORKER_NUM LOCAL_WORKER MASTER_ADDR MASTER_PORT NODE_RANK LOG_DIR JOIN CLUSTER_TIME_OUT"
    exit 1
}

require_number() {
    case "$2" in
        '' | *[!0-9]*)
            echo "error: $1 is not a number: $2" >&2
            exit 1
            ;;
    esac
}

suffix=${MF_LOG_SUFFIX:+_$MF_LOG_SUFFIX}
worker_num=8 local_worker=8 master_addr=127.0.0.1 master_port=8118 node_rank=0
log_dir=output/msrun_log join=False cluster_time_out=7200

case $# in
    1) ;;
    2) worker_num=$2 local_worker=$2 ;;
    6) worker_num=$2 local_worker=$2 master_port=$3 log_dir=$4 join=$5 cluster_time_out=$6 ;;
    9) worker_num=$2 local_worker=$3 master_addr=$4 master_port=$5 node_rank=$6 log_dir=$7 join=$8 cluster_time_out=$9 ;;
    *) usage ;;
esac
require_number WORKER_NUM "$worker_num"
require_number LOCAL_WORKER "$local_worker"
require_number MASTER_PORT "$master_port"
require_number NODE_RANK "$node_rank"
require_number CLUSTER_TIME_OUT "$cluster_time_out"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export LOG_MF_PATH="${LOG_MF_PATH:-$PWD/output/log$suffix}"
if [ "$worker_num" = "$local_worker" ]; then
    master_addr=127.0.0.1 node_rank=0
fi

set -- --worker_num "$worker_num" --local_worker_num "$local_worker" \
    --master_addr "$master_addr" --master_port "$master_port" --node_rank "$node_rank" \
    --log_dir "$log_dir$suffix" --join "$join" --cluster_time_out "$cluster_time_out" --bind_core True --order "$1"
echo "Running Command: msrun $*"
exec "${PYTHON:-python}" -m runformer.launch "$@"
