"""Samplers beside DDPM and DDIM: PNDM, DPM-Solver++, Euler and Heun; LCM and TCD for few-step models."""
