from tcpgw.access.denial import Denied, Reason, UnknownKey, shown


def test_a_denial_is_the_clients() -> None:
    """A denial tells its reason and text, and whom to blame; an unknown key is one of them."""
    denied = UnknownKey("no such key")
    assert isinstance(denied, Denied)
    assert (denied.reason, str(denied), denied.blame) == (Reason.UNKNOWN, "no such key", "client")


def test_a_clients_text_is_short_and_printable() -> None:
    """Whatever a client said fits into a log line."""
    assert shown("a\x1b\n") == r"'a\x1b\n'"
    assert len(shown("x" * 1000)) == 65
