"""`tcpgw bench`: a load generator for echo instances over raw TCP and for msgpack-rpc services."""
