"""Errors of a recipe's user are one sentence that names the setting."""

from __future__ import annotations

import re

import gymnasium
import pytest

#: A setting out of its range, which the sentence names: ``algo.tau must be ..., got -1``.
OUT_OF_RANGE = {
    "m_dqn": "algo.tau=-1 algo.alpha=2 algo.clip_min=0.5 algo.gamma=1.5 algo.n_steps=0 algo.loss_function=l3 "
    "algo.weight_reduction=sum "
    "algo.batch_size=0 algo.num_envs=0 algo.learning_rate=0 algo.target_period_updates=0 algo.update_every_frames=0 "
    "algo.total_frames=0 algo.eps_start=2 algo.adam_eps=-1 algo.learning_starts_frames=-5 "
    "algo.learning_starts_frames=80000 algo.update_every_frames=79001 algo.batch_size=100000000000000000000",
    "q_learning": "algo.explore=boldly",
    "iq": "algo.baseline=max algo.tau=0 algo.alpha=-1 algo.target_rate=0 algo.num_envs=100000000 policy.num_bins=1 "
    "policy.num_cells=[]",
    "pcl": "algo.rollout=13 algo.replay_capacity=20",
    "sac": "algo.tau=-1",
    "virel": "algo.beta_scale=0 algo.mode=map",
    "soft_q": "algo.num_particles=2 algo.proposal=actor",
    "mirl": "algo.method=ddqn algo.beta=0 algo.beta=0.01 algo.beta_rate=1.5 algo.prior_rate=0 algo.prior_rate=2 "
    "algo.prior_learning_rate=0",
    "iqn": "net.num_cosines=0",
    "c51": "net.num_atoms=0",
    "ments": "algo.method=alphazero algo.num_simulations=0 algo.tau=0 algo.c=-1 algo.gamma=1.5 env.game=goals "
    "algo.policy=nowhere",
    "ments_trees": "algo.methods=[ments,ments] algo.methods=[alphazero] algo.branching=[] algo.depth=[0] "
    "algo.noise=[-0.1] algo.num_simulations=0 algo.tau=0 algo.epsilon=-1 algo.c=-1",
    "mirl_grid": "algo.worlds=[coridor] algo.methods=[mirl,dqn] algo.methods=[mirl,mirl] algo.methods=[] "
    "algo.num_seeds=0 algo.gamma=1 algo.sql.q_rate=1.5 algo.mirl.prior_rate=0 algo.sql_m.beta_growth=-1 "
    "algo.ql.epsilon=2 run.evaluate_every_frames=6001",
}


@pytest.mark.parametrize("words", [f"{name} {word}" for name, words in OUT_OF_RANGE.items() for word in words.split()])
def test_a_setting_out_of_its_range_is_named(words, refused, tmp_path):
    setting, _, got = words.split()[1].partition("=")
    sentence = refused(words)
    name = setting.removeprefix("policy.").removeprefix("net.")  # those name the class, or nothing
    assert re.search(rf"\b{re.escape(name)} must ", sentence) and sentence.endswith(".")
    assert not (tmp_path / "run").exists()


#: What is typed -> what the sentence holds. What is the same for any recipe is tested in tests/lab/cli.
BAD = {
    "m_dqn env=atari env.game=Brekout": "Did you mean 'breakout'?",
    "m_dqn env.name=pendulum": "env must have discrete actions (a categorical spec), got continuous ones",
    "m_dqn env=mujoco/hopper": "its actions are continuous; recipes for those are iq, pcl, sac, soft_q, virel.",
    "m_dqn env.name=CartPole-v1": "Did you mean env=gym env.game=CartPole-v1?",
    "m_dqn env=gym": "game must be a gymnasium id, such as 'CartPole-v1', got ''.",
    "m_dqn env=gym env.game=CartPole-v1 env.kwargs.x=1": "env.kwargs.x is not set here; +env.kwargs.x=... adds it.",
    "m_dqn env=gym env.game=CartPole-v1 +env.kwargs.x=1": "kwargs must be arguments of 'CartPole-v1', got {'x': 1}",
    "m_dqn env=gym env.game=CartPole-v1 env.kwargs=3": "env.kwargs must be a mapping, got 3.",
    "m_dqn env=gym env.game=CliffWalking-v1": "max_episode_frames must be set for 'CliffWalking-v1'",
    "m_dqn env.import_module=nowhere": "import_module must be a module that is installed",
    "m_dqn net=nature": "net.name must fit observations of shape (4,), got 'nature'",
    "q_learning env=atari +paper=dabney2018": "+paper=dabney2018 must come with +method=<choice>, which its",
    "iq policy=gaussian algo.baseline=mean": "algo.baseline must be logsumexp unless policy=multicategorical",
    "virel algo.mode=em algo.beta_scale=null": "algo.mode must be td without a beta_scale or with a value_network",
    "q_learning regularizer=sparsmax": "choose one of bellman_error, boltzmann, entropy, none, prior_kl",
    "q_learning regularizer=entropy regularizer.taau=1": "is not set here; did you mean regularizer.tau?",
    "q_learning regularizer=entropy regularizer.tau=-1": "tau must be a finite number > 0",
    "m_dqn algo.tau=0": "algo.tau must be finite and > 0, got 0",
    "m_iqn algo.tau=-1": "algo.tau must be finite and > 0, got -1",
    "m_dqn algo.tau=small": "algo.tau must be a number, got 'small'",
    "sparse_dqn regularizer.tau=small": "tau must be a finite number > 0 (the temperature",
    "virel algo.tau_max=1e-4": "algo.tau_max must be >= 0.001, got 0.0001",
    "pqn algo.reward_scale=0": "algo.reward_scale must be > 0, got 0",
    "m_dqn algo.reward_scale=-1": "algo.reward_scale must be > 0, got -1",
    "q_learning regularizer._target_=nothing.Own": "No module named 'nothing'",
    "q_learning regularizer._target_=math.Own": "No module named 'math.Own'",
    "q_learning regularizer._target_=Own": "No module named 'Own'",
    "q_learning regularizer._target_=math.pi": "Expected a callable target, got '3.14",
    "q_learning +regularizer.tau=1": "torchrl_reg.regularizers.HardMax does not take these settings",
    "q_learning regularizer.path=own:Own": "regularizer.path is not set here; +regularizer.path=... adds it.",
    "q_learning head.kappa=3": "head.kappa is not a setting here, but of head=quantile.",
    "q_learning shaping.alpha=0.5": "shaping.alpha is not a setting here, but of shaping=advantage_gap and ",
    "q_learning algo.priority_exponent=1000": "algo.priority_exponent must be in [0, 1], got 1000.0",
    "q_learning +shaping._target_=torchrl_reg.regularizers.HardMax": "shaping._target_ must be that of a Shaping",
    "q_learning +method=m_dqn bootstrap=double": "double_dqn must be False with a shaping",
    "q_learning head.network.path=math:pi": "head.network.path is not set here",
    "iq env=cartpole": "its actions are discrete; recipes for those are m_dqn, m_iqn, mirl, pqn, q_learning.",
    "iq +paper=nachum2018": "paper=nachum2018 does not go with this recipe: it sets algo.lam",
    "iq env.name=cartpole": "bounded box of actions",
    "iq algo.target_entropy=1.0 policy=gaussian": "algo.target_entropy must be null unless policy=multicategorical",
    "iq algo.target_entropy=9.0": "target_entropy must lie between 0 and 2.398",
    "iq policy=gaussian policy.scale_mapping=foo": "scale_mapping",
    "pcl algo.unified=true policy=gaussian": "unified",
    "pcl algo.tau=0": "tau or lam",
    "pcl algo.lam=0.1 algo.max_kl=-1": "max_kl",
    "sac algo.adapt_tau=false algo.target_entropy=-1": "algo.target_entropy",
    "sac policy=multicategorical algo.target_entropy=9": "algo.target_entropy",
    "sac policy=autoregressive": "policy.name",
    "virel policy=multicategorical": "policy.name must be gaussian or flow",
    "soft_q policy=gaussian": "policy.name must be sampler or flow",
    "mirl algo.beta_min=5 algo.beta_max=1": "algo.beta_min and algo.beta_max",
    "mirl algo.prior_keys=[goal]": "The prior's keys must be among observation",
    "mirl algo.method=sql algo.prior_keys=[observation]": "algo.prior_keys",
    "ments env.name=pendulum env.game=''": "env must have discrete actions, got Pendulum-v1 with Box",
    "ments env.name=mountaincar_continuous env.game=''": "env.name must be one of gridworld, minatar, atari, cartpole",
    "ments plan=cartpole algo.policy=nowhere": "nowhere must be a run folder or an exported one",
    "ments_trees algo.depth=[40]": "must be at most 1e8 leaves, got",
    "m_dqn --nope": "--nope is not an option; settings are written name=value, without dashes.",
    "m_dqn --cfg": "argument --cfg/-c: expected one argument.",
    "m_dqn run.seed=0,1": "run.seed must be one value, got 0,1; -m runs each of them.",
    "m_dqn algo.taau=1 -m run.seed=0,1": "did you mean algo.tau?",
    "mirl_grid algo.mirl.prior_rat=0.1": "did you mean algo.mirl.prior_rate?",
}


@pytest.mark.parametrize(("words", "expected"), BAD.items(), ids=BAD)
def test_user_errors_are_one_sentence(words, expected, refused, tmp_path):
    assert expected in refused(words)
    assert not (tmp_path / "run").exists()


class Uncopied(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(2)

    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle 'SwigPyObject' object")


def test_planning_needs_an_environment_that_can_be_copied(refused, load, monkeypatch):
    monkeypatch.setattr(load("ments").gymnasium, "make", lambda *_, **__: Uncopied())
    words = "ments plan=cartpole env.name=lunarlander"  # whatever Box2D's objects say of themselves
    assert "env must be one that copy.deepcopy can clone, got" in refused(words)
