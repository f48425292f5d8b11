"""Speed: DeepCache, Winograd's convolutions, packed weights, bfloat16 on a CPU."""
