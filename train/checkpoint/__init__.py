"""Checkpoints of mt, Hugging Face and Megatron-LM: `open` reads any of them, `native` writes mt's."""
