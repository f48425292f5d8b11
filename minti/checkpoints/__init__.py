"""Where the weights come from: model folders, the original single file, the Hugging Face hub.

Read `folder` for the layout of SD v1.4 and `single_file` for the names of the original release; `weights` for safe
reading and filling a network; `configs` for their config files and `rules` for what those may say; `text_encoder` and
`tokenizer` for the parts that are Hugging Face's; `hub` for what is fetched; `export` writes a model folder. Nothing
here runs code that a file brings along.
"""
