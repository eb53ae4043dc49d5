"""What a worker's process can hold of what the configuration allows."""

import structlog

from tcpgw.config import schema
from tcpgw.process.limits import fitting, needed_files

log = structlog.get_logger()


def fitted(config: schema.Config, files: int) -> schema.Config:
    """Lower a worker's `max_connections` to what its open files are enough for.

    So clients beyond it wait in the kernel's queue, where otherwise they would be accepted with the last
    descriptor and turned away for want of one to connect with.
    """
    total = sum(listener.max_connections for listener in config.listener)
    part = fitting(total, files)
    if part == 1:
        return config
    fitted = tuple(
        listener.model_copy(update={"max_connections": max(1, int(listener.max_connections * part))})
        for listener in config.listener
    )
    log.warning(
        "max_connections_lowered",
        open_files=files,
        needed=needed_files(total),
        max_connections={listener.name: listener.max_connections for listener in fitted},
        hint="of each worker: raise LimitNOFILE= or ulimit -n, or lower max_connections",
    )
    return config.model_copy(update={"listener": fitted})
