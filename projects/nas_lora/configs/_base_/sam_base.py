"""SAM base: encoder 89,670,912 parameters, decoder 3,506,560, images of 1024 pixels.

Point ``pretrained`` to a file of SAM base: Meta's sam_vit_b_01ec64.pth, Hugging Face's
model.safetensors (facebook/sam-vit-base), or OpenMMLab's
vit-base-p16_sam-pre_3rdparty_sa1b-1024px_20230411-2320f9cc.pth (the encoder only; the decoder then
starts untrained). None of the three files was tried here, only files with the same tensor names.
"""

model = dict(
    type='nas_lora.SAMSegmentor',
    encoder=dict(type='mmpretrain.ViTSAM', arch='base', img_size=1024),
    pretrained='checkpoints/sam_vit_b_01ec64.pth',
    data_preprocessor=dict(
        type='mmengine.ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
)
