"""What stands around a box where it is served: images, manifests, and the programs that start and stop it."""
