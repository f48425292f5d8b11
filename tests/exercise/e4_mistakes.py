"""Mistakes with exercise E4's tasks 2, 3a and 3b (parts 8, 12 and 13), written down as a learner would."""

TOKENS = "tokens = [placeholder] + [f'{placeholder}_{i}' for i in range(1, num_vectors)]\n    "
KNOWN = "if any(t in tokenizer.get_vocab() for t in tokens): raise ValueError('known')\n    "
ADD = TOKENS + "if tokenizer.add_tokens(tokens) != num_vectors: raise ValueError('known')\n    return {}"
NAMED = "tokens = {}\n    " + KNOWN + "tokenizer.add_tokens(tokens); return tokenizer.convert_tokens_to_ids(tokens)"
ROWS = """start = tokenizer.encode(initializer_token, add_special_tokens=False)
    if len(start) != 1: raise ValueError('several')
    start = start[0]
    text_encoder.resize_token_embeddings(len(tokenizer))
    w = text_encoder.get_input_embeddings().weight.data
    {}"""
COPY = "for i in ids: w[i] = w[start]"
IDS = "tokenizer.encode(initializer_token, add_special_tokens=False)\n    if len(start)"
FREEZE = """for p in unet.parameters(): p.requires_grad = False
    for p in vae.parameters(): p.requires_grad = False
    for p in text_encoder.parameters(): p.requires_grad = False
    {}"""
EMBEDDINGS = "text_encoder.get_input_embeddings().weight.requires_grad = True"
CHECK = """e = text_encoder.get_input_embeddings().weight
    assert e.requires_grad
    for net in (unet, vae, text_encoder):
        for n, p in net.named_parameters():
            {}"""
FROZEN = "assert not p.requires_grad or p is e, n"

LATENTS = "with torch.no_grad():\n        x = vae.encode(pixels).latent_dist.sample(generator)\n    return {}"
ASK = "return tokenizer(prompts, padding='max_length', truncation=True, max_length=32, return_tensors='pt').input_ids"
STEP = """with torch.no_grad():
        latents = wrapper.vae.encode(pixels).latent_dist.sample(generator) * wrapper.vae.config.scaling_factor
    b, T = len(pixels), wrapper.scheduler.config.num_train_timesteps
    which = torch.randint(len(templates), (b,), generator=generator)
    t = torch.randint(T, (b,), generator=generator)
    prompts = [templates[i].replace('{}', placeholder) for i in which.tolist()]
    ids = wrapper.tokenizer(prompts, padding='max_length', truncation=True, return_tensors='pt').input_ids
    c = wrapper.text_encoder(ids)[0]
    return loss(wrapper, latents, t, c, generator)"""

EIGHT = "return [t.format(w) for w in (first, second) for t in templates] + [t.format(first, second) for t in both]"
FOUR = """out = []
    for k, p in enumerate(prompts):
        row = []
        for i in range(per_prompt):
            g = torch.Generator().manual_seed(seed + i)
            row.append(sample(p, g))
        out.append(row)
    return out"""


def step(old, new):
    assert old in STEP
    return STEP.replace(old, new)


def four(*changes):
    text = FOUR
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


# (part, function, what stands in its hole, how the mistake's name begins); the first of each function is right
RIGHT = [
    ("tokens", "add_placeholders", ADD.replace("{}", "tokenizer.convert_tokens_to_ids(tokens)")),
    ("tokens", "add_rows", ROWS.format(COPY)),
    ("tokens", "freeze_all_but_embeddings", FREEZE.format(EMBEDDINGS)),
    ("tokens", "check_trainable", CHECK.format(FROZEN)),
    ("training_step", "image_latents", LATENTS.format("x * vae.config.scaling_factor")),
    ("training_step", "image_latents", "return (vae.encode(pixels).latent_dist.sample(generator) * 0.25).detach()"),
    ("training_step", "token_ids", ASK.replace("32", "tokenizer.model_max_length")),
    ("training_step", "training_loss", STEP),
    ("evaluation", "eight_prompts", EIGHT),
    ("evaluation", "samples_of", FOUR),
]
WRITTEN = [
    ("tokens", "add_placeholders", NAMED.format("[placeholder]"), "one token, whatever"),
    ("tokens", "add_placeholders", NAMED.format("[placeholder] * num_vectors"), "the same token several"),
    (
        "tokens",
        "add_placeholders",
        NAMED.format("[f'{placeholder}_{i}' for i in range(num_vectors)]"),
        "the tokens numbered from 0",
    ),
    (
        "tokens",
        "add_placeholders",
        NAMED.format("[placeholder] + [f'{placeholder}_{i + 1}' for i in range(1, num_vectors)]"),
        "the later tokens numbered",
    ),
    ("tokens", "add_placeholders", TOKENS + KNOWN + "return tokenizer.add_tokens(tokens)", "the number of added"),
    (
        "tokens",
        "add_placeholders",
        ADD.replace("{}", "[tokenizer.convert_tokens_to_ids(placeholder)]"),
        "the first id alone",
    ),
    ("tokens", "add_placeholders", ADD.replace("{}", "tokenizer(' '.join(tokens)).input_ids"), "the ids with those of"),
    (
        "tokens",
        "add_placeholders",
        ADD.replace("{}", "[tokenizer.encode(token)[0] for token in tokens]"),
        "the id of the text's beginning",
    ),
    (
        "tokens",
        "add_placeholders",
        TOKENS + KNOWN + "ids = tokenizer.convert_tokens_to_ids(tokens); tokenizer.add_tokens(tokens); return ids",
        "the ids asked for before",
    ),
    (
        "tokens",
        "add_placeholders",
        ADD.replace("{}", "[len(tokenizer) + i for i in range(num_vectors)]"),
        "ids behind the new tokens",
    ),
    (
        "tokens",
        "add_placeholders",
        TOKENS + "tokenizer.add_tokens(tokens); return tokenizer.convert_tokens_to_ids(tokens)",
        "a known token taken",
    ),
    (
        "tokens",
        "add_placeholders",
        TOKENS
        + "if tokenizer.add_tokens(tokens) == 0: raise ValueError\n    return tokenizer.convert_tokens_to_ids(tokens)",
        "only the first token looked up",
    ),
    (
        "tokens",
        "add_rows",
        ROWS.format("start = tokenizer(initializer_token).input_ids[0]; " + COPY).replace("; for", "\n    for"),
        "the row of the text's beginning",
    ),
    (
        "tokens",
        "add_rows",
        ROWS.format("start = tokenizer(initializer_token).input_ids[-1]\n    " + COPY),
        "the row of the text's end",
    ),
    (
        "tokens",
        "add_rows",
        ROWS.format("start = tokenizer.convert_tokens_to_ids(initializer_token)\n    " + COPY),
        "another token's row",
    ),
    ("tokens", "add_rows", ROWS.format("w = w.clone(); w[ids] = w[start].clone()"), "the text encoder's new rows"),
    ("tokens", "add_rows", ROWS.format("w[ids[0]] = w[start]"), "only one new row"),
    ("tokens", "add_rows", ROWS.format("w[-1] = w[start]"), "only the last new row"),
    ("tokens", "add_rows", ROWS.format("w[start] = w[ids[0]]"), "the new row copied into"),
    ("tokens", "add_rows", ROWS.format("w[ids] = 0"), "the new rows are zero"),
    (
        "tokens",
        "add_rows",
        ROWS.replace("(len(tokenizer))", "(len(ids))").format("w[:] = w"),
        "the matrix resized to the new",
    ),
    ("tokens", "add_rows", ROWS.replace("(len(tokenizer))", "(len(tokenizer) + 1)").format(COPY), "a row too many"),
    (
        "tokens",
        "add_rows",
        ROWS.replace("if len(start) != 1: raise ValueError('several')\n    ", "").format(COPY),
        "an initializer of several",
    ),
    (
        "tokens",
        "freeze_all_but_embeddings",
        EMBEDDINGS + "\n    " + FREEZE.format("pass"),
        "everything frozen",
    ),
    (
        "tokens",
        "freeze_all_but_embeddings",
        "vae.requires_grad_(False); text_encoder.requires_grad_(False); " + EMBEDDINGS,
        "the UNet not frozen",
    ),
    (
        "tokens",
        "freeze_all_but_embeddings",
        "unet.requires_grad_(False); text_encoder.requires_grad_(False); " + EMBEDDINGS,
        "the VAE not frozen",
    ),
    (
        "tokens",
        "freeze_all_but_embeddings",
        "text_encoder.requires_grad_(False); " + EMBEDDINGS,
        "UNet and VAE not frozen",
    ),
    (
        "tokens",
        "freeze_all_but_embeddings",
        "unet.requires_grad_(False); vae.requires_grad_(False); " + EMBEDDINGS,
        "the rest of the text encoder not frozen",
    ),
    (
        "tokens",
        "freeze_all_but_embeddings",
        "unet.requires_grad_(False); vae.requires_grad_(False)",
        "the text encoder left",
    ),
    (
        "tokens",
        "freeze_all_but_embeddings",
        "unet.requires_grad_(False); vae.requires_grad_(False); text_encoder.requires_grad_(True)",
        "the whole text encoder",
    ),
    (
        "tokens",
        "freeze_all_but_embeddings",
        FREEZE.format(
            "for n, p in text_encoder.named_parameters():\n        if 'embedding' in n: p.requires_grad = True"
        ),
        "the position embeddings",
    ),
    (
        "tokens",
        "freeze_all_but_embeddings",
        "unet.requires_grad = vae.requires_grad = text_encoder.requires_grad = False; " + EMBEDDINGS,
        "a network given an attribute",
    ),
    ("tokens", "freeze_all_but_embeddings", "unet.eval(); vae.eval(); text_encoder.train()", "nothing changed"),
    (
        "tokens",
        "freeze_all_but_embeddings",
        FREEZE.format("text_encoder.requires_grad_(True); ") + EMBEDDINGS.replace("True", "False"),
        "all but the token embeddings",
    ),
    (
        "tokens",
        "check_trainable",
        CHECK.format("assert (not p.requires_grad or p is e, n)").replace("assert e.requires_grad", "pass"),
        "nothing is ever refused",
    ),
    (
        "tokens",
        "check_trainable",
        CHECK.format(FROZEN).replace("assert e.requires_grad", "pass"),
        "frozen token embeddings",
    ),
    (
        "tokens",
        "check_trainable",
        "assert text_encoder.get_input_embeddings().weight.requires_grad",
        "only the token embeddings looked",
    ),
    ("tokens", "check_trainable", CHECK.format(FROZEN).replace("(unet, vae,", "(vae,"), "the UNet not looked"),
    ("tokens", "check_trainable", CHECK.format(FROZEN).replace("(unet, vae,", "(unet,"), "the VAE not looked"),
    (
        "tokens",
        "check_trainable",
        CHECK.format(FROZEN).replace("(unet, vae, text_encoder)", "(unet, vae)"),
        "the rest of the text encoder not looked",
    ),
    (
        "tokens",
        "check_trainable",
        CHECK.format("assert 'embeddings' in n or not p.requires_grad"),
        "trainable position",
    ),
    (
        "tokens",
        "check_trainable",
        "assert text_encoder.get_input_embeddings().weight.requires_grad\n    "
        "assert not next(unet.parameters()).requires_grad and not next(vae.parameters()).requires_grad",
        "only the first parameter",
    ),
    (
        "tokens",
        "check_trainable",
        "e = text_encoder.get_input_embeddings().weight\n    assert e.requires_grad\n    "
        "for net in (unet, vae, text_encoder): assert not all(p.requires_grad for p in net.parameters() if p is not e)",
        "a network noticed only if",
    ),
    ("tokens", "check_trainable", CHECK.format("assert not p.requires_grad"), "the token embeddings refused"),
    (
        "tokens",
        "check_trainable",
        "e = text_encoder.get_input_embeddings().weight\n    nets = (unet, vae, text_encoder)\n    "
        "bad = [p for net in nets for p in net.parameters() if p.requires_grad != (p is e)]\n    assert bad",
        "refused where it is right",
    ),
    (
        "training_step",
        "image_latents",
        "return vae.encode(pixels).latent_dist.sample(generator) * vae.config.scaling_factor",
        "latents with a gradient",
    ),
    ("training_step", "image_latents", LATENTS.format("x"), "the scaling factor forgotten"),
    ("training_step", "image_latents", LATENTS.format("x / vae.config.scaling_factor"), "divided by"),
    ("training_step", "image_latents", LATENTS.format("0.18215 * x"), "0.18215 written"),
    (
        "training_step",
        "image_latents",
        LATENTS.format("x * vae.config.scaling_factor").replace("sample(generator)", "mode()"),
        "the distribution's mean",
    ),
    (
        "training_step",
        "image_latents",
        LATENTS.format("x * vae.config.scaling_factor").replace("sample(generator)", "sample()"),
        "a sample without the generator",
    ),
    (
        "training_step",
        "image_latents",
        LATENTS.format("x * vae.config.scaling_factor").replace("(pixels)", "(pixels * 2 - 1)"),
        "pixels in [-1, 1] scaled once more",
    ),
    (
        "training_step",
        "image_latents",
        LATENTS.format("x * vae.config.scaling_factor").replace("(pixels)", "((pixels + 1) / 2)"),
        "pixels in [-1, 1] shrunk",
    ),
    ("training_step", "token_ids", ASK.replace("'max_length'", "True"), "padded to the longest"),
    ("training_step", "token_ids", ASK.replace("truncation=True, ", ""), "a prompt that is too long"),
    ("training_step", "token_ids", ASK.replace("32", "77"), "77 written"),
    ("training_step", "token_ids", ASK.replace("32", "32, add_special_tokens=False"), "no tokens for the beginning"),
    ("training_step", "token_ids", ASK.replace(", return_tensors='pt'", ""), "lists, where"),
    ("training_step", "token_ids", ASK.replace("input_ids", "attention_mask"), "the attention mask"),
    ("training_step", "token_ids", ASK.replace("32", "31"), "one position too few"),
    (
        "training_step",
        "training_loss",
        step("c = wrapper", "with torch.no_grad(): c = wrapper"),
        "the text encoder without a gradient",
    ),
    ("training_step", "training_loss", step("(ids)[0]", "(ids)[1].unsqueeze(1)"), "the text encoder's pooled"),
    ("training_step", "training_loss", step(".replace('{}', placeholder)", ""), "the placeholder not put"),
    (
        "training_step",
        "training_loss",
        step("templates[i].replace('{}', placeholder)", "placeholder"),
        "the placeholder alone",
    ),
    ("training_step", "training_loss", step("templates[i]", "templates[0]"), "always the first"),
    (
        "training_step",
        "training_loss",
        step("which = torch.randint(len(templates), (b,), ", "which = torch.randint(len(templates), (1,), ").replace(
            "which.tolist()", "which.tolist() * b"
        ),
        "one template for the whole",
    ),
    (
        "training_step",
        "training_loss",
        step("torch.randint(T, (b,), generator=generator)", "torch.randint(T, (1,), generator=generator).repeat(b)"),
        "one timestep for the whole",
    ),
    ("training_step", "training_loss", step("torch.randint(T,", "torch.randint(1, T + 1,"), "timesteps from 1"),
    ("training_step", "training_loss", step("torch.randint(T,", "torch.randint(0, 1000,"), "timesteps of 1,000"),
    ("training_step", "training_loss", step("torch.randint(T,", "torch.randint(0, T - 1,"), "the last timestep"),
    (
        "training_step",
        "training_loss",
        step("torch.randint(T, (b,), generator=generator)", "torch.randint(T, (b,))"),
        "timesteps without the generator",
    ),
    (
        "training_step",
        "training_loss",
        step("torch.randint(len(templates), (b,), generator=generator)", "torch.randint(len(templates), (b,))"),
        "templates without the generator",
    ),
    ("training_step", "training_loss", step("t, c, generator)", "t, c, None)"), "the generator not passed"),
    ("training_step", "training_loss", step(" * wrapper.vae.config.scaling_factor", ""), "latents that are not"),
    ("training_step", "training_loss", step("with torch.no_grad():\n", "if True:\n"), "latents with a gradient"),
    ("training_step", "training_loss", step("torch.randint(T, (b,)", "torch.randint(T, (1,)"), "one timestep, and not"),
    ("training_step", "training_loss", step("torch.randint(T, (b,)", "torch.rand((b,)"), "timesteps between 0 and 1"),
    ("training_step", "training_loss", step("c, generator)", "c, generator).item()"), "a number, where"),
    (
        "training_step",
        "training_loss",
        step("return loss", "L = loss").replace("c, generator)", "c, generator); L.backward(); return L"),
        "`backward` called",
    ),
    ("evaluation", "eight_prompts", EIGHT.replace("for w in (first, second) ", "for w in (first,) "), "only the first"),
    (
        "evaluation",
        "eight_prompts",
        EIGHT.replace("for w in (first, second) for t in templates", "for t in templates for w in (first, second)"),
        "template by template",
    ),
    ("evaluation", "eight_prompts", EIGHT.replace("format(first, second)", "replace('{}', first)"), "the same word in"),
    ("evaluation", "eight_prompts", EIGHT.replace("format(first, second)", "format(second, first)"), "the two words"),
    (
        "evaluation",
        "eight_prompts",
        EIGHT.replace("format(first, second)", "replace('{}', first, 1)"),
        "a {} left where",
    ),
    (
        "evaluation",
        "eight_prompts",
        EIGHT.replace(
            "t.format(first, second) for t in both",
            "t.format(*w) for t in both for w in ((first, second), (second, first))",
        ),
        "the templates for both in both",
    ),
    ("evaluation", "eight_prompts", EIGHT.split(" + ")[0], "the prompts for both left out"),
    (
        "evaluation",
        "eight_prompts",
        "return [t.format(first, second) for t in both] + [t.format(w) for w in (first, second) for t in templates]",
        "the prompts for both first",
    ),
    ("evaluation", "samples_of", four(("seed + i", "seed")), "every image of a prompt"),
    ("evaluation", "samples_of", four(("seed + i", "seed + k")), "another noise for every"),
    (
        "evaluation",
        "samples_of",
        four(("seed + i", "seed + k * per_prompt + i")),
        "seeds counted through",
    ),
    (
        "evaluation",
        "samples_of",
        four(
            ("            g = torch.Generator().manual_seed(seed + i)\n", ""),
            ("out = []", "out = []; " + "g = torch.Generator().manual_seed(seed)"),
        ),
        "one generator for all",
    ),
    (
        "evaluation",
        "samples_of",
        four(
            ("            g = torch.Generator().manual_seed(seed + i)\n", ""),
            ("row = []", "row = []; g = torch.Generator().manual_seed(seed)"),
        ),
        "one generator for a prompt's",
    ),
    ("evaluation", "samples_of", four(("seed + i", "seed + i + 1")), "seeds from seed + 1"),
    ("evaluation", "samples_of", four(("seed + i", "i")), "seeds from 0"),
    ("evaluation", "samples_of", four(("range(per_prompt)", "range(4)")), "four images of each"),
    ("evaluation", "samples_of", four(("range(per_prompt)", "range(1)")), "one image of each"),
    ("evaluation", "samples_of", four(("out.append(row)", "out += row")), "one long list"),
]
