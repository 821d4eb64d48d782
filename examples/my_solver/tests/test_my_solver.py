"""What the SDE and the solver promise."""

import torch
from hypothesis import given, settings
from my_solver import Ralston, Sine

import sdediff as sd
from sdediff.testing import check_equivalences, check_sde, check_solver, strategies


def test_the_coefficients_of_the_sde_fit():
    check_sde(Sine())


def test_ddpm_ddim_and_others_are_what_they_are_under_it():
    check_equivalences(Sine(), names=["DDPM chain", "DDIM", "one flow", "predictions"])


def test_the_solver_has_its_order_and_keeps_the_contracts():
    check_solver(Ralston())


def test_samples_are_those_of_the_data():
    """An exact mixture: samples of the solver against samples of the law, by their moments."""
    law = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.2)
    x = sd.sample(law.model(Sine()), (4000, 2), solver=Ralston(), steps=40, seed=0).x
    mean, covariance = law.data_moments()
    torch.testing.assert_close(x.mean(dim=0).double(), mean, rtol=0, atol=0.08)
    torch.testing.assert_close(torch.cov(x.T).double(), covariance, rtol=0, atol=0.08)


@settings(max_examples=10, deadline=None)
@given(strategies.cases(sde=Sine()))
def test_ddim_is_dpm_solver_of_order_1_under_it(case):
    """On random mixtures, grids and predictions of the network."""
    ddim, dpm_solver = case.solve(sd.DDIM()), case.solve(sd.solvers.DPMSolver(1))
    torch.testing.assert_close(ddim, dpm_solver, rtol=1e-9, atol=1e-9)
