"""How well a word was learned, measured on any model; no room here knows the toybox (lecture notes `002`, 15 and 16).

Read `neighbours` for where a learned row lies among the known ones, `losses` for where on the schedule it helps,
`clip_scores` for whether a picture shows the thing and obeys the rest of the prompt, `attention_maps` for where in the
picture a word looks. `distribution` compares whole sets of pictures.
"""
