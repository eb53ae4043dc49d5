"""What runs in the demo: the cloud, the instances, and the gateway with its configuration."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tcpgw.demo.cloud import Cloud
from tcpgw.demo.instances import GatewayProcess, Instance, Kind, OnEvent
from tcpgw.demo.traffic import Broken
from tcpgw.endpoints import Endpoint

Tell = Callable[[str], None]

SERVICES: dict[Kind, str] = {"predict": "HTTP", "echo": "raw TCP", "infer": "MessagePack-RPC"}
RELAYED: tuple[Kind, ...] = ("predict", "echo")  # connection by connection; infer request by request
INSTANCES = 4  # of each service, at the start
WORKERS = 2
# The cloud's 20 a minute for an IAM user would make a demo of some minutes; its limit for an account is 2000.
_CALLS_PER_MINUTE = 120
_TOKEN_LIFE = 10.0  # s; the cloud's is a day

_CONFIG = """\
[gateway]
workers = {workers}                  # default: one for each CPU
unsupervised = "1s"          # default: 1m; nothing is to outlive a demo that was killed
drain = "1s"                 # default: 30s
hard_stop = "3s"             # default: 1m

[cloud.modelarts]            # the demo's emulation of the cloud
endpoint = "{url}"
project_id = "{project}"
calls_per_minute = {calls}       # in the cloud 20 for an IAM user

[cloud.modelarts.auth]
type = "password"
iam = "{url}"
domain = "{domain}"
user = "{user}"
password = "file:{password}"

[[service]]
name = "predict"
[service.discovery]
type = "modelarts"
service_id = "{predict}"
refresh = "1200ms"           # default: 10s
networks = ["127.0.0.0/8"]   # default: private networks, so no loopback
[service.balance]
policy = "ring"              # exact moves; Maglev moves 1 key in 1000 besides
bounded_load = 0             # off: under load keys move, and the demo counts

[[service]]
name = "echo"
[service.discovery]
type = "modelarts"
service_id = "{echo}"
refresh = "1200ms"
networks = ["127.0.0.0/8"]
[service.balance]
policy = "maglev"            # the default
bounded_load = 0

[[service]]
name = "infer"
[service.discovery]
type = "modelarts"
service_id = "{infer}"
refresh = "5s"
networks = ["127.0.0.0/8"]
[service.balance]
policy = "least_request"     # each request goes where fewer are under way

[[listener]]
name = "predict"
bind = "127.0.0.1:0"         # port 0: the kernel chooses
route = "predict"

[[listener]]
name = "echo"
bind = "127.0.0.1:0"
route = "echo"

[[listener]]
name = "infer"
bind = "127.0.0.1:0"
mode = "rpc"                 # requests are balanced, over few connections for all clients
codec = "msgpack-rpc"        # the default
route = "infer"
# A request that was sent is not sent again by itself: this would say that it may be.
# methods = {{ predict = {{ idempotent = true }} }}
"""


class Stage:
    """Everything that runs: the cloud, the instances, the gateway. Made by `set_up`."""

    def __init__(self, cloud: Cloud, config: Path) -> None:
        self.cloud = cloud
        self.config = config
        self._password = config.with_name("password")
        self.instances: dict[str, Instance] = {}  # those that were ready, by name; a killed one stays
        self.gateway: GatewayProcess
        self._ids = {service: str(uuid.uuid4()) for service in SERVICES}
        self._started: list[Instance] = []

    async def start(self, service: Kind, *numbers: int) -> None:
        """Start instances, side by side. The cloud does not list them yet."""
        for number in numbers:
            self._started.append(await Instance.start(service, f"{service}-{number}"))
        for instance in self._started[-len(numbers) :]:
            await instance.ready()
            self.instances[instance.name] = instance

    def of(self, service: Kind) -> list[Instance]:
        """The service's instances that were ready once, the killed ones too."""
        return [one for name, one in self.instances.items() if name.startswith(f"{service}-")]

    async def kill_all(self) -> None:
        """End every instance. Idempotent."""
        for instance in self._started:
            await instance.kill()

    def list_running(self, service: Kind) -> list[Endpoint]:
        """Let the cloud's API name the service's instances that run now, and return them."""
        running = [instance.endpoint for instance in self.of(service) if not instance.killed]
        self.cloud.services[self._ids[service]] = [*running]
        return running

    def configuration(self) -> str:
        """The gateway's, in TOML."""
        cloud = self.cloud
        return _CONFIG.format(
            workers=WORKERS,
            url=cloud.url,
            project=cloud.project_id,
            domain=cloud.domain,
            user=cloud.user,
            calls=cloud.calls_per_minute,
            password=self._password,
            **self._ids,
        )

    def write(self) -> None:
        """Write the configuration, and the password that it refers to. Blocks."""
        self._password.write_text(self.cloud.password)
        self.config.write_text(self.configuration())

    def address(self, service: Kind) -> tuple[str, int]:
        """Where the gateway accepts for a service."""
        host, _, port = self.gateway.listeners[service].rpartition(":")
        return host, int(port)

    def judge(self, broken: list[Broken]) -> tuple[list[Broken], list[Broken]]:
        """Part what the gateway's log says was open on a killed instance from the failures."""
        cut = set().union(*self.gateway.ended_on.values())
        return [one for one in broken if one.client in cut], [one for one in broken if one.client not in cut]


@asynccontextmanager
async def set_up(folder: Path, tell: Tell, on_event: OnEvent | None = None) -> AsyncIterator[Stage]:
    """Start everything, as far as the gateway accepting; end it all with the context.

    Writes its files to `folder`. `on_event` gets the gateway's log. Raises DemoError.
    """
    async with AsyncExitStack() as stack:
        cloud = Cloud(calls_per_minute=_CALLS_PER_MINUTE, token_life=_TOKEN_LIFE)
        stage = Stage(await stack.enter_async_context(cloud), folder / "tcpgw.toml")
        tell(
            f"The cloud: IAM and ModelArts, emulated at {cloud.url}. It allows {_CALLS_PER_MINUTE} calls a "
            f"minute (the real one 20 for an IAM user) and ends its tokens after {_TOKEN_LIFE:g} s."
        )
        stack.push_async_callback(stage.kill_all)
        for service, protocol in SERVICES.items():
            await stage.start(service, *range(1, INSTANCES + 1))
            listed = ", ".join(map(str, stage.list_running(service)))
            tell(f"Service {service} ({protocol}): {INSTANCES} instances, each a process: {listed}.")
        await asyncio.to_thread(stage.write)
        stage.gateway = await GatewayProcess.start(stage.config, on_event)
        stack.push_async_callback(stage.gateway.stop)
        await stage.gateway.until(lambda: bool(stage.gateway.listeners), "its event `ready`")
        yield stage
