"""What stands around a box: on one machine, in containers, on a cluster."""
"""What stands around a box where it is served: manifests, and the programs that start and stop it."""
