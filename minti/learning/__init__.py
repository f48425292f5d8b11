"""Textual inversion: a new word from a few pictures (exercise E4, `000`; lecture notes `002`, chapter 16).

Read `loss` (task 1), `preparation` and `rows` (task 2), `textual_inversion` (task 3a, the loop); then what stands
round the loop: `pictures` to learn from, `progress` and when to stop, float16's `precision`, and the `run` as a whole,
which can be saved and go on. `settings` is what can be chosen.
"""
