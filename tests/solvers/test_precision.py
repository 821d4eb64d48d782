"""Tolerances below the precision of the state or of the network: a solve says so, and ends."""

import pytest
import torch
from torch import Tensor, nn

import sdediff as sd
from sdediff.solvers import Options, Status
from sdediff.solvers.solution import MOST_NFE

LAW = sd.exact.GaussianMixture([[-1.0, 0.3], [1.0, 0.5], [0.2, -0.9]], 0.2)
EXACT = LAW.model(sd.VP())


class Net(nn.Module):
    """The exact model, its inputs and outputs rounded to a dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return EXACT.net(x.double(), t.double()).to(x.dtype)


def rounded(dtype: torch.dtype) -> sd.ScoreModel:
    return sd.ScoreModel(Net(dtype), sd.VP(), "v", data_std=EXACT.data_std)


TIGHT = [
    sd.solvers.DOP853(1e-10, 1e-10),
    sd.RK45(1e-12, 1e-12),
    sd.solvers.TorchDiffEq("dopri5", 1e-9, 1e-9),
]


@pytest.mark.thin(1)
@pytest.mark.parametrize("solver", TIGHT, ids=repr)
def test_a_tolerance_below_the_states_rounding_is_raised_to_it(solver: sd.RK45) -> None:
    """In float32 such a solve took 40,000 evaluations a sample in silence; it comes as near as
    float32 lets it.
    """
    with pytest.warns(
        UserWarning,
        match=r"below the rounding of the solve; 1.2e-07 takes their place. .*torch.float64",
    ):
        out = sd.sample(EXACT, (4, 2), solver=solver, seed=0)
    assert out.success
    assert int(out.nfe.max()) < 400
    fine = sd.sample(
        EXACT, (4, 2), solver=sd.solvers.DOP853(1e-10, 1e-10), seed=0, dtype=torch.float64
    )
    torch.testing.assert_close(out.x.double(), fine.x, rtol=0, atol=2e-5)


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.bfloat16, 1200), (torch.float16, 1200), (torch.float32, 700)],
    ids=str,
)
def test_a_tolerance_below_the_networks_rounding_is_raised_to_it(
    dtype: torch.dtype, most: int
) -> None:
    x = LAW.sample(2, seed=0).float()
    tight = 1e-9 if dtype == torch.float32 else 1e-6
    with pytest.warns(UserWarning, match="or take a network of higher precision"):
        out = sd.log_prob(rounded(dtype), x, solver=sd.RK45(tight, tight), max_nfe=20_000)
    assert int(out.nfe.max()) < most
    if dtype != torch.float32:
        with pytest.warns(UserWarning, match="a network of higher precision"):
            assert int(sd.sample(rounded(dtype), (4, 2), solver=sd.RK45(), seed=0).nfe.max()) < 200


def test_tolerances_that_rounding_admits_are_left_alone() -> None:
    """The least that float32 admits, float64 far below, and a large atol with a small rtol: without
    a warning.
    """
    sd.sample(EXACT, (2, 2), solver=sd.RK45(1.3e-7, 1.3e-7), seed=0)
    sd.sample(EXACT, (2, 2), solver=sd.solvers.DOP853(1e-12, 1e-12), seed=0, dtype=torch.float64)
    sd.sample(EXACT, (2, 2), solver=sd.RK45(1e-12, 1e-3), seed=0)
    sd.log_prob(rounded(torch.float32), LAW.sample(2, seed=0).float())


def test_a_jump_ends_a_sample_at_the_states_rounding() -> None:
    """A step that float32 cannot tell from none is not made smaller."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        return EXACT.net(x, t) + 1e4 * (t < 0.371)[:, None]

    model = sd.ScoreModel(net, sd.VP(), "v", data_std=EXACT.data_std)
    out = sd.sample(
        model, (2, 2), solver=sd.RK45(1e-5, 1e-9, variable="t"), seed=0, on_fail="return"
    )
    assert set(out.status.tolist()) == {Status.STEP_TOO_SMALL}
    assert int(out.nfe.max()) < 400


def test_an_adaptive_solve_has_a_limit_of_its_own() -> None:
    assert (
        Options().limit(sd.RK45())
        == Options().limit(sd.AdaptiveSDE())
        == Options().limit(sd.solvers.SciPy("RK45"))
        == MOST_NFE
    )
    assert Options().limit(sd.solvers.Euler()) is None
    assert Options(max_nfe=70).limit(sd.RK45()) == 70
    with pytest.raises(sd.SolveError, match=r"max_nfe is reached.*\(40 evaluations\)"):
        sd.sample(EXACT, (2, 2), solver=sd.RK45(1e-6, 1e-6), seed=0, max_nfe=40)
