"""The rpc plane: each request to the instance that its key or the load says, all on few connections.

A request's life: `session` cuts it out of what the client sent → `routing` says its rule, its service and its
position → `service` goes through the candidates → a `target` has room, or one keeps it in a `lane`'s queue →
the lane's `channel` sends it, with all others of this turn of the loop in one write → its answer comes, or
an error stands in for it. A client gets exactly one of both for each request. Where no answer comes it is
`recovery`, as a connection broke, or `deadlines`, as its time is up, that sees to it.

Most requests take a shorter way: what many clients sent in a turn of the loop is looked at together in a
`turn`, which sends what is ordinary and has room, and hands everything else to its session.
"""
