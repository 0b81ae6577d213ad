"""What stands around a box: on one machine, in containers, on a cluster."""
