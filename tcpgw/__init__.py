"""tcpgw: a TCP gateway for ModelArts services on the VPC high-speed channel."""

__version__ = "0.1.0"
