"""What the scripts share: the command line, pages of pictures, curves of a run, memory, the benchmark's cases."""
