from tcpgw.cli import main

main()
