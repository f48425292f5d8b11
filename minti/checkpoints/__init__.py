"""Where the weights come from: model folders, the original single file, the Hugging Face hub.

Read `weights` for a folder in the layout of SD v1.4, `text_encoder` and `tokenizer` for those of its parts that are
Hugging Face's, `single_file` for the names of the original release, `finite` for numbers that are none, `hub` for what
is fetched; `run_state` is no model's, but an interrupted run's. Nothing here runs code that a file brings along.
"""
