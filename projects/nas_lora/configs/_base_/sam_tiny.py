"""A SAM of 203,120 parameters for images of 64 pixels: encoder 163,136, decoder 39,984."""

model = dict(
    type='nas_lora.SAMSegmentor',
    encoder=dict(
        type='mmpretrain.ViTSAM',
        arch=dict(
            embed_dims=64,
            num_layers=4,
            num_heads=4,
            feedforward_channels=128,
            global_attn_indexes=[1, 3],
        ),
        img_size=64,
        patch_size=8,
        window_size=4,
        out_channels=32,
    ),
    decoder=dict(type='nas_lora.MaskDecoder', embed_dim=32, num_heads=4, mlp_dim=128),
    data_preprocessor=dict(
        type='mmengine.ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
)
