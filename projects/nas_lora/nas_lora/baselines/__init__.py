"""The methods that NAS-LoRA is compared with."""
