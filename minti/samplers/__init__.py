"""Samplers beside DDPM and DDIM: PNDM, DPM-Solver++, Euler and Heun."""
