"""How something is learned, beside a frozen model (exercise E4, `000`; lecture notes `002`, chapter 16).

Read `textual_inversion`, task by task of the exercise, then the `loop` and the `pictures` it draws from; and its
siblings, `dreambooth`, for networks and LoRAs, and `score_distillation`, where a drawing learns. What goes round them:
`settings` is what can be chosen, `losses` how an error counts, `preparation` and `checks` refuse what would learn
nothing, `watching` tells how good it is and when to stop; `saving` puts a run into files, and `run_state` reads them.
`choosing` finds the word to begin with, `growing` how many rows a word needs.
"""
