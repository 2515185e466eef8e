"""The training loop and the maths of each step, on networks of a few weights."""

import numpy as np
import pytest
import torch

from deltaw.errors import InputError


def toy_run(folder, steps, planned=None):
    """Fits a line for `steps` steps of a plan of `planned`; returns its weights."""
    from pretrain import run

    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)

    def loss_of(step):
        if step >= steps:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (network(x) - x.sum(1, keepdim=True)).square().mean()

    ema = run.Ema(network, 0.9)
    plan = run.Schedule(planned or steps, 0.1, warmup=2)
    run.train({"network": network}, optimizer, loss_of, plan, folder, ema=ema, save_every_s=-1)
    return torch.cat([p.detach().flatten() for p in (*network.parameters(), *ema.weights().values())])


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path):
    whole = toy_run(tmp_path / "whole", 20)
    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path / "halves", 9, planned=20)
    assert torch.equal(toy_run(tmp_path / "halves", 20), whole)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    from pretrain import state

    one, other = torch.nn.Linear(2, 2), torch.nn.Conv1d(1, 1, 1, bias=False)
    state.save(tmp_path / "s.safetensors", {"network": one}, torch.optim.SGD(one.parameters(), 0.1), {"step": 1})
    with pytest.raises(InputError, match="another network"):
        state.load(tmp_path / "s.safetensors", {"network": other}, torch.optim.SGD(other.parameters(), 0.1))


def test_the_rate_falls_to_zero_by_steps_or_by_the_clock():
    from pretrain import run

    plan = run.Schedule(steps=100, lr=1.0, minutes=10, warmup=10, hold=0.4)
    assert plan.rate(0, 0) == pytest.approx(0.1)
    assert plan.rate(30, 0) == 1.0
    assert plan.rate(100, 0) == pytest.approx(0.0)
    assert plan.rate(30, 600) == pytest.approx(0.0)
    assert plan.way(30, 60) == pytest.approx(0.3)


def test_folding_the_normalisation_changes_the_latents_and_not_the_picture():
    from diffusers import AutoencoderKL

    from pretrain import vae

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    network = AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, latent_channels=2, **blocks).eval()
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        before = network.encode(x).latent_dist
        picture, mean, std = network.decode(before.mean).sample, before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
        vae.fold_normalisation(network, mean, std)
        after = network.encode(x).latent_dist
        assert torch.allclose(network.decode(after.mean).sample, picture, atol=1e-5)
    assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(2), atol=1e-5)
    assert torch.allclose(after.std, before.std / std[:, None, None], rtol=1e-4)


def test_the_weight_of_the_v_loss():
    from pretrain import unet

    assert unet.weight(torch.tensor([0.01, 4.0, 9.0])).tolist() == pytest.approx([1, 1, 0.5])


def test_v_loss_is_zero_for_the_true_v():
    from pretrain import networks, unet

    x0, e, t = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4), torch.tensor([3, 900])
    alphas = networks.scheduler().alphas_cumprod
    a2 = alphas[t][:, None, None, None]

    class Knows:
        def __call__(self, x, t, text):
            assert torch.allclose(x, a2.sqrt() * x0 + (1 - a2).sqrt() * e)
            return type("Out", (), {"sample": a2.sqrt() * e - (1 - a2).sqrt() * x0})

    assert unet.v_loss(Knows(), x0, e, t, torch.zeros(2, 1, 1), alphas).item() == pytest.approx(0, abs=1e-10)


def test_contrastive_loss_rewards_the_own_partner():
    from pretrain import text

    assert text.contrastive(20 * torch.eye(4)) < 1e-3
    assert text.contrastive(torch.zeros(4, 4)).item() == pytest.approx(np.log(4))


def test_the_tokenizer_has_clips_form():
    from collections import Counter

    from pretrain import networks, tokenizer

    found = tokenizer.merges(Counter({"low": 5, "lower": 2, "newest": 6, "widest": 3}), 8)
    assert found[:2] == [("e", "s"), ("es", "t</w>")]
    ready = tokenizer.build(found)
    assert len(ready) == 4096
    ids = ready("newest 木").input_ids
    assert (ids[0], ids[-1]) == (networks.BOS, networks.EOS)
    assert ready.decode(ids, skip_special_tokens=True).strip() == "newest 木"


def test_the_judge_learns_and_keeps_its_labels(tmp_path):
    from pretrain import classifier

    torch.manual_seed(0)
    labels = classifier.Labels(("1f34e", "1f433"), ("noto", "twemoji"))
    judge = classifier.Judge(2, 2)
    x = torch.cat([torch.full((4, 3, 32, 32), -0.8), torch.full((4, 3, 32, 32), 0.8)])
    concept, style = labels.of([{"id": "1f34e", "style": "noto"}] * 4 + [{"id": "1f433", "style": "twemoji"}] * 4)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    for _ in range(8):
        loss = sum(torch.nn.functional.cross_entropy(s, w) for s, w in zip(judge(x), (concept, style), strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    classifier.save(judge, labels, tmp_path / "judge.safetensors")
    again, order = classifier.load(tmp_path / "judge.safetensors")
    assert order == labels
    assert torch.equal(again(x)[0], judge.eval()(x)[0])
    assert classifier.hits(again, x, concept, style)["concept_top5"] == 1.0


def test_moving_keeps_white_paper_white():
    from pretrain import classifier

    x = torch.ones(6, 3, 32, 32)
    out = classifier.moved(x, torch.ones(6, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert out.std((2, 3)).max() < 1e-5


def test_the_decoder_step_leaves_the_encoder_alone(art):
    from pretrain import data, decoder, networks

    torch.manual_seed(0)
    vae = networks.vae().eval().requires_grad_(False)
    vae.decoder.requires_grad_(True)
    pictures = data.load(art, "noto").images
    x = decoder.Batches(pictures, {"icon": pictures}, batch=2, seed=0).at(0)
    decoder.loss_of(decoder.decode(vae, x), x).backward()
    assert all(p.grad is None for p in (*vae.encoder.parameters(), *vae.quant_conv.parameters()))
    assert all(p.grad is not None for p in vae.decoder.parameters())


def test_outlined_pictures_get_their_share():
    from pretrain import unet

    random = np.random.default_rng(0)
    chosen = np.concatenate([unet.choose(10, 15, 32, 0.3, random) for _ in range(200)])
    assert set(chosen) == set(range(15))
    assert (chosen >= 10).mean() == pytest.approx(0.3, abs=0.02)
    assert unet.choose(10, 10, 32, 0.3, random).max() < 10


def test_encoded_pictures_are_kept_for_the_next_start(art, tmp_path, monkeypatch):
    from pretrain import data, networks, unet

    torch.manual_seed(0)
    vae, pictures = networks.vae().eval(), data.load(art, "noto")
    first = unet.encoded(vae, pictures, 2, 0, tmp_path / "run")
    monkeypatch.setattr(unet, "latents", None)
    again = unet.encoded(vae, pictures, 2, 0, tmp_path / "run")
    assert first.shape == (2, len(pictures), 8, 16, 16)
    assert torch.equal(first, again)
