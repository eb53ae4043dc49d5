"""What a service's `discovery` means: its source, and where its last good snapshot is kept."""

import json
from collections.abc import Iterable, Mapping

from tcpgw.config import schema
from tcpgw.discovery.dns import DnsSource
from tcpgw.discovery.file import FileSource
from tcpgw.discovery.modelarts import Account, ModelArtsSource
from tcpgw.discovery.source import Source
from tcpgw.discovery.static import StaticSource
from tcpgw.discovery.store import Store


def make_accounts(config: schema.Config, services: Iterable[schema.Service]) -> dict[str, Account]:
    """The account of each cloud that these services ask, by its table's name.

    Raises CredentialError where an account's credentials cannot be used at all.
    """
    named = {getattr(service.discovery, "cloud", None) for service in services}
    return {name: Account(name, cloud) for name, cloud in config.cloud.items() if name in named}


def make_sources(
    config: schema.Config, services: Iterable[schema.Service], accounts: Mapping[str, Account] | None = None
) -> dict[str, Source]:
    """A source for each service by name; those of one cloud share its account. Close each of them.

    `accounts` are those of the services' clouds, without which they are made. Then this raises as
    `make_accounts`.
    """
    services = list(services)
    if accounts is None:
        accounts = make_accounts(config, services)
    sources: dict[str, Source] = {}
    for service in services:
        match service.discovery:
            case schema.StaticDiscovery() as settings:
                sources[service.name] = StaticSource(settings)
            case schema.FileDiscovery() as settings:
                sources[service.name] = FileSource(settings)
            case schema.DnsDiscovery() as settings:
                sources[service.name] = DnsSource(settings)
            case schema.ModelArtsDiscovery(cloud=cloud) as settings:
                sources[service.name] = ModelArtsSource(settings, accounts[cloud])
    return sources


def describe(discovery: schema.Discovery) -> str:
    """Say for operators where a service's endpoints come from."""
    match discovery:
        case schema.StaticDiscovery(endpoints=endpoints):
            return f"static, {len(endpoints)} endpoints"
        case schema.FileDiscovery(path=path):
            return f"file {path}"
        case schema.DnsDiscovery(name=name, record=record):
            return f"dns {record} {name}"
        case schema.ModelArtsDiscovery(service_id=service_id, cloud=cloud):
            return f"modelarts {service_id} by cloud.{cloud}"


def make_store(config: schema.Config, discovery: schema.Discovery) -> Store | None:
    # A static list changes with the configuration alone: there is no older one to fall back to.
    if config.gateway.state_dir is None or isinstance(discovery, schema.StaticDiscovery):
        return None
    return Store(config.gateway.state_dir, origin(config, discovery))


def origin(config: schema.Config, discovery: schema.Discovery) -> str:
    """Everything that decides which instances are found, and not how often or how long they are asked for."""
    source = discovery.model_dump(mode="json", exclude={"cloud", "refresh", "timeout"})
    if isinstance(discovery, schema.ModelArtsDiscovery):
        cloud = config.cloud[discovery.cloud]
        source |= {"endpoint": cloud.endpoint, "project_id": cloud.project_id}
    return json.dumps(source, sort_keys=True)
