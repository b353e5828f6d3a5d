# TAS-LoRA, Algorithm 2: AutoFormer's evolution, scored by the loss on held-out images.
# The race drops candidates that are clearly not among the best; race=None scores all in full.
val_cfg = dict(
    type='tas_lora.EvolutionarySearchLoop',
    score='cross_entropy',
    race=dict(first=500, growth=1.5, z=3.0, controls=20, strata=20),
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
