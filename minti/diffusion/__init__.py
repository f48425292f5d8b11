"""The mathematics of diffusion, which knows no network (lecture notes `002`, chapters 4 to 7 and 15).

Read `betas` and `scheduler` for what noise does to a picture; `trajectory`, `samplers` and `dpm_solver` for
the way back; `guidance` for how a prompt bends that way, `composition` for how several prompts do. A network appears
here only as a callable.
"""
