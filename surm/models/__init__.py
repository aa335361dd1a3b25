"""The models that adapters attach to, and the loading of published weights.

catalogue   lists the architectures with their classes, presets, and names and fields in the files of Hugging Face
weights     opens weights by name, from the package, local files or the Hugging Face hub
convert     loads published weights into surm's models, by a table of names for each publisher
hf_config   reads the shape of a model from a config.json

vit, dinov2, bert and distilbert are the models. The other files are layers that models share, or read files of one
kind.
"""
