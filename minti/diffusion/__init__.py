"""The mathematics of diffusion, which knows no network (lecture notes `002`, chapters 4 to 7 and 15).

Read `betas` and `scheduler` for what noise does to a picture; `steps`, `samplers`, `multistep` and `ode` for the
way back; `guidance` for how prompts bend that way, `gradients` for how a classifier or a loss does, `illusions` for how
two prompts share a picture. A network appears here only as a callable.
"""
