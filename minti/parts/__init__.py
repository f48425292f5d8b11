"""What goes inside a frozen model for a while, to learn there or to act there, and comes out without a trace.

Read `part` for how anything goes in and out, `word` for the rows of a new word, `restored_matrix` for the other way to
train them, which exercise E4 describes, `lora` for low-rank updates of the networks' layers and `lora_files` for their
files, `controlnet` for what draws by a hint, `ip_adapter` for a picture as a prompt, `prompt_to_prompt` for an edited
prompt that keeps the picture and `alignment` for which of its words is which, `network` for the model's own
weights, `together` for several at once.

Nothing is learned in the others: `perturbed_attention` and `self_attention_guidance` bend a prediction,
`prompt_to_prompt` draws an edited prompt and keeps the picture (`alignment` says which word is which), `deep_cache`
computes the whole UNet in some steps only.
"""
