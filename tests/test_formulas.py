"""The table of the notes' formulas names what exists; and formulas as the notes write them, where the code differs."""

import ast
import importlib
import re
from functools import reduce
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minti.guidance.conditions import Condition, composed_guidance
from minti.layers import Attention, TimestepEmbedding, timestep_embedding
from minti.sampling import classifier_free_guidance
from minti.scheduler import NoiseScheduler

ROOT = Path(__file__).parent.parent
TABLE = (ROOT / "examples/formulas.md").read_text(encoding="utf-8")
ROWS = [cells for line in TABLE.splitlines() if len(cells := line.split(" | ")) == 4 and "`" in line]
NAMES = re.compile(r"`([^`]+)`")


def resolve(name: str) -> object:
    """What a dotted name names: the longest part that is a module, then attributes."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[end:], module)
    raise ModuleNotFoundError(name)


def defined(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def named(column: int, beginning: str) -> list[str]:
    return sorted({name for row in ROWS for name in NAMES.findall(row[column]) if name.startswith(beginning)})


def test_every_row_of_the_table_names_a_function_and_a_test():
    assert len(ROWS) > 25
    for row in ROWS:
        assert [name for name in NAMES.findall(row[2]) if name.startswith(("minti.", "examples/"))], row
        assert [name for name in NAMES.findall(row[3]) if name.startswith("tests/")], row


@pytest.mark.parametrize("name", named(2, "minti."))
def test_the_functions_of_the_table_exist(name):
    assert callable(resolve(name))


FILES = sorted(
    {
        name
        for name in NAMES.findall((ROOT / "examples/files.md").read_text(encoding="utf-8"))
        if name.startswith("tests/")
    }
)


@pytest.mark.parametrize("name", [*named(2, "examples/"), *named(3, "tests/"), *FILES])
def test_the_tests_and_scripts_of_the_table_exist(name):
    path, _, function = name.partition("::")
    assert (ROOT / path).is_file()
    assert function in defined(ROOT / path)


def test_a_name_that_does_not_exist_is_found_out():
    for name in ("minti.scheduler.NoiseScheduler.remove_noise", "minti.schedulers", "mintage"):
        with pytest.raises((AttributeError, ModuleNotFoundError)):
            resolve(name)
    assert "test_formulae" not in defined(Path(__file__))


# --- as the notes write them ------------------------------------------------------------------------------------------


def test_the_chain_of_single_steps_is_the_closed_form():
    """`002`, 4.1: x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z, from x_0 on; mean and variance of a chain."""
    scheduler = NoiseScheduler()
    mean, variance = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    for t, beta in enumerate(scheduler.betas.double()):
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        signal, noise = scheduler.level(t)
        torch.testing.assert_close(signal.double(), mean, rtol=1e-4, atol=0)
        torch.testing.assert_close(noise.double() ** 2, variance, rtol=1e-4, atol=0)


@pytest.mark.parametrize("t", [1, 30, 500, 999])
def test_the_mean_of_a_step_as_the_notes_write_it(t):
    """`002`, 4.4: mu = (x_t - beta_t / sqrt(1 - alpha-bar_t) epsilon) / sqrt(alpha_t), with x_0 from epsilon."""
    scheduler = NoiseScheduler()
    x, epsilon = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    beta = scheduler.betas[t].double()
    alpha_bar = (1 - scheduler.betas.double())[: t + 1].prod()
    expected = (x - beta / (1 - alpha_bar).sqrt() * epsilon) / (1 - beta).sqrt()
    mean, _ = scheduler.posterior(scheduler.clean_from_noise(x, epsilon, t), x, t, t - 1)
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-4)  # the scheduler's numbers are float32


@pytest.mark.parametrize("s", [0.0, 1.0, 7.5])
def test_both_ways_to_write_guidance(s):
    """`002`, 7.4 and 15; `001`, Algorithm 2: uncond + s (cond - uncond) = (1 + w) cond - w uncond, w = s - 1."""
    context, empty = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    network = lambda x, t, c: torch.tanh(x * c.mean(dim=(1, 2))[:, None, None, None]) + t[0] / 1000  # noqa: E731
    x, t = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1)), torch.full((3,), 700)
    cond, uncond = network(x, t, context), network(x, t, empty)
    plain = classifier_free_guidance(network, context, empty, s)
    composed = composed_guidance(network, [Condition(context, s)], empty)
    for got in (plain(x, 700), composed(x, 700)):
        torch.testing.assert_close(got, uncond + s * (cond - uncond))
        torch.testing.assert_close(got, s * cond - (s - 1) * uncond, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(cond, uncond)


@torch.no_grad()
def test_many_heads_as_the_notes_write_them():
    """`002`, 1.3 and 1.4: Concat(head_1, ...) W^O, head_i = softmax(Q_i K_iᵀ / sqrt(d)) V_i."""
    torch.manual_seed(0)
    layer, heads, d = Attention(query_dim=24, heads=3, context_dim=10), 3, 8
    x, context = torch.randn(2, 6, 24), torch.randn(2, 5, 10)
    parts = []
    for i in range(heads):
        own = slice(i * d, (i + 1) * d)
        q = x @ layer.to_q.weight[own].T
        k, v = context @ layer.to_k.weight[own].T, context @ layer.to_v.weight[own].T
        parts.append(torch.softmax(q @ k.mT / d**0.5, dim=-1) @ v)
    out = layer.to_out[0]
    torch.testing.assert_close(layer(x, context), torch.cat(parts, dim=-1) @ out.weight.T + out.bias)


@torch.no_grad()
def test_the_timestep_s_two_layers():
    """`004`, 2.3: e_t = W_2 SiLU(W_1 Sinusoidal(t) + b_1) + b_2."""
    torch.manual_seed(0)
    layer, features = TimestepEmbedding(8, 20), timestep_embedding(torch.tensor([0, 3, 999]), 8)
    hidden = F.silu(features @ layer.linear_1.weight.T + layer.linear_1.bias)
    torch.testing.assert_close(layer(features), hidden @ layer.linear_2.weight.T + layer.linear_2.bias)


# --- what the errata say ----------------------------------------------------------------------------------------------


def test_adam_divides_a_common_factor_out_of_the_gradients():
    """`002`, 16: gradients that are all clipped by the same factor lead to the same steps."""
    gradients, ends = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), []
    for factor in (1, 1e-2):
        weight = torch.zeros(8, requires_grad=True)
        optimizer = torch.optim.AdamW([weight], lr=0.01)
        for gradient in gradients:
            weight.grad = factor * gradient
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)
    assert ends[0].abs().max() > 0.01


def test_the_range_of_the_two_float8_formats():
    """`003`, 38: gradients need the larger range, which is E5M2's; E4M3 has the finer steps."""
    fine, wide = torch.finfo(torch.float8_e4m3fn), torch.finfo(torch.float8_e5m2)
    assert (fine.max, wide.max) == (448, 57344)
    assert fine.eps < wide.eps
