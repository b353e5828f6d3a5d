# TAS-LoRA, Algorithm 2: AutoFormer's evolution with the loss on held-out images as the score.
val_cfg = dict(
    type='tas_lora.EvolutionarySearchLoop',
    score='cross_entropy',
    evolution=dict(
        population=50,
        generations=20,
        parents=10,
        mutations=25,
        crossovers=25,
        gene_prob=0.2,
        shape_prob=0.4,
        seed=0,
    ),
)
test_cfg = dict(
    type='tas_lora.SubnetTestLoop', subnets=dict(smallest='smallest', largest='largest')
)
custom_hooks = [dict(type='tas_lora.MoLEHook')]
