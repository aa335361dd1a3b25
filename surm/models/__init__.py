"""Models that adapters attach to, and the way published weights get into them.

weights   opens weights by name: what ships with the package, local files, the Hugging Face hub
convert   names and shapes of published weights -> ours, one table of patterns for each publisher
vit       the Vision Transformer (ViT, CLIP's vision tower), from attention and normalization
"""
