#!/usr/bin/env bash
# A sweep on TPUs: one xpk workload a run. `python -m surm.sweep --launcher=xpk` writes it from
# scripts/xpk_workloads.sh: what stands in double braces is filled in, the lines between "every run" and "end" are
# written once a run. Change what your cluster wants otherwise, here or in a copy (--template=FILE).
#
#     CLUSTER=NAME IMAGE=REGISTRY/NAME:TAG bash DIR/xpk_workloads.sh
#
# IMAGE holds surm and the config file, under the path the sweep was given. The sweep's workdir has to lie on storage
# that every pod and the machine of the sweep mount at the same path (`xpk storage attach`), or in a bucket
# (gs://BUCKET/...), or results are lost.
# A run is one process: choose a TPU type whose slice is one host, or add --distributed to the command below. xpk
# wants names that no other workload has; before a run is started again: xpk workload delete --cluster=NAME
# --workload=WORKLOAD
set -u
cluster=${CLUSTER:?the name of the cluster}
image=${IMAGE:?the Docker image that holds surm}
tpu_type=${TPU_TYPE:-v5litepod-8}

# A pod that is taken away has two minutes to save; the run goes on in the next.
# every run
xpk workload create \
    --cluster="$cluster" \
    --workload={{workload}} \
    --tpu-type="$tpu_type" \
    --num-slices=1 \
    --docker-image="$image" \
    --max-restarts=3 \
    --termination-grace-period-seconds=120 \
    --command="exec python -m surm.train "{{quoted_flags}}

# end
