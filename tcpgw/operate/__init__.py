"""The commands that ask a running gateway: `tcpgw status`, `tcpgw reload`, `tcpgw upgrade`."""
