"""The joint model: three experts, one sequence, two losses, prefill and denoise."""
