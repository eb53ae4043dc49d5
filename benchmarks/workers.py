"""What do two workers cost beside peers with two? README.md holds the method and the figures.

python benchmarks/workers.py            five rounds, about four minutes on an otherwise idle machine
python benchmarks/workers.py --quick    does everything still work?
"""

import sys

import stream
from load import Workload
from report import Aim

WORKERS = 2
# Where two cores can be told from one: many connections, which the kernel spreads. A lone client and iperf3's
# one stream are with a single worker, and stream.py's to measure.
WORKLOADS = (
    Workload("keepalive-50", "50 clients, connections kept", "request", clients=50),
    Workload("keepalive-500", "500 clients, connections kept", "request", clients=500),
    Workload(
        "connect-50", "50 clients, a new connection per request", "request", clients=50, keep_alive=False
    ),
)
# Nothing binds: load, redis and proxies share the cores, so a rate is everybody's. They are told.
AIMS = tuple(
    Aim(workload.name, "haproxy", 1.0, value, binding=False)
    for workload in WORKLOADS
    for value in ("rate", "cpu")
)


def main() -> int:
    """As that of stream.py."""
    # Pinned, load and redis would take one of the two cores from the workers, or all share both anyway.
    args = stream.arguments(__doc__ or "", WORKLOADS, cores="none")
    return stream.compare(args, WORKLOADS, AIMS, workers=WORKERS)


if __name__ == "__main__":
    sys.exit(main())
