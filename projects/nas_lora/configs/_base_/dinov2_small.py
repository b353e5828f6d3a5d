"""DINOv2-small with a prompt-free mask decoder, for images of 112 pixels: 8 x 8 patches.

projects/from_pretrained/fetch.py --only weights writes the file. Its encoder has 22,056,192
parameters, the decoder 180,960.
"""

model = dict(
    type='nas_lora.Segmentor',
    encoder=dict(
        type='nas_lora.ViTEncoder',
        source='timm:vit_small_patch14_dinov2',
        checkpoint='data/dinov2_s.safetensors',
        img_size=112,
    ),
    decoder=dict(
        type='nas_lora.MaskDecoder', in_channels=384, embed_dim=64, num_heads=4, mlp_dim=256
    ),
    data_preprocessor=dict(
        type='mmengine.ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
)
