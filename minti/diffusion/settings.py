"""Which noise schedule a model was trained with, and what it predicts: the keys of `scheduler_config.json`."""

from __future__ import annotations

from dataclasses import dataclass

from minti.diffusion.betas import SCHEDULES
from minti.machine.configs import OFF, Config, check_range, check_types
from minti.machine.messages import quoted

SPACINGS = ("leading", "linspace", "trailing")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True)
class SchedulerConfig(Config):
    """The keys of `scheduler/scheduler_config.json`; the defaults are SD v1.4's.

    Attributes:
        beta_schedule: "linear" (DDPM), "scaled_linear" (latent diffusion: the square roots are linear), or
            "squaredcos_cap_v2" (the cosine schedule of arXiv 2102.09672).
        prediction_type: what the UNet was trained to predict: "epsilon", "sample" (x_0) or "v_prediction".
        timestep_spacing: which timesteps a short run visits; see `NoiseScheduler.timesteps`. None: the sampler's own.
        steps_offset: added to the timesteps of "leading".
        set_alpha_to_one: whether DDIM's last step ends at alpha-bar = 1, or at alpha-bar_0 as SD does.
        rescale_betas_zero_snr: whether the schedule is stretched until its last timestep is pure noise.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool = False
    rescale_betas_zero_snr: bool = False

    # Schedulers of many kinds write this file, each with keys of its own; what changes the numbers is refused.
    STRICT = False
    FIXED = {
        **dict.fromkeys(("trained_betas", "clip_sample", "thresholding"), OFF),
        **{f"use_{kind}_sigmas": OFF for kind in ("karras", "exponential", "beta", "flow")},
        "use_lu_lambdas": OFF,
        "skip_prk_steps": (True,),
        "variance_type": ("fixed_small", None),
    }

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, 1, 100_000, "num_train_timesteps")
        check_range(self, 0, self.num_train_timesteps, "steps_offset")
        check_range(self, 1e-7, 0.999, "beta_start", "beta_end")
        if self.beta_schedule not in SCHEDULES:
            raise ValueError(f"unknown beta_schedule {quoted(self.beta_schedule)}; expected one of {SCHEDULES}")
        for key, choices in (("prediction_type", PREDICTION_TYPES), ("timestep_spacing", (*SPACINGS, None))):
            if getattr(self, key) not in choices:
                raise ValueError(f"{key} = {quoted(getattr(self, key))}; expected one of {choices}")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr makes the last timestep pure noise, from which epsilon tells "
                "nothing; expected prediction_type 'v_prediction' or 'sample'"
            )
