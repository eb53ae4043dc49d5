"""Rules on the gateway's own figures, and who is told what they find."""
