import torch

from toolkit.networks.dropout import AdapterDropout


def test_whole_ranks_of_a_sample_are_left_out_and_the_rest_is_enlarged() -> None:
    torch.manual_seed(0)
    seen = AdapterDropout(ranks=0.25).train().ranks(torch.ones(50, 7, 40))
    assert torch.equal(seen, seen[:, :1].expand_as(seen))  # alike for all tokens
    torch.testing.assert_close(seen.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert abs(float((seen == 0).float().mean()) - 0.25) < 0.03
    assert AdapterDropout(ranks=0.25).train().ranks(torch.ones(2, 8)).shape == (2, 8)


def test_a_module_is_left_out_whole_and_not_made_up_for() -> None:
    torch.manual_seed(0)
    thinning = AdapterDropout(module=0.25).train()
    seen = torch.stack([thinning.module(torch.ones(2, 3)) for _ in range(800)])
    assert torch.equal(seen, seen[:, :1, :1].expand_as(seen))
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert abs(float(seen.mean()) - 0.75) < 0.05


def test_zero_draws_nothing_and_evaluation_leaves_all_in() -> None:
    x, state = torch.ones(2, 3), torch.get_rng_state()
    for thinning in (AdapterDropout().train(), AdapterDropout(0.5, 0.5, 0.5).eval()):
        assert thinning.module(thinning.ranks(thinning.inputs(x))) is x
    assert torch.equal(torch.get_rng_state(), state)
