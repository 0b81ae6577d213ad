"""LoRA adapters: manifest, validation, training, and the CPU kernel. An adapter here is a LoRA adapter, nothing else."""
