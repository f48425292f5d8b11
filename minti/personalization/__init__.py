"""Fine-tuning on a subject: DreamBooth, initializers, the number of vectors, other losses."""
