"""."""
WORKLOADS = ()
