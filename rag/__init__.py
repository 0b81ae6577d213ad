"""Retrieval: documents in, passages out. LangChain lives here and nowhere else."""
