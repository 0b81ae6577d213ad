"""The base model: fetched, converted, quantized, and checked for quality."""
