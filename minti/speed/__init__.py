"""Speed: bfloat16 on a CPU, DeepCache."""
