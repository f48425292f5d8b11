"""Files of other programs: the hub, single files, shards, pickles, foreign embeddings; export."""
