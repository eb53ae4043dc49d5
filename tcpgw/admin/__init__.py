"""The admin server: the status page, figures, probes, and what operators do by hand."""
