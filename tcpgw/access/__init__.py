"""Who may connect, and how much one may use."""
