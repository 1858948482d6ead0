"""The Mixture-of-Transformers stack in plain torch: experts, rotary positions, block masks, key-value cache."""
